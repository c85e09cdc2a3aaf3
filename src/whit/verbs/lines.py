"""Lines of standard input as they come: those that are there, a few together, waiting a moment for more.

Promises that a line is handed on soon after its end was written, whatever comes later. Knows nothing of what lines are
for.
"""

from __future__ import annotations

import io
import itertools
import os
import select
from collections.abc import Iterable, Iterator
from typing import IO

from whit.errors import DataError

TOGETHER = 32
_MOMENT = 0.05  # seconds
_PIECE = 1 << 16  # bytes


def batches(source: IO[str] | Iterable[str]) -> Iterator[list[str]]:
    """The lines of `source`, without their ends, at most `TOGETHER` at a time. Raises `DataError` for bytes of no text.

    What is no file of the system's is taken as it is.
    """
    try:
        descriptor = source.fileno()  # type: ignore[union-attr]
    except (AttributeError, io.UnsupportedOperation):
        lines = (line.rstrip("\r\n") for line in source)
        while some := list(itertools.islice(lines, TOGETHER)):
            yield some
        return
    yield from _from_file(descriptor, getattr(source, "encoding", None) or "utf-8")


def _from_file(descriptor: int, encoding: str) -> Iterator[list[str]]:
    rest, ended, number = bytearray(), False, 0
    waiting: list[bytes] = []
    while waiting or not ended:
        ready = False
        if not ended and len(waiting) < TOGETHER:
            # Not by Python's own reader: it holds back lines, and waits where nothing has come.
            ready = bool(select.select([descriptor], [], [], _MOMENT if waiting else None)[0])
        if ready:
            read = os.read(descriptor, _PIECE)
            rest += read
            if b"\n" in read:
                *whole, last = rest.split(b"\n")
                waiting += map(bytes, whole)
                rest = bytearray(last)
            if not read:
                ended = True
                waiting += [bytes(rest)] if rest else []
        elif waiting:
            yield [_text(line, encoding, number + at) for at, line in enumerate(waiting[:TOGETHER], 1)]
            number += len(waiting[:TOGETHER])
            waiting = waiting[TOGETHER:]


def _text(line: bytes, encoding: str, number: int) -> str:
    try:
        return line.removesuffix(b"\r").decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"standard input, line {number}: not {encoding} ({error.reason})") from error
