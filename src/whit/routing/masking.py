"""Reversible placeholders: what was found leaves as `<EMAIL_1_k3f9>` and comes back in the answer.

Promises that the same text has the same placeholder within a request, that no placeholder occurs in the request by
itself, and that a streamed answer is restored even where a placeholder is cut anywhere between its pieces. A
placeholder that the model alters stays as it is: it holds nothing. Knows nothing of tiers.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable

_ALPHABET = "bcdfghjkmnpqrstvwxz"  # no digits, so that placeholders make no numbers; no vowels, so no words


class Masks:
    """The placeholders of one request. `found` are kinds and texts; `avoid` is the text they must not occur in."""

    def __init__(self, found: Iterable[tuple[str, str]], *, avoid: str = "") -> None:
        while True:
            tag = "".join(secrets.choice(_ALPHABET) for _ in range(6))
            if tag not in avoid:
                break
        self._to: dict[str, str] = {}
        counts: dict[str, int] = {}
        # The longest first: a number may stand in another's text.
        for kind, text in sorted(set(found), key=lambda each: (-len(each[1]), each)):
            if text and text not in self._to:
                counts[kind] = counts.get(kind, 0) + 1
                name = re.sub(r"[^A-Z]", "", kind.upper()) or "TEXT"
                self._to[text] = f"<{name}_{_letters(counts[kind])}_{tag}>"
        self._back = {placeholder: text for text, placeholder in self._to.items()}
        self._mask = re.compile("|".join(map(re.escape, self._to))) if self._to else None
        self._restore = re.compile("|".join(map(re.escape, self._back))) if self._back else None
        self.longest = max(map(len, self._back), default=0)

    def __len__(self) -> int:
        return len(self._to)

    def __repr__(self) -> str:
        return f"<{len(self._to)} masks>"

    def mask(self, text: str) -> str:
        """The text with placeholders."""
        return self._mask.sub(lambda match: self._to[match.group()], text) if self._mask else text

    def blank(self, text: str) -> str:
        """A masked text with a plain word for each placeholder, for who would take those for names."""
        return self._restore.sub("that", text) if self._restore else text

    def restore(self, text: str, *, quoted: bool = False) -> str:
        """The text with what the placeholders stand for; `quoted` where the text is the inside of JSON."""
        if self._restore is None:
            return text

        def put(match: re.Match[str]) -> str:
            back = self._back[match.group()]
            return json.dumps(back, ensure_ascii=False)[1:-1] if quoted else back

        return self._restore.sub(put, text)

    def held(self, text: str) -> int:
        """How many characters at the end of `text` may be the beginning of a placeholder."""
        start = text.rfind("<", max(0, len(text) - self.longest + 1))
        while start >= 0:
            tail = text[start:]
            if any(placeholder.startswith(tail) for placeholder in self._back):
                return len(tail)
            start = text.rfind("<", max(0, len(text) - self.longest + 1), start)
        return 0


class Restorer:
    """Restores a stream: give it pieces, take what is sure; `rest` gives what was held back."""

    def __init__(self, masks: Masks | None, *, quoted: bool = False) -> None:
        self._masks, self._kept, self._quoted = masks, "", quoted

    def __call__(self, piece: str) -> str:
        """What is sure after one more piece."""
        if self._masks is None:
            return piece
        text = self._kept + piece
        held = self._masks.held(text)
        cut = len(text) - held
        self._kept = text[cut:]
        return self._masks.restore(text[:cut], quoted=self._quoted)

    def rest(self) -> str:
        """The end of the stream."""
        text, self._kept = self._kept, ""
        return self._masks.restore(text, quoted=self._quoted) if self._masks else text


def _letters(number: int) -> str:
    letters = ""
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters
