"""One tiny base and its bases of directions for all tests of adapters; a cache folder of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from whit.adapters.adapter import Adapter
from whit.adapters.basis import Basis, basis_of
from whit.adapters.vector import VectorSpec, tiny_spec, xs_spec
from whit.bases import Base, load_base
from whit.testing import write_tiny_base


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder that no other test and no user shares."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("WHIT_CACHE")
    os.environ["WHIT_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["WHIT_CACHE"]
    else:
        os.environ["WHIT_CACHE"] = before


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def shared_base(base_folder: Path, cache: Path) -> Base:
    return load_base(base_folder, dtype="float32")


@pytest.fixture
def base(shared_base: Base) -> Iterator[Base]:
    """The tiny base; a test that leaves anything in the model fails."""
    before = [(name, type(module)) for name, module in shared_base.model.named_modules()]
    yield shared_base
    assert [(name, type(module)) for name, module in shared_base.model.named_modules()] == before


@pytest.fixture(scope="session")
def basis(shared_base: Base) -> Basis:
    return basis_of(shared_base, 2)


@pytest.fixture(scope="session")
def specs(basis: Basis) -> dict[str, VectorSpec]:
    """One spec of each sort: fully tied, in even groups, in uneven groups, some modules, xs."""
    every = [target.index for target in basis.targets]
    return {
        "tied": tiny_spec(every, 13),
        "even": tiny_spec(every, 28, groups=7),
        "uneven": tiny_spec(every, 15, groups=5, seed=7),
        "some": tiny_spec([0, 3, 4, 9, 13], 6, groups=3),
        "xs": xs_spec(every, 2),
        "xs some": xs_spec([1, 5, 9], 2),
    }


@pytest.fixture(scope="session")
def make(basis: Basis) -> Callable[..., Adapter]:
    """An adapter of a spec with random numbers, large enough to change answers."""

    def adapter(spec: VectorSpec, *, seed: int = 0, scale: float = 0.3, number_type: str = "bfloat16") -> Adapter:
        vector = np.random.default_rng(seed).normal(size=spec.numbers).astype(np.float32) * scale
        return Adapter.from_vector(spec, vector, basis, number_type=number_type)

    return adapter


@pytest.fixture(scope="session")
def ids() -> torch.Tensor:
    """A batch of token ids, (4, 11)."""
    return torch.from_numpy(np.random.default_rng(1).integers(3, 300, size=(4, 11)))
