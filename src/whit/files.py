"""Files that are whole or absent: written aside, synced, renamed.

Promises that a reader never sees half a file, and that a full or read-only disk is told as a
`StorageError` that names the file. Knows nothing of what the bytes mean.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from whit.errors import StorageError

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EFBIG: "it is larger than a file may be here (ulimit -f says how large); raise that, or choose another disk",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.EACCES: "not permitted; choose a folder that you may write to",
    errno.EPERM: "not permitted; choose a folder that you may write to",
}


@contextlib.contextmanager
def atomic_open(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file beside `path` for writing, and rename it over `path` once it is whole.

    Raises `StorageError` where the disk refuses; then `path` is as it was.
    """
    target = Path(path)
    aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    encoding = None if "b" in mode else "utf-8"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with aside.open(mode, encoding=encoding) as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        aside.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, str(error))
        raise StorageError(f"cannot write {target}: {reason}") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def is_private(folder: Path) -> bool:
    """Whether a folder is this user's own and nobody else can look into it or write to it; no link to one."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def atomic_write(path: str | Path, content: bytes | str) -> None:
    """Write `content` to `path`, whole or not at all. Raises `StorageError`."""
    with atomic_open(path, "wb" if isinstance(content, bytes) else "w") as handle:
        handle.write(content)


def _sync_folder(folder: Path) -> None:
    # The rename itself survives a power cut only once its folder is synced; not every system can.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
