"""From tokens to what a client reads: text piece by piece, stops, log-probabilities and OpenAI's objects.

A piece is held back while its last character lacks bytes, or while it may be the beginning of a stop. Knows nothing
of queues.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from whit.serving.scheduler import Token

_WINDOW = 6  # tokens before the new ones that are decoded with them


class Text:
    """The text of one answer as it grows; `decode` turns ids into text."""

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode, self._stops = decode, stops
        self._longest = max(map(len, stops), default=1) - 1
        self._ids: list[int] = []
        self._seen = 0  # tokens whose text is out of the decoder
        self._held = ""
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that may be shown after one more token; sets `stopped` where a stop was met."""
        if self.stopped:
            return ""
        self._ids.append(token)
        start = max(0, self._seen - _WINDOW)
        before, now = self._decode(self._ids[start : self._seen]), self._decode(self._ids[start:])
        if now.endswith("\ufffd") and len(self._ids) - self._seen < 8:
            return ""
        self._seen = len(self._ids)
        return self._show(now[len(before) :], self._longest)

    def end(self) -> str:
        """What was held back."""
        if self.stopped:
            return ""
        start = max(0, self._seen - _WINDOW)
        before, now = self._decode(self._ids[start : self._seen]), self._decode(self._ids[start:])
        self._seen = len(self._ids)
        return self._show(now[len(before) :], 0)

    def _show(self, piece: str, keep: int) -> str:
        held = self._held + piece
        places = [at for stop in self._stops if (at := held.find(stop)) >= 0]
        if places:
            held, keep, self.stopped = held[: min(places)], 0, True
        keep = min(keep, len(held))
        # Only as much is held back as may yet become a stop.
        while keep and not any(stop.startswith(held[-keep:]) for stop in self._stops):
            keep -= 1
        shown = held[: len(held) - keep] if keep else held
        self._held = held[len(shown) :]
        self.text += shown
        return shown


def finish_reason(reason: str, stopped: bool) -> str:
    """OpenAI's word for why an answer ended."""
    return "stop" if stopped or reason == "stop" else "length"


def chat_logprobs(tokens: Sequence[Token], decode: Callable[[list[int]], str]) -> dict[str, Any]:
    """`logprobs` of a chat choice."""

    def one(token: int, logprob: float | None) -> dict[str, Any]:
        text = decode([token])
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    content = [
        {**one(token.id, token.logprob), "top_logprobs": [one(other, value) for other, value in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[Token], decode: Callable[[list[int]], str], offset: int = 0) -> dict[str, Any]:
    """`logprobs` of a completion choice."""
    texts = [decode([token.id]) for token in tokens]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{decode([other]): value for other, value in token.top} for token in tokens],
        "text_offset": offsets,
    }


def usage(prompt: int, reused: int, completion: int) -> dict[str, Any]:
    """`usage`: tokens read (and of these, those known already) and written."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": reused},
    }
