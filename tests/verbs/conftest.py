"""A tiny base, rows, an adapter of each kind trained on them, and a way to run commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from commands import Commands


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder that no other test and no user shares; one thread, so that sums have one order."""
    import torch

    folder = tmp_path_factory.mktemp("cache")
    before, threads = os.environ.get("WHIT_CACHE"), torch.get_num_threads()
    os.environ["WHIT_CACHE"] = str(folder)
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)
    if before is None:
        del os.environ["WHIT_CACHE"]
    else:
        os.environ["WHIT_CACHE"] = before


@pytest.fixture
def interrupting() -> Any:
    """Talk that interrupts training once, after its third step."""
    from whit.talk import Talk

    class Interrupting(Talk):
        there = True

        def progress(self, what: str, done: int, *given: Any, **more: Any) -> None:
            if self.there and done == 3:
                self.there = False
                raise KeyboardInterrupt

    return Interrupting(quiet=True)


@pytest.fixture(scope="session")
def whit(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Runs commands: `whit("show", folder)`."""
    commands = Commands(tmp_path_factory.mktemp("commands"))
    yield commands
    commands.close()


@pytest.fixture(scope="session")
def options(base: Path) -> Callable[[str], dict[str, Any]]:
    """Options that train a kind in a second or two; `lora` learns the task, `xs` hardly."""

    def of(kind: str) -> dict[str, Any]:
        common: dict[str, Any] = {"base": str(base), "dtype": "float32", "instruction": "card or cash?", "batch": 8}
        if kind == "lora":
            return {**common, "kind": kind, "rank": 8, "learning_rate": 5e-3, "epochs": 6.0, "evaluations": 3}
        return {**common, "kind": kind, "learning_rate": 0.05, "epochs": 1.0, "evaluations": 2}

    return of


@pytest.fixture(scope="session")
def trained(
    cache: Path, rows: Path, options: Callable[[str], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Any]:
    """The result of `whit train` for a kind, trained once."""
    import whit

    found: dict[str, Any] = {}

    def of(kind: str) -> Any:
        if kind not in found:
            folder = tmp_path_factory.mktemp("trained") / kind
            found[kind] = whit.train(rows, out=folder, shots=(2,), **options(kind))
        return found[kind]

    return of
