"""Merged weights: the base plus the update, in a type that keeps it; an ordinary transformers folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from whit.adapters.adapter import Adapter
from whit.adapters.interop import merged
from whit.adapters.interop.merged import merge
from whit.adapters.interop.plain_lora import as_lora
from whit.adapters.interop.reload import merged_logits, whit_logits
from whit.adapters.vector import VectorSpec
from whit.bases import Base, load_base
from whit.errors import AdapterError, StorageError, UsageError
from whit.testing import write_tiny_base, write_tiny_gguf

Make = Callable[..., Adapter]


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A base whose file holds bfloat16, as most do."""
    folder = write_tiny_base(tmp_path_factory.mktemp("bf16") / "base")
    tensors = {name: part.to(torch.bfloat16) for name, part in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return load_base(folder, dtype="float32")


def _adapter(base: Base, spec: VectorSpec, make: Make, scale: float) -> Adapter:
    from whit.adapters.basis import basis_of

    return Adapter.from_vector(spec, make(spec, scale=scale).vector, basis_of(base, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("untied", [False, True])
def test_transformers_and_whit_load_it(
    tmp_path: Path, specs: dict[str, VectorSpec], make: Make, ids: torch.Tensor, untied: bool
) -> None:
    base = load_base(write_tiny_base(tmp_path / "base", tied=not untied), dtype="float32")
    adapter = _adapter(base, specs["some"], make, 0.3)
    result = merge(base, as_lora(adapter, base), tmp_path / "out")
    assert (result.number_type, result.lost) == ("float32", 0.0)
    bare, expected = whit_logits(base, adapter)
    assert (bare - expected).abs().max() > 0.05
    assert torch.allclose(merged_logits(base, tmp_path / "out"), expected, atol=1e-5)
    again = load_base(tmp_path / "out", dtype="float32")
    assert again.template.source == base.template.source
    assert again.fingerprint != base.fingerprint
    assert again.encode("What is 40 + 2?") == base.encode("What is 40 + 2?")
    held = load_file(tmp_path / "out" / "model.safetensors")
    untouched = "model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(held[untouched], base.weight(untouched.removesuffix(".weight")))
    assert ("lm_head.weight" in held) == untied


def test_a_small_update_is_not_lost_to_rounding(
    tmp_path: Path, narrow: Base, specs: dict[str, VectorSpec], make: Make
) -> None:
    small = as_lora(_adapter(narrow, specs["xs"], make, 0.002), narrow)
    result = merge(narrow, small, tmp_path / "auto")
    assert (result.number_type, result.stored) == ("float32", "bfloat16")
    assert result.lost_stored > 0.1
    forced = merge(narrow, small, tmp_path / "forced", number_type="bfloat16")
    assert forced.lost == result.lost_stored
    held = load_file(tmp_path / "forced" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    W = narrow.weight(name)
    update = small.scale * small.B[name] @ small.A[name]
    took = float((held[f"{name}.weight"].float() - W - update).norm() / update.norm())
    assert took > 0.05
    assert held[f"{name}.weight"].dtype == torch.bfloat16


def test_a_large_update_keeps_the_bases_own_type(
    tmp_path: Path, narrow: Base, specs: dict[str, VectorSpec], make: Make
) -> None:
    result = merge(narrow, as_lora(_adapter(narrow, specs["xs"], make, 3.0), narrow), tmp_path / "out")
    assert (result.number_type, result.stored) == ("bfloat16", "bfloat16")
    assert 0 < result.lost < 0.02


def test_of_a_gguf(tmp_path: Path, base_folder: Path, specs: dict[str, VectorSpec], make: Make) -> None:
    base = load_base(write_tiny_gguf(base_folder, tmp_path / "b.gguf", number_type="Q8_0"), dtype="float32")
    adapter = _adapter(base, specs["xs"], make, 0.3)
    merge(base, as_lora(adapter, base), tmp_path / "out")
    assert torch.allclose(merged_logits(base, tmp_path / "out"), whit_logits(base, adapter)[1], atol=1e-4)


def test_in_pieces(tmp_path: Path, base: Base, specs: dict[str, VectorSpec], make: Make) -> None:
    adapter = make(specs["xs"])
    with mock.patch.object(merged, "_SHARD_BYTES", 100_000):
        result = merge(base, as_lora(adapter, base), tmp_path / "out")
    names = [file.name for file in result.files]
    assert "model.safetensors.index.json" in names
    assert len([name for name in names if name.startswith("model-0")]) > 2
    assert torch.allclose(merged_logits(base, tmp_path / "out"), whit_logits(base, adapter)[1], atol=1e-5)


def test_a_folder_in_use_and_an_unknown_type(
    tmp_path: Path, base: Base, specs: dict[str, VectorSpec], make: Make
) -> None:
    weights = as_lora(make(specs["xs"]), base)
    (tmp_path / "mine").write_text("keep me")
    with pytest.raises(UsageError, match="there already"):
        merge(base, weights, tmp_path)
    with pytest.raises(UsageError, match="int8"):
        merge(base, weights, tmp_path / "x", number_type="int8")
    assert [item.name for item in tmp_path.iterdir()] == ["mine"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, base: Base, specs: dict[str, VectorSpec], make: Make) -> None:
    full = OSError(28, "No space left on device")
    weights = as_lora(make(specs["xs"]), base)
    with mock.patch("safetensors.torch.save_file", side_effect=full), pytest.raises(StorageError, match="No space"):
        merge(base, weights, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_load(tmp_path: Path, base: Base) -> None:
    with pytest.raises(AdapterError, match="transformers does not load"):
        merged_logits(base, tmp_path)
