"""One text as the finders look at it, with what several of them need worked out once.

Knows nothing of what is looked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from whit.data.secrets import folded, has_run

Span = tuple[int, int]
_DIGITS = re.compile(r"\d+")


class once:  # noqa: N801 - as `property`
    """An attribute worked out when it is first asked for; `functools.cached_property` takes a lock for it."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._work, self._name, self.__doc__ = work, work.__name__, work.__doc__

    def __get__(self, of: Any, kind: type) -> Any:
        if of is None:
            return self
        found = of.__dict__[self._name] = self._work(of)
        return found


class View:
    """A text. `known` is what is remembered for the length of one scan, over all its views."""

    def __init__(self, text: str, known: dict[str, bool] | None = None) -> None:
        self.text = text
        self.known: dict[str, bool] = {} if known is None else known

    @once
    def low(self) -> str:
        """As patterns that ignore case see it."""
        return folded(self.text)

    @once
    def count(self) -> int:
        """How many digits there are; where other scripts' may be, as many as could be."""
        return len(self.ascii.translate(None, _NO_DIGITS)) if self.text.isascii() else len(self.text)

    @once
    def long(self) -> bool:
        """Whether something stands in it that is as long as a key, in one piece."""
        return has_run(self.text, self.ascii)

    @once
    def digits(self) -> list[Span]:
        """Where digits stand, each row of them whole."""
        if not self.count:
            return []
        return [match.span() for match in _DIGITS.finditer(self.text)]

    @once
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


_NO_DIGITS = bytes(code for code in range(256) if chr(code) not in "0123456789")


def runs(found: bytes, least: int) -> Iterator[Span]:
    """Where `least` or more `h` stand in a row in bytes of `h` and `.`."""
    wanted = b"h" * least
    start = found.find(wanted)
    while start >= 0:
        stop = found.find(b".", start)
        stop = len(found) if stop < 0 else stop
        yield start, stop
        start = found.find(wanted, stop)
