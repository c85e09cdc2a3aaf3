"""Files as they cross to a cluster and back: names and bytes, each name and size checked, nothing unpickled.

What comes back may only be the files of an adapter's folder; whatever else a cluster sends is refused. Knows nothing
of Ray.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath

from whit.errors import ClusterError, DataError, StorageError
from whit.files import atomic_write

#: The files of an adapter's folder.
ADAPTER_FILES = frozenset({
    "adapter.whit", "adapter_config.json", "adapter_model.safetensors", "card.json", "report.html", "README.md",
    "held-out.jsonl", "seen.txt",
})  # fmt: skip
LARGEST = 8 << 30  # bytes of one file


def packed(folder: Path, names: Collection[str] = ADAPTER_FILES) -> dict[str, bytes]:
    """The files of those names in a folder."""
    return {name: (folder / name).read_bytes() for name in sorted(names) if (folder / name).is_file()}


def all_in(folder: Path) -> dict[str, bytes]:
    """Every file in a folder and below it that is whole, by its path in it; {} where there is no folder."""
    found: dict[str, bytes] = {}
    for each in sorted(folder.rglob("*")):
        # What is being written has a dot before its name until it is renamed; it may go at any moment.
        with contextlib.suppress(FileNotFoundError):
            if each.is_file() and not each.is_symlink() and not each.name.startswith("."):
                found[each.relative_to(folder).as_posix()] = each.read_bytes()
    return found


def read_file(path: Path) -> bytes:
    """A file to be sent. Raises `DataError`."""
    try:
        if path.stat().st_size > LARGEST:
            raise DataError(f"{path}: {path.stat().st_size:,} bytes are more than is sent to a cluster")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def unpack(files: Mapping[str, bytes], folder: Path, *, allowed: Collection[str] | None = None) -> None:
    """Write files into a folder, each aside and renamed, the card last.

    `allowed` are the names that may come; None takes any path below the folder. Raises `ClusterError` for another.
    """
    for name, content in files.items():
        inside = PurePosixPath(name)
        plain = not inside.is_absolute() and ".." not in inside.parts and "\\" not in name and "\0" not in name
        if not plain or (allowed is not None and name not in allowed) or not isinstance(content, bytes):
            raise ClusterError(f"the cluster sent a file that is none of an adapter's: {name[:100]!r}; it was not kept")
        if len(content) > LARGEST:
            raise ClusterError(f"the cluster sent {len(content):,} bytes as {name}; they were not kept")
    try:
        for name in sorted(files, key=lambda name: (name == "card.json", name)):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(target, files[name])
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error.strerror}") from error


def digest_of(content: bytes) -> str:
    """SHA-256 in hex digits."""
    return hashlib.sha256(content).hexdigest()
