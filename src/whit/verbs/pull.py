"""`whit pull NAME`: fetch a base into the user's cache.

Prints nothing itself: progress goes to whoever asks for it. Knows nothing of terminals.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.bases.names import resolve
from whit.settings import PullSettings
from whit.talk import Talk
from whit.verbs.common import CONTRACT, fetching

if TYPE_CHECKING:
    from whit.bases.pulling import Progress


@dataclass(frozen=True)
class Pulled:
    """Where the base lies now. `fetched` is False where it was there already. `seconds` is wall time."""

    name: str
    path: Path
    bytes: int
    fetched: bool
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """What `whit pull --json` prints."""
        return {
            "contract": CONTRACT,
            "name": self.name,
            "path": str(self.path),
            "bytes": self.bytes,
            "fetched": self.fetched,
            "seconds": round(self.seconds, 3),
        }

    def to_text(self) -> str:
        """What the command prints for people."""
        size = f"{self.bytes / 1e6:.1f} MB"
        if not self.fetched:
            return f"{self.name} is there already: {self.path} ({size})"
        return f"{self.name} is ready: {self.path} ({size} in {self.seconds:.1f} s)"


def pull(name: str, *, progress: Progress | None = None) -> Pulled:
    """Fetch the base `name` unless it is there and whole.

    `progress(what, bytes so far, bytes in all or None)` is called a few times a second.
    Raises `PullError`, `BaseError` for a name that means nothing, `StorageError`.
    """
    from whit.bases.pulling import pull as fetch

    there = _state(resolve(name, paths=False).path)
    start = time.perf_counter()
    path = fetch(name, progress=progress)
    files = [path] if path.is_file() else [item for item in path.iterdir() if item.is_file()]
    size = sum(item.stat().st_size for item in files)
    return Pulled(name, path, size, _state(path) != there, time.perf_counter() - start)


def _state(path: Path) -> tuple[int, int] | None:
    # Pulling replaces a damaged file, so that it exists does not say that nothing was fetched.
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def command(settings: PullSettings, *, talk: Talk | None = None) -> Pulled:
    """`pull` with the command line's settings."""
    return pull(settings.name, progress=fetching(talk or Talk(quiet=True), settings.name))
