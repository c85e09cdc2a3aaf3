"""Specialise small language models with very small adapters, and prove that they help.

    >>> import whit
    >>> base = whit.load_base("smollm2")                                    # doctest: +SKIP
    >>> result = whit.train("tickets.jsonl", base="smollm2", out="tickets") # doctest: +SKIP
    >>> result.card.verdict                                                 # doctest: +SKIP
    'helped'
    >>> whit.Adapter.load("tickets").numbers                                # doctest: +SKIP
    840

Names are imported on first use: `import whit` takes no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whit.adapters.adapter import Adapter
    from whit.adapters.tunable import bind
    from whit.api import check, evaluate, export, run, train
    from whit.bases import Base, load_base
    from whit.errors import WhitError

__all__ = [
    "Adapter", "Base", "WhitError", "bind", "check", "evaluate", "export", "load_base", "run", "train",
]  # fmt: skip
_WHERE = {
    "Adapter": "whit.adapters.adapter",
    "Base": "whit.bases",
    "WhitError": "whit.errors",
    "bind": "whit.adapters.tunable",
    "load_base": "whit.bases",
    **dict.fromkeys(("check", "evaluate", "export", "run", "train"), "whit.api"),
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        import importlib

        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'whit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
