"""What the tests of bases share: a cache of their own, and tiny bases in every container."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from whit.testing import write_tiny_base, write_tiny_gguf


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, for this test alone."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("WHIT_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base's folder, to be read only."""
    return write_tiny_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def tiny_gguf(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The same base as a GGUF file of a number type, to be read only."""
    made: dict[str, Path] = {}

    def make(number_type: str = "F32") -> Path:
        if number_type not in made:
            folder = tmp_path_factory.mktemp("gguf")
            made[number_type] = write_tiny_gguf(tiny_folder, folder / "tiny.gguf", number_type=number_type)
        return made[number_type]

    return make


@pytest.fixture
def tiny_copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny folder that a test may damage."""
    target = tmp_path / "copy"
    target.mkdir()
    for item in tiny_folder.iterdir():
        (target / item.name).write_bytes(item.read_bytes())
    return target
