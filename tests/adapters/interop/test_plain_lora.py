from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from whit.adapters.adapter import Adapter
from whit.adapters.basis import Basis
from whit.adapters.interop.plain_lora import as_lora
from whit.adapters.interop.reload import peft_logits, whit_logits
from whit.adapters.lora import LoraWeights
from whit.adapters.vector import Expansion, VectorSpec
from whit.bases import Base
from whit.errors import AdapterError, DamagedAdapter, WrongBase
from whit.testing import tiny_base


@pytest.mark.parametrize("name", ["tied", "uneven", "some", "xs"])
def test_the_same_update_in_peft(
    tmp_path: Path, base: Base, basis: Basis, specs: dict[str, VectorSpec], make: Callable[..., Adapter], name: str
) -> None:
    adapter = make(specs[name])
    weights = as_lora(adapter, base)
    R = Expansion(specs[name])(torch.from_numpy(adapter.vector))
    for at, index in enumerate(specs[name].targets):
        US, V = basis.outward[index].float(), basis.inward[index].float()
        module = basis.targets[index].name
        update = weights.scale * weights.B[module] @ weights.A[module]
        assert torch.allclose(update, US @ R[at] @ V.T, atol=1e-6)
    assert len(weights.A) == len(specs[name].targets)
    weights.save(tmp_path)
    bare, expected = whit_logits(base, adapter)
    assert torch.allclose(peft_logits(base, tmp_path), expected, atol=1e-5)
    assert (bare - expected).abs().max() > 0.05


def test_it_knows_its_base(
    tmp_path: Path, base: Base, specs: dict[str, VectorSpec], make: Callable[..., Adapter]
) -> None:
    weights = as_lora(make(specs["tied"]), base)
    weights.save(tmp_path / "lora")
    assert LoraWeights.load(tmp_path / "lora").base == base.fingerprint
    with pytest.raises(WrongBase):
        as_lora(make(specs["tied"]), tiny_base(tmp_path / "other", seed=4))


def test_a_lora_is_its_own(base: Base) -> None:
    name = "model.layers.0.self_attn.q_proj"
    weights = LoraWeights(rank=1, alpha=1, A={name: torch.ones(1, 64)}, B={name: torch.ones(64, 1)})
    assert as_lora(Adapter(kind="lora", base="", lora=weights), base) is weights
    strange = LoraWeights(rank=1, alpha=1, A={"lm_head": torch.ones(1, 1)}, B={"lm_head": torch.ones(1, 1)})
    with pytest.raises(DamagedAdapter, match="lm_head"):
        as_lora(Adapter(kind="lora", base="", lora=strange), base)
    with pytest.raises(AdapterError, match="empty"):
        as_lora(Adapter(kind="tiny", base=""), base)
