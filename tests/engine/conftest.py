"""A tiny model in the engine and in transformers, shared by the engine's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType

pytest.importorskip("wasmtime")


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from tests.engine.models import tokenizer_of
    from whit.testing import write_tiny_base

    return tokenizer_of(write_tiny_base(tmp_path_factory.mktemp("words")))


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: dict[str, Any]) -> tuple[Path, Any]:
    """A GGUF file in Q8_0, and the transformers model of the same weights."""
    from tests.engine.models import write_model

    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    return path, write_model(path, tokenizer_json, GGMLQuantizationType.Q8_0)


@pytest.fixture
def engine(tiny_file: tuple[Path, Any]) -> Any:
    from whit.engine import Engine

    return Engine.open(tiny_file[0])
