"""What a command says while it works: to stderr, never to stdout, which is for the answer.

On a terminal progress is one live line with the time left; elsewhere a line every few seconds. Knows nothing
of what is done.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator


class Talk:
    """Says things on stderr; silent when `quiet`."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._live = sys.stderr.isatty()
        self._last = 0.0
        self._open = False

    def say(self, text: str) -> None:
        """A line of its own."""
        if self.quiet:
            return
        self._close()
        print(text, file=sys.stderr, flush=True)

    def progress(self, what: str, done: int, total: int, seconds: float, note: str = "", *, every: float = 5.0) -> None:
        """Where a long piece of work is; says how much time is left, once some of it is done."""
        now = time.monotonic()
        finished = done >= total
        if self.quiet or (not finished and now - self._last < (0.1 if self._live else every)):
            return
        self._last = now
        left = (
            f", {clock(seconds / done * (total - done))} left" if done else ""
        )  # nothing done says nothing of the rest
        line = f"{what} {done:,}/{total:,}{'  ' + note if note else ''}  {clock(seconds)} gone{left}"
        if self._live:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
            self._open = True
        else:
            print(line, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def task(self, what: str) -> Iterator[None]:
        """Say that something began, and how long it took."""
        began = time.monotonic()
        self.say(f"{what} …")
        yield
        took = time.monotonic() - began
        if took > 2:
            self.say(f"  took {clock(took)}")

    def _close(self) -> None:
        if self._open:
            print(file=sys.stderr)
            self._open = False


def clock(seconds: float) -> str:
    """`42 s`, `3 min 05 s` or `1 h 02 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def several(count: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def size(count: float) -> str:
    """A number of bytes: `63 bytes`, `1.7 kB`, `4.9 MB`."""
    if count < 1000:
        return f"{count:.0f} bytes"
    units = ["kB", "MB", "GB"]
    unit = units.pop(0)
    count /= 1000
    while count >= 1000 and units:
        count, unit = count / 1000, units.pop(0)
    return f"{count:.1f} {unit}"
