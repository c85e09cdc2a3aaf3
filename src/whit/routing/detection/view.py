"""One text as the finders look at it, with what several of them need worked out once.

Knows nothing of what is looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property

from whit.data.secrets import folded

Span = tuple[int, int]
_DIGITS = re.compile(r"\d+")


class View:
    """A text. `known` is what is remembered for the length of one scan, over all its views."""

    def __init__(self, text: str, known: dict[str, bool] | None = None) -> None:
        self.text = text
        self.known: dict[str, bool] = {} if known is None else known

    @cached_property
    def low(self) -> str:
        """As patterns that ignore case see it."""
        return folded(self.text)

    @cached_property
    def digits(self) -> list[Span]:
        """Where digits stand, each row of them whole."""
        if self.text.isascii() and b"h" not in self.ascii.translate(_SOME_DIGIT):
            return []
        return [match.span() for match in _DIGITS.finditer(self.text)]

    @cached_property
    def ascii(self) -> bytes:
        """A byte a character, a question mark for what is not ASCII."""
        return self.text.encode("ascii", "replace")

    def chains(self, between: frozenset[str], most: int, least: int) -> Iterator[list[Span]]:
        """Rows of digits with 1 to `most` characters of `between` from each to the next, of `least` digits in all."""
        chain: list[Span] = []
        total, end = 0, -1
        for start, stop in self.digits:
            if not 0 < start - end <= most or not between.issuperset(self.text[end:start]):
                if total >= least:
                    yield chain
                chain, total = [], 0
            chain.append((start, stop))
            total += stop - start
            end = stop
        if total >= least:
            yield chain


def classes(of: str) -> bytes:
    """A table for `bytes.translate`: `h` for the characters of `of`, `.` for all others."""
    return bytes(104 if chr(code) in of else 46 for code in range(256))


_SOME_DIGIT = classes("0123456789")


def runs(found: bytes, least: int) -> Iterator[Span]:
    """Where `least` or more `h` stand in a row in bytes of `h` and `.`."""
    wanted = b"h" * least
    start = found.find(wanted)
    while start >= 0:
        stop = found.find(b".", start)
        stop = len(found) if stop < 0 else stop
        yield start, stop
        start = found.find(wanted, stop)
