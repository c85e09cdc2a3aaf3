"""The engine in Python: the same WebAssembly bytes that run in the browser, through `wasmtime`.

Needs neither torch nor a compiler: `Engine.open(path)` reads a GGUF file, runs it, and trains adapters
on it. `write_basis` hands it a basis. Knows nothing of bases by name, templates or scoring.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whit.engine.answers import Answer
    from whit.engine.basis import write_basis
    from whit.engine.runtime import Engine
    from whit.engine.trainer import Trainer

__all__ = ["Answer", "Engine", "Trainer", "write_basis"]

_HOMES = {"Answer": "answers", "Engine": "runtime", "Trainer": "trainer", "write_basis": "basis"}


def __getattr__(name: str) -> Any:
    # numpy and wasmtime are loaded when the engine is used, not when whit is imported.
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(f"whit.engine.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'whit.engine' has no attribute {name!r}")
