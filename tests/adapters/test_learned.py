"""A learned basis: one file with a fingerprint that adapters name; what does not match is refused."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whit.adapters import learned
from whit.adapters.adapter import Adapter
from whit.adapters.basis import basis_of
from whit.adapters.learned import FILE_NAME, LearnedBasis
from whit.adapters.targets import all_targets
from whit.adapters.tunable import bind, tune_vector
from whit.adapters.vector import projections, tiny_spec, xs_spec
from whit.errors import DamagedAdapter, StorageError, UsageError, WrongBase, WrongBasis


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from whit.testing import tiny_base

    return tiny_base(tmp_path_factory.mktemp("learned") / "tiny", layers=2)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    monkeypatch.setenv("WHIT_CACHE", str(tmp_path_factory.mktemp("cache")))
    learned._known.clear()
    yield
    learned._known.clear()


def spec_of(base: Any) -> Any:
    indices = [target.index for target in all_targets(name for name, _ in base.model.named_modules())]
    return tiny_spec(indices, 13)


def some_basis(base: Any, seed: int = 0) -> LearnedBasis:
    spec = spec_of(base)
    P = np.random.default_rng(seed).normal(size=(len(spec.targets), spec.u, 2, 2)).astype(np.float32)
    return LearnedBasis.of(spec, basis_of(base, 2), P)


def along(base: Any, basis: LearnedBasis, seed: int = 0) -> Adapter:
    vector = np.random.default_rng(seed).normal(size=13).astype(np.float32)
    return Adapter.from_vector(spec_of(base), vector, basis.on(basis_of(base, 2)))


def test_a_file_gives_back_what_was_learned(base: Any, tmp_path: Path) -> None:
    basis = some_basis(base)
    basis.save(tmp_path / FILE_NAME)
    back = LearnedBasis.load(tmp_path / FILE_NAME)
    assert back.fingerprint == basis.fingerprint and np.array_equal(back.P, basis.P)
    assert (back.base, back.under, back.targets) == (basis.base, basis.under, basis.targets)
    assert len(basis.to_bytes()) == 34 + 2 * len(basis.targets) + 2 * basis.P.size + 4
    assert some_basis(base, 1).fingerprint != basis.fingerprint
    with pytest.raises(StorageError):
        LearnedBasis.load(tmp_path / "none")


def test_a_file_says_whether_its_adapters_act_on_answers_alone(base: Any) -> None:
    plain = some_basis(base)
    only = replace(plain, answers_only=True)
    assert len(only.to_bytes()) == len(plain.to_bytes()) and only.fingerprint != plain.fingerprint
    assert LearnedBasis.from_bytes(only.to_bytes()).answers_only
    assert not LearnedBasis.from_bytes(plain.to_bytes()).answers_only
    other = bytearray(only.to_bytes()[:-4])
    other[9] = 2
    with pytest.raises(DamagedAdapter, match="header"):
        LearnedBasis.from_bytes(bytes(other) + struct.pack("<I", zlib.crc32(other)))


def test_an_adapter_moves_along_what_it_names(base: Any) -> None:
    basis = some_basis(base)
    adapter = along(base, basis)
    assert adapter.basis == basis.fingerprint and len(adapter.to_bytes()) == 64  # no byte more than any other
    with pytest.raises(WrongBasis, match=r"basis\.whit"):
        bind(base, adapter)
    learned.remember(basis)
    back = Adapter.from_bytes(adapter.to_bytes())
    bound = bind(base, back)
    try:
        ids = torch.tensor([base.encode("my card was stolen")])
        with bound.active():
            moved = base.model(ids).logits
    finally:
        bound.detach()
    # The same by hand: R = Σ v P in the place of the drawn P.
    plain = tune_vector(base, spec_of(base))
    try:
        plain.expansion.projection = torch.from_numpy(basis.P.copy())
        with torch.no_grad():
            plain.v.copy_(torch.from_numpy(np.asarray(back.vector)))
        with plain.active():
            assert torch.allclose(base.model(ids).logits, moved, atol=1e-5)
        plain.expansion.projection = torch.from_numpy(projections(spec_of(base)))
        with plain.active():
            assert not torch.allclose(base.model(ids).logits, moved, atol=1e-3)
    finally:
        plain.detach()


def test_the_file_is_found_beside_the_adapter_and_in_the_cache(base: Any, tmp_path: Path) -> None:
    basis = some_basis(base)
    along(base, basis).save(tmp_path)
    with pytest.raises(WrongBasis):
        bind(base, Adapter.load(tmp_path))
    basis.save(tmp_path / FILE_NAME)
    bind(base, Adapter.load(tmp_path / "adapter.whit")).detach()
    learned._known.clear()
    learned.remember(basis, cache=True)
    learned._known.clear()
    bind(base, along(base, basis)).detach()
    # A file in the cache under another's name is not believed.
    other = some_basis(base, 1)
    learned._cached(other.fingerprint).write_bytes(basis.to_bytes())
    assert learned.find(other.fingerprint) is None


def test_what_does_not_match_is_refused(base: Any) -> None:
    basis, plain = some_basis(base), basis_of(base, 2)
    with pytest.raises(WrongBase):
        replace(basis, base="0" * 16).on(plain)
    with pytest.raises(WrongBasis):
        replace(basis, under="0" * 16).on(plain)
    with pytest.raises(WrongBasis, match="another shape"):
        basis.projections(tiny_spec(spec_of(base).targets, 7))
    with pytest.raises(UsageError, match="tiny"):
        LearnedBasis.of(xs_spec(spec_of(base).targets, 2), plain, basis.P)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.integers(0, 10_000), resum=st.booleans())
def test_damage_is_told(base: Any, at: int, byte: int, cut: int, resum: bool) -> None:
    whole = some_basis(base).to_bytes()
    content = bytearray(whole)
    content[at % len(content)] = byte
    content = content[: len(content) - (cut % len(content) if cut % 2 else 0)]
    if resum and len(content) > 4:  # a forged file has a right checksum
        content[-4:] = struct.pack("<I", zlib.crc32(bytes(content[:-4])))
    try:
        found = LearnedBasis.from_bytes(bytes(content))
    except DamagedAdapter:
        return
    assert found.to_bytes() == bytes(content)
