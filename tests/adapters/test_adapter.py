"""An adapter as users hold it: load, save, text, and the refusal of what is not meant for this base."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from whit.adapters.adapter import FILE_NAME, Adapter
from whit.adapters.basis import Basis, compute_basis
from whit.adapters.compact import round_to
from whit.adapters.tunable import bind
from whit.adapters.vector import VectorSpec
from whit.bases import Base
from whit.errors import AdapterError, DamagedAdapter, WrongBase, WrongBasis
from whit.testing import tiny_base

Make = Callable[..., Adapter]


def _same(one: Adapter, other: Adapter) -> bool:
    assert one.vector is not None
    assert other.vector is not None
    return (one.spec, one.number_type, one.layers) == (other.spec, other.number_type, other.layers) and np.array_equal(
        one.vector, other.vector
    )


def test_the_mean_of_vectors(make: Make, specs: dict[str, VectorSpec]) -> None:
    adapters = [
        replace(make(specs["xs"]), vector=np.full(specs["xs"].numbers, value, np.float32)) for value in (1, 2, 6)
    ]
    mean = Adapter.mean(adapters)
    assert mean is not None and mean.vector is not None and np.array_equal(mean.vector, np.full_like(mean.vector, 3))
    assert _same(Adapter.from_bytes(mean.to_bytes()), mean)
    third = Adapter.mean([adapters[0], adapters[0], adapters[1]])
    assert third is not None and third.vector is not None
    assert np.array_equal(third.vector, round_to(third.vector, third.number_type)), "rounded as it will be stored"


def test_what_differs_has_no_mean(make: Make, specs: dict[str, VectorSpec]) -> None:
    one = make(specs["xs"])
    assert Adapter.mean([one, make(specs["tied"])]) is None
    assert Adapter.mean([one, replace(one, basis="0" * 64)]) is None
    assert Adapter.mean([replace(one, vector=None)]) is None


def test_saved_and_loaded(tmp_path: Path, make: Make, specs: dict[str, VectorSpec]) -> None:
    for name, spec in specs.items():
        for number_type in ("bfloat16", "float16", "float32"):
            adapter = make(spec, number_type=number_type)
            file = adapter.save(tmp_path / f"{name}-{number_type}")
            assert _same(Adapter.load(file), adapter)
            assert _same(Adapter.load(file.parent), adapter)
            assert _same(Adapter.load(str(file.parent)), adapter)
            assert _same(Adapter.load(adapter.to_text()), adapter)
            assert _same(Adapter.from_text(f" {adapter.to_text()}\n"), adapter)


def test_what_is_used_is_what_is_kept(make: Make, specs: dict[str, VectorSpec]) -> None:
    adapter = make(specs["tied"])
    again = Adapter.from_bytes(adapter.to_bytes())
    assert np.array_equal(adapter.vector, again.vector)  # type: ignore[arg-type]
    assert adapter.payload_bytes == 26
    assert len(adapter.to_bytes()) <= 64
    assert len(adapter.to_text()) <= 100
    about = adapter.describe()
    assert (about["kind"], about["numbers"], about["payload_bytes"], about["modules"]) == ("tiny", 13, 26, 14)


def test_an_adapter_of_another_base(tmp_path: Path, base: Base, make: Make, specs: dict[str, VectorSpec]) -> None:
    other = tiny_base(tmp_path, seed=9)
    with pytest.raises(WrongBase, match=other.fingerprint[:16]):
        bind(other, make(specs["tied"]))


def test_an_adapter_along_another_basis(base: Base, make: Make, specs: dict[str, VectorSpec]) -> None:
    wrong = replace(make(specs["tied"]), basis="0" * 64)
    with pytest.raises(WrongBasis, match="0000000000000000"):
        bind(base, wrong)
    with pytest.raises(WrongBasis):
        make(specs["tied"]).check_fits(base, compute_basis(base, 1))


def test_a_file_that_names_modules_the_base_has_not(base: Base, basis: Basis) -> None:
    spec = VectorSpec("xs", 2, 4, 1, (70,))
    adapter = Adapter("xs", base.fingerprint, basis.fingerprint, spec, np.ones(4, np.float32), layers=11)
    with pytest.raises(AdapterError, match="70"):
        bind(base, Adapter.from_bytes(adapter.to_bytes()))


@pytest.mark.parametrize("name", ["adapter.bin", "a.pt", "b.PTH", "c.pkl", "d.pickle", "e.ckpt"])
def test_pickles_are_refused_unread(tmp_path: Path, name: str) -> None:
    with pytest.raises(DamagedAdapter, match="pickled"):
        Adapter.load(tmp_path / name)
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(DamagedAdapter, match="pickled"):
        Adapter.load(tmp_path)


def test_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no adapter there"):
        Adapter.load(tmp_path / "none")
    with pytest.raises(AdapterError, match="no adapter in this folder"):
        Adapter.load(tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path, make: Make, specs: dict[str, VectorSpec]) -> None:
    file = make(specs["tied"]).save(tmp_path)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedAdapter, match=FILE_NAME):
        Adapter.load(tmp_path)


def test_an_oversized_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "big.whit"
    path.touch()
    os.truncate(path, 10 << 30)  # sparse: ten gigabytes by its length only
    with pytest.raises(DamagedAdapter, match="10737418240 bytes"):
        Adapter.load(path)
