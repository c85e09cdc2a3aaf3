"""TinyLoRA here is TinyLoRA there: forward, gradients, export, and the way back."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from whit.adapters.adapter import Adapter
from whit.adapters.basis import Basis
from whit.adapters.interop.peft_tinylora import export_peft_tinylora, import_peft, peft_groups, tying
from whit.adapters.lora import CONFIG_NAME, WEIGHTS_NAME, LoraWeights
from whit.adapters.tunable import BoundBasis, bind
from whit.adapters.vector import VectorSpec, projections
from whit.bases import Base, load_base
from whit.errors import AdapterError, DamagedAdapter, WrongBase
from whit.testing import tiny_base

NAMES = ["tied", "even", "uneven", "some", "xs", "xs some"]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def _fresh(base: Base) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)


def _peft(base: Base, folder: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(_fresh(base), folder)


def _ours(base: Base, adapter: Adapter, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    bound = bind(base, adapter)
    try:
        with torch.no_grad():
            bare = base.model(input_ids=ids).logits
            with bound.active():
                return bare, base.model(input_ids=ids).logits
    finally:
        bound.detach()


def test_forward_and_gradients_are_pefts(
    base: Base, basis: Basis, specs: dict[str, VectorSpec], ids: torch.Tensor
) -> None:
    """PEFT's own model, made by PEFT, with our A, B, P and v put into its tensors."""
    from peft import TinyLoraConfig, get_peft_model

    spec = specs["even"]
    names = [target.name for target in basis.targets]
    config = TinyLoraConfig(r=2, u=spec.u, weight_tying=0.5, target_modules=names)
    theirs = get_peft_model(_fresh(base), config)
    v = torch.from_numpy(np.random.default_rng(0).normal(size=(spec.groups, spec.u)).astype(np.float32)) * 0.3
    P = projections(spec)
    with torch.no_grad():
        for at, name in enumerate(names):
            layer = theirs.base_model.model.get_submodule(name)
            assert layer._tinylora_v_key["default"] == str(spec.group_of()[at])
            layer.tinylora_A["default"].copy_(basis.inward[at].float().T)
            layer.tinylora_B["default"].copy_(basis.outward[at].float())
            layer.tinylora_P["default"].copy_(torch.from_numpy(P[at]))
        for group, parameter in theirs.base_model.tinylora_v["default"].items():
            parameter.copy_(v[int(group)])
    bound = BoundBasis(base, basis, spec)
    try:
        with torch.no_grad():
            bound.v.copy_(v.reshape(-1))
        with bound.active():
            ours = base.model(input_ids=ids, labels=ids)
            ours.loss.backward()
        other = theirs(input_ids=ids, labels=ids)
        other.loss.backward()
        assert torch.allclose(ours.logits, other.logits, atol=1e-5)
        parts = theirs.base_model.tinylora_v["default"]
        gradient = torch.cat([parts[str(group)].grad for group in range(spec.groups)])
        assert bound.v.grad is not None
        assert float(gradient.abs().max()) > 1e-3
        assert torch.allclose(bound.v.grad, gradient, atol=1e-5, rtol=1e-4)
    finally:
        bound.detach()


@pytest.mark.parametrize("name", NAMES)
def test_exported_loads_in_peft_with_equal_logits(
    tmp_path: Path, base: Base, specs: dict[str, VectorSpec], make: Callable[..., Adapter], ids: torch.Tensor, name: str
) -> None:
    adapter = make(specs[name])
    export_peft_tinylora(adapter, base, tmp_path)
    bare, expected = _ours(base, adapter, ids)
    with torch.no_grad():
        got = _peft(base, tmp_path)(input_ids=ids).logits
    assert (expected - bare).abs().max() > 0.05
    assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("number_type", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", NAMES)
def test_ours_comes_back_exactly(
    tmp_path: Path,
    base: Base,
    specs: dict[str, VectorSpec],
    make: Callable[..., Adapter],
    name: str,
    number_type: str,
) -> None:
    adapter = make(specs[name], number_type=number_type)
    export_peft_tinylora(adapter, base, tmp_path / "ours")
    assert import_peft(tmp_path / "ours", base).to_bytes() == adapter.to_bytes()


@pytest.mark.parametrize("name", ["tied", "uneven", "xs some"])
def test_and_after_peft_has_saved_it_again(
    tmp_path: Path, base: Base, specs: dict[str, VectorSpec], make: Callable[..., Adapter], name: str
) -> None:
    adapter = make(specs[name])
    export_peft_tinylora(adapter, base, tmp_path / "ours")
    _peft(base, tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert import_peft(tmp_path / "theirs", base).to_bytes() == adapter.to_bytes()


@pytest.mark.parametrize("save_projection", [True, False])
def test_pefts_own_becomes_the_same_update_as_a_lora(
    tmp_path: Path, base: Base, ids: torch.Tensor, save_projection: bool
) -> None:
    from peft import TinyLoraConfig, get_peft_model

    config = TinyLoraConfig(
        r=2, u=3, weight_tying=0.6, target_modules=["q_proj", "down_proj", "up_proj"], save_projection=save_projection
    )
    theirs = get_peft_model(_fresh(base), config)
    with torch.no_grad():
        for place, part in enumerate(theirs.base_model.tinylora_v["default"].values()):
            part.copy_(torch.tensor([0.2, -0.3, 0.1]) * (place + 1))
        expected = theirs(input_ids=ids).logits
    theirs.save_pretrained(tmp_path)
    adapter = import_peft(tmp_path, base)
    assert (adapter.kind, adapter.number_type) == ("lora", "float32")
    bare, got = _ours(base, adapter, ids)
    effect = float((expected - bare).abs().max())
    assert effect > 0.05
    assert float((got - expected).abs().max()) < 1e-4 * effect


def test_a_plain_lora_is_taken_as_it_is(tmp_path: Path, base: Base) -> None:
    name = "model.layers.1.mlp.up_proj"
    A, B = torch.ones(2, 64), torch.ones(128, 2)
    LoraWeights(rank=2, alpha=4, A={name: A}, B={name: B}, base=base.fingerprint).save(tmp_path)
    adapter = import_peft(tmp_path, base)
    assert adapter.lora is not None
    assert torch.equal(adapter.lora.B[name], B)
    LoraWeights(rank=2, alpha=4, A={name: A}, B={name: B}, base="0" * 64).save(tmp_path)
    with pytest.raises(WrongBase):
        import_peft(tmp_path, base)


def test_of_another_base(
    tmp_path: Path, base: Base, specs: dict[str, VectorSpec], make: Callable[..., Adapter]
) -> None:
    other = tiny_base(tmp_path / "other", seed=2)
    with pytest.raises(WrongBase):
        export_peft_tinylora(make(specs["tied"]), other, tmp_path / "x")
    export_peft_tinylora(make(specs["tied"]), base, tmp_path / "y")
    with pytest.raises(WrongBase):
        import_peft(tmp_path / "y", other)
    save_file(load_file(tmp_path / "y" / WEIGHTS_NAME), tmp_path / "y" / WEIGHTS_NAME)  # as PEFT would, without notes
    deeper = tiny_base(tmp_path / "small", hidden=32, ffn=64)
    with pytest.raises(AdapterError, match="another shape"):
        import_peft(tmp_path / "y", deeper)


def test_tying_is_pefts() -> None:
    assert tying(14, np.zeros(14, dtype=np.int64)) is not None
    assert tying(14, np.arange(14)) == 0.0
    assert tying(14, np.arange(14) * 5 // 14) is None  # 14 in 5: PEFT's last group takes the remainder
    for modules in range(1, 60):
        for groups in range(1, modules + 1):
            even = np.arange(modules) * groups // modules
            ratio = tying(modules, even)
            if modules % groups == 0:
                assert ratio is not None
            if ratio is not None:
                assert np.array_equal(peft_groups(modules, json.loads(json.dumps(ratio))), even)


@pytest.fixture
def folder(
    tmp_path: Path, base: Base, specs: dict[str, VectorSpec], make: Callable[..., Adapter]
) -> Callable[..., Path]:
    def write(tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
        export_peft_tinylora(make(specs["tied"]), base, tmp_path)
        described = json.loads((tmp_path / CONFIG_NAME).read_text()) | config
        (tmp_path / CONFIG_NAME).write_text(json.dumps(described))
        if tensors is not None:
            held = load_file(tmp_path / WEIGHTS_NAME) | tensors
            save_file(held, tmp_path / WEIGHTS_NAME)
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"auto_map": {"x": "y"}}, "run code"),
        ({"peft_type": "VERA"}, "VERA"),
        ({"r": 10**9}, "r = 1000000000"),
        ({"r": 1}, "shape"),
        ({"u": 10**12}, "u = "),
        ({"u": True}, "u = "),
        ({"u": 12}, "shape"),
        ({"bias": "all"}, "bias"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"weight_tying": float("nan")}, "weight_tying"),
        ({"weight_tying": 7}, "weight_tying"),
        ({"projection_seed": -1}, "projection_seed"),
    ],
)
def test_hostile_settings(folder: Callable[..., Path], base: Base, config: dict[str, Any], reason: str) -> None:
    with pytest.raises(DamagedAdapter, match=reason):
        import_peft(folder(**config), base)


@pytest.mark.parametrize(
    ("key", "tensor", "reason"),
    [
        ("base_model.tinylora_v.0", torch.full((13,), float("nan")), "finite"),
        ("base_model.tinylora_v.0", torch.ones(13, dtype=torch.int64), "finite"),
        ("base_model.tinylora_v.0", torch.ones(14), "shape"),
        ("base_model.tinylora_v.x", torch.ones(13), "shape"),
        ("something.else", torch.ones(13), "shape"),
        ("base_model.model.lm_head.tinylora_A", torch.ones(2, 64), "not every module"),
    ],
)
def test_hostile_tensors(folder: Callable[..., Path], base: Base, key: str, tensor: torch.Tensor, reason: str) -> None:
    with pytest.raises(DamagedAdapter, match=reason):
        import_peft(folder({key: tensor}), base)


def test_a_group_without_its_vector(folder: Callable[..., Path], base: Base) -> None:
    with pytest.raises(AdapterError, match="group 1 is not in it"):
        import_peft(folder(weight_tying=0.5), base)


def test_truncated_and_pickled(folder: Callable[..., Path], base: Base) -> None:
    path = folder()
    content = (path / WEIGHTS_NAME).read_bytes()
    for damaged in (b"", content[:300], content[:-1]):
        (path / WEIGHTS_NAME).write_bytes(damaged)
        with pytest.raises(DamagedAdapter, match="safetensors"):
            import_peft(path, base)
    (path / WEIGHTS_NAME).rename(path / "adapter_model.bin")
    with pytest.raises(DamagedAdapter, match="pickled"):
        import_peft(path, base)
    (path / CONFIG_NAME).unlink()
    with pytest.raises(DamagedAdapter, match="no PEFT folder"):
        import_peft(path, base)


def test_a_lora_is_no_tinylora(tmp_path: Path, base: Base) -> None:
    weights = LoraWeights(rank=1, alpha=1, A={}, B={})
    with pytest.raises(AdapterError, match="--to lora"):
        export_peft_tinylora(Adapter(kind="lora", base="", lora=weights), base, tmp_path)


def test_a_bfloat16_base_keeps_every_number(
    tmp_path: Path, base_folder: Path, base: Base, specs: dict[str, VectorSpec], make: Callable[..., Adapter]
) -> None:
    adapter = make(specs["tied"])
    narrow = load_base(base_folder, dtype="bfloat16")
    with warnings.catch_warnings():
        export_peft_tinylora(adapter, narrow, tmp_path)
        assert import_peft(tmp_path, base).to_bytes() == adapter.to_bytes()
