"""An adapter's folder as one zip file, as the page hands out a LoRA.

Promises that nothing is written but the few files that an adapter's folder may hold, under their own names in a
temporary folder; that no more is unpacked than such a file may be large, whatever the zip says of itself; and that a
zip which cannot be read to its end is refused. Knows nothing of what the files mean.
"""

from __future__ import annotations

import contextlib
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from whit.errors import DamagedAdapter

#: What may be in it, and the most bytes of each.
LARGEST = {
    "adapter.whit": 64 << 20,
    "adapter_config.json": 1 << 20,
    "adapter_model.safetensors": 1 << 30,
    "card.json": 1 << 20,
}
_MOST_ENTRIES = 1000


def is_zip(path: Path) -> bool:
    """Whether it is named as a zip file and is one."""
    return path.suffix.lower() == ".zip" and path.is_file() and zipfile.is_zipfile(path)


@contextlib.contextmanager
def unzipped(path: Path) -> Iterator[Path]:
    """A temporary folder with the adapter's files of a zip. Raises `DamagedAdapter`.

    They may stand at its top or in one folder; other files are left out.
    """
    with tempfile.TemporaryDirectory(prefix="whit-") as place:
        folder = Path(place)
        try:
            with zipfile.ZipFile(path) as file:
                for name, entry in _chosen(file, path).items():
                    (folder / name).write_bytes(_read(file, entry, LARGEST[name], path))
        # What zipfile raises of itself, of a method it does not know, and of an encrypted file.
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
            raise DamagedAdapter(f"{path}: not a whole zip file ({error})") from error
        try:
            yield folder
        except DamagedAdapter as error:
            # The temporary folder is nobody's business.
            raise DamagedAdapter(str(error).replace(place, str(path))) from None


def _chosen(file: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    entries = file.infolist()
    if len(entries) > _MOST_ENTRIES:
        raise DamagedAdapter(f"{path}: {len(entries):,} files; an adapter has a handful")
    found: dict[str, zipfile.ZipInfo] = {}
    folders = set()
    for entry in entries:
        inside = PurePosixPath(entry.filename)
        if inside.name not in LARGEST or entry.is_dir() or len(inside.parts) > 2:
            continue
        if inside.name in found:
            raise DamagedAdapter(f"{path}: {inside.name} is in it twice; zip one adapter's folder")
        found[inside.name] = entry
        folders.add(inside.parent)
    if not found or len(folders) > 1:
        raise DamagedAdapter(f"{path}: no adapter's folder in it ({', '.join(LARGEST)})")
    return found


def _read(file: zipfile.ZipFile, entry: zipfile.ZipInfo, most: int, path: Path) -> bytes:
    if entry.file_size > most:
        raise DamagedAdapter(
            f"{path}: {entry.filename[:80]!r} has {entry.file_size:,} bytes; at most {most:,} are read"
        )
    try:
        with file.open(entry) as part:
            content = part.read(most + 1)  # the size in the zip's list is what it claims, not what it holds
    except OSError as error:  # a damaged list can point before the file's beginning
        raise zipfile.BadZipFile(str(error)) from error
    if len(content) > most:
        raise DamagedAdapter(f"{path}: {entry.filename[:80]!r} is larger than {most:,} bytes")
    return content
