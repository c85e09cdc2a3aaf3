"""A base's fingerprint: what its tensors hold, whatever file they came in.

Definition (version 1): SHA-256 over the line `whit base 1`, then for every tensor in the order of its
transformers name (as UTF-8 bytes): name, NUL, its sizes in decimal joined by commas, NUL, and its
content as little-endian float32, dequantised, rows first. A head that is tied to the embedding is no
tensor of its own. Two containers of equal content therefore have the same fingerprint.

The result is remembered by path, size and times of the files, unless they are so small that computing it
is as quick. Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from typing import TYPE_CHECKING

from whit.bases.cache import cache_folder
from whit.errors import StorageError
from whit.files import atomic_write

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from whit.bases.source import Source


#: files smaller than this are read anew each time
REMEMBERED_BYTES = 8_000_000


class Fingerprinter:
    """Takes the tensors in the order of `sorted(names)`; `hexdigest` is the fingerprint."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256(b"whit base 1\n")
        self._last = b""

    def add(self, name: str, W: torch.Tensor) -> None:
        """Add one tensor (float32)."""
        encoded = name.encode()
        if encoded <= self._last:
            raise ValueError(f"tensors must come in the order of their names; {name!r} came too late")
        self._last = encoded
        self._hash.update(encoded + b"\0" + ",".join(map(str, W.shape)).encode() + b"\0")
        content = W.contiguous().numpy()
        self._hash.update((content if sys.byteorder == "little" else content.byteswap()).reshape(-1).data)

    def hexdigest(self) -> str:
        """64 hex characters."""
        return self._hash.hexdigest()


def fingerprint(source: Source) -> str:
    """The fingerprint of a base's files; remembered until one of them changes. Raises `BaseError`."""
    known = remembered(source)
    if known is not None:
        return known
    state = file_state(source)
    hasher = Fingerprinter()
    for name in sorted(source.shapes):
        hasher.add(name, source.read(name))
    result = hasher.hexdigest()
    remember(source, result, state)
    return result


def remembered(source: Source) -> str | None:
    """The remembered fingerprint, or None where there is none or a file has changed since."""
    try:
        entry = json.loads(_place(source).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(entry, dict) or entry.get("files") != file_state(source):
        return None
    value = entry.get("fingerprint")
    return value if isinstance(value, str) and len(value) == 64 else None


def remember(source: Source, value: str, state: list[list[str | int]]) -> None:
    """Note the fingerprint of files that were in `state` when it was begun."""
    if state != file_state(source) or sum(int(size) for _, size, *_ in state) < REMEMBERED_BYTES:
        return
    with contextlib.suppress(StorageError):  # without a cache it is only slower
        atomic_write(_place(source), json.dumps({"files": state, "fingerprint": value}))


def file_state(source: Source) -> list[list[str | int]]:
    """Path, size and times of each file. The change time is there since a copy can set the other one."""
    state: list[list[str | int]] = []
    for path in source.files:
        status = path.stat()
        state.append([str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns])
    return state


def _place(source: Source) -> Path:
    key = hashlib.sha256(str(source.path.resolve()).encode()).hexdigest()[:32]
    return cache_folder() / "fingerprints" / f"{key}.json"
