"""Specialise small language models with very small adapters, and prove that they help.

    >>> import pathlib, tempfile, whit
    >>> from whit.testing import write_rows, write_tiny_base
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> base = write_tiny_base(folder / "base")  # takes the place of a real one: base="smollm2"
    >>> rows = write_rows(folder / "rows.jsonl", 60)
    >>> result = whit.train(rows, base=str(base), out=folder / "cards", kind="xs", epochs=1, shots=())
    >>> result.card.verdict in ("helped", "no worse", "harmed", "not enough data")
    True
    >>> whit.Adapter.load(folder / "cards").numbers
    56

Names are imported on first use: `import whit` takes no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whit.adapters.adapter import Adapter
    from whit.adapters.tunable import bind
    from whit.api import bake, check, compare, evaluate, export, list_bases, pull, run, show, sweep, train
    from whit.bases import Base, load_base
    from whit.errors import WhitError

__all__ = [
    "Adapter", "Base", "WhitError", "bake", "bind", "check", "compare", "evaluate", "export", "list_bases",
    "load_base", "pull", "run", "show", "sweep", "train",
]  # fmt: skip
_WHERE = {
    "Adapter": "whit.adapters.adapter",
    "Base": "whit.bases",
    "WhitError": "whit.errors",
    "bind": "whit.adapters.tunable",
    "load_base": "whit.bases",
    **dict.fromkeys(
        ("bake", "check", "compare", "evaluate", "export", "list_bases", "pull", "run", "show", "sweep", "train"),
        "whit.api",
    ),
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        import importlib

        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'whit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
