"""Which bases there are: whit's own first, then those known by name, then what was pulled from the hub."""

from __future__ import annotations

import contextlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from whit.bases.cache import bases_folder
from whit.bases.catalogue import BUILTIN, KNOWN, builtin_path
from whit.bases.names import resolve
from whit.errors import BaseError


@dataclass(frozen=True)
class BaseInfo:
    """One base. `parameters` and `bytes` are None where they are not known before it is there."""

    name: str
    parameters: int | None
    bytes: int | None
    present: bool
    licence: str
    description: str

    def to_json(self) -> dict[str, Any]:
        """The entry of `whit bases --json`."""
        return asdict(self)


def list_bases() -> list[BaseInfo]:
    """Every base that has a name. Reads headers only, so it takes milliseconds."""
    found = []
    for own in BUILTIN.values():
        path = builtin_path(own)
        present = path.is_file()
        size = path.stat().st_size if present else None
        found.append(BaseInfo(own.name, count_parameters(path), size, present, own.licence, own.description))
    for item in KNOWN.values():
        present = resolve(item.name).present
        found.append(BaseInfo(item.name, item.parameters, item.bytes, present, item.licence, item.description))
    hub = bases_folder() / "hub"
    for folder in sorted(hub.iterdir()) if hub.is_dir() else []:
        if folder.is_dir() and not folder.name.startswith("."):
            name = folder.name.replace("--", "/", 1)
            size = sum(item.stat().st_size for item in folder.glob("*.safetensors"))
            found.append(BaseInfo(name, count_parameters(folder), size, True, read_licence(folder), "from the hub"))
    return found


def count_parameters(path: Path) -> int | None:
    """How many numbers the tensors at `path` hold, by their headers; None where there is no base."""
    from whit.bases.source import open_source

    with contextlib.suppress(BaseError):
        return sum(math.prod(shape) for shape in open_source(path).shapes.values())
    return None


def read_licence(folder: Path) -> str:
    """The licence that a folder's README names in its front matter, or `unknown`."""
    with contextlib.suppress(OSError):
        lines = (folder / "README.md").open(encoding="utf-8", errors="replace").read(65536).splitlines()
        if lines and lines[0].strip() == "---":
            for line in lines[1:]:
                key, _, value = line.partition(":")
                if line.strip() == "---":
                    break
                if key.strip() == "license" and value.strip():
                    return value.strip().strip("'\"")[:80]
    return "unknown"
