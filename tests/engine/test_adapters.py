"""Adapters: the same change as in PyTorch, each row its own, and the compact file both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.adapters import basis_for, lora_in, random_numbers, vector_in
from tests.engine.models import logits_of
from whit.adapters.basis import save_basis
from whit.adapters.compact import pack, unpack
from whit.adapters.vector import VectorSpec, tiny_spec, xs_spec
from whit.engine import write_basis
from whit.engine.basis import convert_basis
from whit.errors import DamagedAdapter, UsageError, WrongBase, WrongBasis

IDS = [1, 40, 300, 7, 7, 262, 91, 12, 200]
ALL = list(range(14))
SPECS = [
    tiny_spec(ALL, 13, rank=2, groups=1, seed=5),
    tiny_spec(ALL, 12, rank=2, groups=3, seed=0),
    tiny_spec([0, 3, 8], 6, rank=2, groups=2, seed=65535),
    xs_spec([1, 2, 6, 13], 2),
    xs_spec(ALL, 2),
]


def expected_with(model: Any, basis: Any, spec: VectorSpec, v: np.ndarray) -> np.ndarray:
    with vector_in(model, basis, spec, torch.from_numpy(v)):
        return logits_of(model, IDS)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.kind}-{spec.numbers}-{spec.groups}")
def test_vector_adapters_change_what_they_change_in_torch(engine: Any, tiny_file: Any, spec: VectorSpec) -> None:
    model, basis = tiny_file[1], basis_for(tiny_file[1], 2)
    engine.add_basis(write_basis(basis))
    v = random_numbers(spec.numbers, seed=3)
    content = pack(spec, v, number_type="float32", base=basis.base_fingerprint, basis=basis.fingerprint, layers=2)
    handle = engine.read_adapter(content)
    found, expected = engine.logits(IDS, adapter=handle), expected_with(model, basis, spec, v)
    assert np.abs(found - expected).max() < 2e-4 * np.abs(expected).max()
    assert np.abs(engine.logits(IDS) - expected).max() > 1e-2 * np.abs(expected).max()
    assert engine.write_adapter(handle, exact=True) == content
    rounded = pack(spec, v, number_type="bfloat16", base=basis.base_fingerprint, basis=basis.fingerprint, layers=2)
    assert engine.write_adapter(handle) == rounded


def test_a_new_adapter_is_the_bare_base_and_numbers_can_be_set(engine: Any, tiny_file: Any) -> None:
    model, basis, spec = tiny_file[1], basis_for(tiny_file[1], 2), SPECS[0]
    engine.add_basis(write_basis(basis))
    handle = engine.vector_adapter("tiny", 2, spec.targets, spec.numbers, groups=spec.groups, seed=spec.seed)
    np.testing.assert_array_equal(engine.logits(IDS, adapter=handle), engine.logits(IDS))
    v = random_numbers(spec.numbers, seed=9)
    engine.set_numbers(handle, v)
    np.testing.assert_array_equal(engine.numbers(handle), v)
    expected = expected_with(model, basis, spec, v)
    assert np.abs(engine.logits(IDS, adapter=handle) - expected).max() < 2e-4 * np.abs(expected).max()
    np.testing.assert_array_equal(unpack(engine.write_adapter(handle, exact=True)).vector, v)
    with pytest.raises(DamagedAdapter, match="NaN"):
        engine.set_numbers(handle, np.full(spec.numbers, np.nan, dtype=np.float32))


def test_lora_changes_what_it_changes_in_torch(engine: Any, tiny_file: Any) -> None:
    handle = engine.lora_adapter(4, 8.0, [0, 1, 5, 9, 13])
    np.testing.assert_array_equal(engine.logits(IDS, adapter=handle), engine.logits(IDS))
    fresh = engine.numbers(handle)
    A = fresh[: 4 * 64]
    assert np.abs(A).max() <= 1 / 8 and A.std() == pytest.approx(1 / 8 / np.sqrt(3), rel=0.2)
    numbers = random_numbers(len(fresh), seed=4, scale=0.1)
    engine.set_numbers(handle, numbers)
    with lora_in(tiny_file[1], [0, 1, 5, 9, 13], 4, 2.0, torch.from_numpy(numbers)):
        expected = logits_of(tiny_file[1], IDS)
    found = engine.logits(IDS, adapter=handle)
    assert np.abs(found - expected).max() < 2e-4 * np.abs(expected).max()
    with pytest.raises(UsageError, match="no compact file"):
        engine.write_adapter(handle)


def test_rows_of_a_batch_have_their_own_adapters(engine: Any, tiny_file: Any) -> None:
    engine.add_basis(write_basis(basis_for(tiny_file[1], 2)))
    handles = [-1]
    for seed, spec in enumerate(SPECS):
        handles.append(
            engine.vector_adapter(spec.kind, 2, spec.targets, spec.numbers, groups=spec.groups, seed=spec.seed)
        )
        engine.set_numbers(handles[-1], random_numbers(spec.numbers, seed=seed))
    handles.append(engine.lora_adapter(2, 4.0, ALL))
    engine.set_numbers(handles[-1], random_numbers(len(engine.numbers(handles[-1])), seed=8, scale=0.1))
    alone = [engine.logits(IDS[:4], adapter=handle) for handle in handles]
    rows = [engine.sequence(4, handle) for handle in handles]
    for at in range(4):
        together = engine.read([(row, IDS[at], True) for row in rows])
        np.testing.assert_allclose(together, [one[at] for one in alone], rtol=0, atol=1e-5)
    assert len({one.tobytes() for one in alone}) == len(handles)


def test_an_adapter_that_is_gone_is_an_error_and_no_other_takes_its_place(engine: Any) -> None:
    first = engine.lora_adapter(1, 1.0, [0])
    row = engine.sequence(4, first)
    engine.read([(row, 5, False)])
    with pytest.raises(UsageError, match="read with another adapter"):
        engine.call("whit_sequence_adapter", row, -1)
    engine.call("whit_adapter_free", first)
    assert engine.lora_adapter(1, 1.0, [0]) != first
    with pytest.raises(UsageError, match="gone"):
        engine.read([(row, 5, False)])


def test_what_does_not_fit_is_refused(engine: Any, tiny_file: Any) -> None:
    basis, other = basis_for(tiny_file[1], 2), basis_for(tiny_file[1], 2, seed=1)
    content = write_basis(basis)
    engine.add_basis(content)

    def packed(spec: VectorSpec = SPECS[0], layers: int = 2, base: str = "ab" * 32, seen: Any = basis) -> bytes:
        v = random_numbers(spec.numbers, seed=1)
        return pack(spec, v, number_type="float16", base=base, basis=seen.fingerprint, layers=layers)

    whole = packed()
    assert engine.read_adapter(whole) >= 0
    for damaged in (whole[:-1], whole[:20], b"", b"what" + whole[4:], whole[:50] + b"\0" + whole[51:], whole + b"\0"):
        with pytest.raises(DamagedAdapter):
            engine.read_adapter(damaged)
    with pytest.raises(WrongBase):
        engine.read_adapter(packed(base="cd" * 32))
    with pytest.raises(WrongBase):
        engine.read_adapter(packed(layers=3))
    with pytest.raises(WrongBasis):
        engine.read_adapter(packed(seen=other))
    with pytest.raises(DamagedAdapter):
        engine.add_basis(content[:-1])
    with pytest.raises(DamagedAdapter):
        engine.add_basis(content[:300] + b"\1" + content[301:])


def test_a_cached_basis_is_converted_without_torch(tiny_file: Any, tmp_path: Path) -> None:
    basis = basis_for(tiny_file[1], 3)
    save_basis(basis, tmp_path / "basis.safetensors")
    assert convert_basis(tmp_path / "basis.safetensors") == write_basis(basis)
