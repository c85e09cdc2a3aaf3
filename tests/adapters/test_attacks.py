"""The runnable attacks are refused, every one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

ATTACKS = Path(__file__).parents[2] / "attacks" / "adapters"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"attack_{name}", ATTACKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_compact_files() -> None:
    assert _load("compact").main(2000) == 0


def test_folders() -> None:
    assert _load("folders").main() == 0
