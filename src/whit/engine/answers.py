"""Answers: text out of the engine, piece by piece, many at once, each with its own adapter.

Promises that the pieces joined are the answer, that no piece ends within a character, and that a stop
string never shows. Knows no chat templates.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from whit.engine.runtime import Engine

REASONS = {2: "end", 3: "stop", 4: "length"}


class Answer:
    """One answer in the making.

    `most` tokens at most; `temperature` 0 takes the likeliest token, otherwise `top_p`, `min_p` and
    `seed` decide. It ends at the model's last token, at any of `ends`, or before any of `stops`.
    """

    def __init__(
        self,
        engine: Engine,
        prompt: Sequence[int],
        *,
        adapter: int = -1,
        most: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
        ends: Sequence[int] = (),
        stops: Sequence[str] = (),
    ) -> None:
        from whit.engine.runtime import words

        packed = b"".join(struct.pack("<I", len(part)) + part for part in (stop.encode() for stop in stops))
        self._engine = engine
        self.handle = engine.call(
            "whit_ask", words(prompt), adapter, most, temperature, top_p, min_p, seed, words(ends), packed
        )
        self._status = engine.call("whit_answer_status", self.handle)

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._status >= 2

    @property
    def reason(self) -> str | None:
        """Why it ended: `end`, `stop` or `length`; None while it goes on."""
        return REASONS.get(self._status)

    @property
    def tokens(self) -> list[int]:
        """The tokens so far."""
        count = self._engine.call("whit_answer_tokens", self.handle)
        return list(struct.unpack(f"<{count}I", self._engine.result()))

    def take(self) -> str:
        """Text that came since the last call."""
        self._engine.call("whit_answer_text", self.handle)
        return self._engine.result().decode("utf-8", "replace")

    def noted(self) -> None:
        """Look again where it stands; `advance` does so."""
        self._status = self._engine.call("whit_answer_status", self.handle)

    def pieces(self) -> Iterator[str]:
        """Run it to its end, piece by piece, and forget it."""
        try:
            while not self.done:
                advance([self])
                if piece := self.take():
                    yield piece
        finally:
            self.close()

    def text(self) -> str:
        """Run it to its end and forget it; all of its text."""
        return "".join(self.pieces())

    def close(self) -> None:
        """Forget it and free its memory; closing twice is no error."""
        if self.handle >= 0:
            self._engine.call("whit_answer_free", self.handle)
            self.handle = -1


def advance(answers: Sequence[Answer]) -> int:
    """Move answers of one engine one step in one batch; how many go on."""
    from whit.engine.runtime import words

    going = [answer for answer in answers if not answer.done]
    if not going:
        return 0
    left = going[0]._engine.call("whit_advance", words([answer.handle for answer in going]))
    for answer in going:
        answer.noted()
    return left
