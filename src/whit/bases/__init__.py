"""Bases: where a frozen language model comes from, and how it is known.

Names are imported on first use, since loading needs torch and `whit --help` must not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whit.bases.load import Base, load_base

_WHERE = {"Base": "load", "load_base": "load"}
__all__ = ["Base", "load_base"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"whit.bases.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
