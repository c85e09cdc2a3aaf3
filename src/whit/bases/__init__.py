"""Bases: where a frozen language model comes from, and how it is known.

Names are imported on first use, since loading needs torch and `whit --help` must not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whit.bases.listing import BaseInfo, list_bases
    from whit.bases.load import Base, load_base
    from whit.bases.names import Reference, resolve
    from whit.bases.pulling import pull

_WHERE = {
    "Base": "load",
    "BaseInfo": "listing",
    "Reference": "names",
    "list_bases": "listing",
    "load_base": "load",
    "pull": "pulling",
    "resolve": "names",
}
__all__ = ["Base", "BaseInfo", "Reference", "list_bases", "load_base", "pull", "resolve"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"whit.bases.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
