"""GGUF LoRA: the tensors and settings that llama.cpp reads, and back; llama.cpp itself where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from whit.adapters.adapter import Adapter
from whit.adapters.basis import basis_of
from whit.adapters.interop.check import probe
from whit.adapters.interop.gguf_lora import read_gguf_lora, write_gguf_lora
from whit.adapters.interop.plain_lora import as_lora
from whit.adapters.interop.reload import gguf_logits, whit_logits
from whit.adapters.lora import LoraWeights
from whit.adapters.vector import VectorSpec
from whit.bases import Base, load_base
from whit.errors import AdapterError, DamagedAdapter
from whit.testing import write_tiny_gguf

Make = Callable[..., Adapter]


def test_written_and_read(tmp_path: Path, base: Base, specs: dict[str, VectorSpec], make: Make) -> None:
    for name, spec in specs.items():
        adapter = make(spec)
        weights = as_lora(adapter, base)
        path = write_gguf_lora(weights, base, tmp_path / f"{name}.gguf")
        again = read_gguf_lora(path, base)
        assert (again.rank, again.alpha) == (weights.rank, weights.alpha)
        assert again.A.keys() == weights.A.keys()
        for module in weights.A:
            assert torch.equal(again.A[module], weights.A[module])
            assert torch.equal(again.B[module], weights.B[module])
        assert torch.allclose(gguf_logits(base, path), whit_logits(base, adapter)[1], atol=1e-5)


def test_what_llama_cpp_looks_for(tmp_path: Path, base: Base, specs: dict[str, VectorSpec], make: Make) -> None:
    from gguf import GGUFReader

    weights = as_lora(make(specs["some"]), base)
    reader = GGUFReader(write_gguf_lora(weights, base, tmp_path / "a.gguf"))
    said = {name: field.contents() for name, field in reader.fields.items()}
    assert said["general.type"] == "adapter"
    assert said["general.architecture"] == "llama"
    assert said["adapter.type"] == "lora"
    assert said["adapter.lora.alpha"] == 2.0
    held = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    stems = {"blk.0.attn_q", "blk.0.attn_output", "blk.0.ffn_gate", "blk.1.attn_v", "blk.1.ffn_down"}
    assert held.keys() == {f"{stem}.weight.lora_{side}" for stem in stems for side in "ab"}
    assert held["blk.1.ffn_down.weight.lora_a"].shape == (2, 128)
    assert held["blk.1.ffn_down.weight.lora_b"].shape == (64, 2)


def test_q_and_k_rows_are_those_of_the_gguf_base(tmp_path: Path, base_folder: Path, base: Base) -> None:
    """A update of W's own rows must meet W's rows where a GGUF of the same base stores them."""
    from gguf import GGUFReader

    gguf = write_tiny_gguf(base_folder, tmp_path / "base.gguf")
    stored = {tensor.name: np.array(tensor.data) for tensor in GGUFReader(gguf).tensors}
    parts = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    for own, theirs in parts.items():
        name = f"model.layers.1.self_attn.{own}"
        W = base.weight(name)
        # B A = W, exactly: A is the identity.
        weights = LoraWeights(rank=64, alpha=64, A={name: torch.eye(64)}, B={name: W})
        path = write_gguf_lora(weights, base, tmp_path / f"{own}.gguf")
        held = {tensor.name: np.array(tensor.data) for tensor in GGUFReader(path).tensors}
        stem = f"blk.1.{theirs}.weight"
        assert np.array_equal(held[f"{stem}.lora_b"] @ held[f"{stem}.lora_a"], stored[stem])


def test_alpha_zero_is_refused(tmp_path: Path, base: Base) -> None:
    name = "model.layers.0.self_attn.q_proj"
    weights = LoraWeights(rank=1, alpha=0, A={name: torch.ones(1, 64)}, B={name: torch.ones(64, 1)})
    with pytest.raises(AdapterError, match="alpha"):
        write_gguf_lora(weights, base, tmp_path / "a.gguf")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_not_whole(tmp_path: Path, base: Base, specs: dict[str, VectorSpec], make: Make) -> None:
    path = write_gguf_lora(as_lora(make(specs["tied"]), base), base, tmp_path / "a.gguf")
    content = path.read_bytes()
    for damaged in (b"", b"GGUF", content[:100], content[: len(content) // 2], b"\xff" + content[1:]):
        path.write_bytes(damaged)
        with pytest.raises(DamagedAdapter):
            read_gguf_lora(path, base)


def test_a_model_is_no_lora(tmp_path: Path, base_folder: Path, base: Base) -> None:
    with pytest.raises(DamagedAdapter, match="was expected"):
        read_gguf_lora(write_tiny_gguf(base_folder, tmp_path / "base.gguf"), base)


@pytest.mark.slow
def test_llama_cpp_itself(tmp_path: Path, base_folder: Path, specs: dict[str, VectorSpec], make: Make) -> None:
    """Logits of llama.cpp, with the GGUF base in float32, with and without the LoRA (its cache is float16)."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    gguf = write_tiny_gguf(base_folder, tmp_path / "base.gguf")
    base = load_base(gguf, dtype="float32")
    spec = specs["xs"]
    adapter = Adapter.from_vector(spec, make(spec).vector, basis_of(base, 2))  # type: ignore[arg-type]
    path = write_gguf_lora(as_lora(adapter, base), base, tmp_path / "lora.gguf")
    bare, adapted = (part.numpy() for part in whit_logits(base, adapter))
    for lora, expected in ((None, bare), (str(path), adapted)):
        model = llama_cpp.Llama(str(gguf), n_ctx=64, n_threads=1, logits_all=True, verbose=False, lora_path=lora)
        for row, rows in zip(probe(base).tolist(), expected, strict=True):
            model.reset()
            model.eval(row)
            assert np.abs(model.scores[: len(row)] - rows).max() < 0.01
    assert np.abs(adapted - bare).max() > 0.5
