"""`whit export` as a function: every format of every kind, checked; and what the check is for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch

from whit.adapters.adapter import Adapter
from whit.adapters.interop import plain_lora
from whit.adapters.lora import LoraWeights
from whit.adapters.vector import VectorSpec
from whit.bases import Base, load_base
from whit.bases.quantize import METHODS
from whit.errors import AdapterError, StorageError, UsageError, WrongBase
from whit.evaluation.card import Card, Data, save_card
from whit.testing import tiny_base
from whit.verbs.export import FORMATS, export

Make = Callable[..., Adapter]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def _lora() -> Adapter:
    names = ["model.layers.0.self_attn.k_proj", "model.layers.1.mlp.gate_proj"]
    generator = torch.Generator().manual_seed(0)
    A = {name: torch.randn(3, 64, generator=generator) * 0.2 for name in names}
    B = {name: torch.randn(rows, 3, generator=generator) * 0.2 for name, rows in zip(names, (32, 128), strict=True)}
    return Adapter(kind="lora", base="", lora=LoraWeights(rank=3, alpha=6.0, A=A, B=B))


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("kind", ["tied", "xs", "lora"])
def test_every_format_of_every_kind(
    tmp_path: Path, base: Base, specs: dict[str, VectorSpec], make: Make, to: str, kind: str
) -> None:
    adapter = _lora() if kind == "lora" else make(specs[kind])
    result = export(adapter, to, tmp_path / "out", base=base)
    assert result.largest_difference is not None
    assert result.effect is not None
    assert result.largest_difference < 1e-4 < 0.05 < result.effect
    said = json.loads(json.dumps(result.to_json()))
    assert said["checked"] is True
    assert said["bytes"] == sum(Path(file).stat().st_size for file in said["files"])
    assert "differ from whit's by at most" in result.to_text()


def test_the_card_names_the_base(
    tmp_path: Path, base: Base, base_folder: Path, specs: dict[str, VectorSpec], make: Make
) -> None:
    adapter = make(specs["tied"])
    adapter.save(tmp_path / "a")
    with pytest.raises(UsageError, match="--base"):
        export(tmp_path / "a", "lora", tmp_path / "out")
    data = Data(name="d", sha256="0" * 64, rows=3, train=1, validation=1, test=1)
    card = Card(name="a", kind="tiny", numbers=13, base=str(base_folder), base_fingerprint=base.fingerprint, data=data)
    save_card(card, tmp_path / "a" / "card.json")
    assert export(tmp_path / "a", "lora", tmp_path / "out").base == base.name
    assert export(adapter.to_text(), "lora", tmp_path / "text", base=str(base_folder)).largest_difference is not None


def test_unchecked_says_so(tmp_path: Path, base: Base, specs: dict[str, VectorSpec], make: Make) -> None:
    with mock.patch("whit.adapters.interop.check.logits", side_effect=AssertionError("ran the model")):
        result = export(make(specs["tied"]), "gguf-lora", tmp_path / "a.gguf", base=base, check=False)
    assert (result.largest_difference, result.to_json()["checked"]) == (None, False)
    assert "not checked" in result.to_text()


@pytest.mark.parametrize("to", ["lora", "merged", "gguf-lora"])
def test_an_export_that_differs_is_an_error_and_is_removed(
    tmp_path: Path, base: Base, specs: dict[str, VectorSpec], make: Make, to: str
) -> None:
    """What the field complains of: B is scaled by one hundredth too much."""
    real = plain_lora.as_lora

    def off(adapter: Adapter, base: Base) -> LoraWeights:
        weights = real(adapter, base)
        return LoraWeights(
            rank=weights.rank, alpha=weights.alpha * 1.01, A=weights.A, B=weights.B, base=base.fingerprint
        )

    with mock.patch.object(plain_lora, "as_lora", off), pytest.raises(AdapterError, match="does not compute"):
        export(make(specs["xs"]), to, tmp_path / "out", base=base)
    assert not [item for item in tmp_path.rglob("*") if item.is_file()]


def test_an_adapter_that_does_nothing(tmp_path: Path, base: Base, specs: dict[str, VectorSpec], make: Make) -> None:
    with pytest.raises(AdapterError, match="changes nothing"):
        export(make(specs["tied"], scale=0.0), "lora", tmp_path / "out", base=base)
    assert not (tmp_path / "out").exists()


def test_of_another_base(tmp_path: Path, specs: dict[str, VectorSpec], make: Make) -> None:
    other = tiny_base(tmp_path / "base", seed=8)
    with pytest.raises(WrongBase):
        export(make(specs["tied"]), "lora", tmp_path / "out", base=other, check=False)


def test_what_cannot_be_asked_for(tmp_path: Path, base: Base, specs: dict[str, VectorSpec], make: Make) -> None:
    adapter = make(specs["tied"])
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("keep me")
    (tmp_path / "used.gguf").write_text("keep me")
    with pytest.raises(UsageError, match="peft, lora, merged, gguf-lora"):
        export(adapter, "onnx", tmp_path / "x", base=base)
    with pytest.raises(UsageError, match="number-type"):
        export(adapter, "lora", tmp_path / "x", base=base, number_type="bfloat16")
    for to, out in (("lora", "used"), ("merged", "used"), ("peft", "used.gguf"), ("gguf-lora", "used.gguf")):
        with pytest.raises(UsageError, match="there already"):
            export(adapter, to, tmp_path / out, base=base)
    assert (tmp_path / "used" / "mine").read_text() == "keep me"


@contextmanager
def _files_of_at_most(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes, as after `ulimit -f`."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("to", FORMATS)
def test_a_disk_that_refuses_is_told_and_leaves_nothing(
    tmp_path: Path, base: Base, specs: dict[str, VectorSpec], make: Make, to: str
) -> None:
    adapter = make(specs["xs"])
    largest = max(Path(file).stat().st_size for file in export(adapter, to, tmp_path / "whole", base=base).files)
    for most in (1000, largest // 2, largest - 1):
        with _files_of_at_most(most), pytest.raises(StorageError, match=r"cannot write .*out"):
            export(adapter, to, tmp_path / "out", base=base, check=False)
        assert not [item for item in tmp_path.rglob("*") if item.is_file() and "whole" not in item.parts]


def test_a_tokenizer_that_finds_no_room(tmp_path: Path, base: Base, specs: dict[str, VectorSpec], make: Make) -> None:
    """Its library raises a bare Exception."""
    with (
        mock.patch("safetensors.torch.save_file"),
        _files_of_at_most(2000),
        pytest.raises(StorageError, match=r"cannot write .*out"),
    ):
        export(make(specs["xs"]), "merged", tmp_path / "out", base=base, check=False)
    assert list(tmp_path.iterdir()) == []


def test_a_merge_says_what_rounding_took(tmp_path: Path, base: Base, specs: dict[str, VectorSpec], make: Make) -> None:
    result = export(make(specs["xs"], scale=1.0), "merged", tmp_path / "a", base=base, number_type="bfloat16")
    assert result.number_type == "bfloat16"
    assert "of the adapter's change" in result.notes[0]


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("method", METHODS)
def test_of_a_quantised_base(tmp_path: Path, base_folder: Path, to: str, method: str) -> None:
    """Merged weights have what the base computes with in them; of the others it is said that they need it."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    quantised = load_base(f"{base_folder}:{method}", dtype="float32")
    result = export(_lora(), to, tmp_path / "out", base=quantised)
    assert result.effect is not None and result.largest_difference is not None
    assert result.largest_difference < 1e-3 * result.effect and result.number_type == "float32"
    said = f"it is for {quantised.name}, with whose matrices it was checked: on {base_folder} as its file has it"
    assert [note.startswith(said) for note in result.notes] == [True] * (to != "merged")
