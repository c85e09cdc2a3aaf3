"""LoRA folders: ours are PEFT's, and hostile ones are refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from whit.adapters.adapter import Adapter
from whit.adapters.lora import CONFIG_NAME, WEIGHTS_NAME, LoraWeights
from whit.adapters.targets import all_targets
from whit.adapters.tunable import bind, tune_lora
from whit.bases import Base
from whit.errors import AdapterError, DamagedAdapter, UsageError, WrongBase
from whit.testing import tiny_base

NAME = "model.layers.0.self_attn.q_proj"
KEY = f"base_model.model.{NAME}"


def _tuned(base: Base, *, targets: int = 14, dropout: float = 0.0) -> Adapter:
    every = all_targets(name for name, _ in base.model.named_modules())
    bound = tune_lora(base, every[:targets], rank=3, alpha=6, dropout=dropout, seed=1)
    with torch.no_grad():
        for place, part in enumerate(bound.parameters()):
            part.copy_(torch.randn(part.shape, generator=torch.Generator().manual_seed(place)) * 0.05)
    adapter = bound.export()
    bound.detach()
    return adapter


def test_saved_and_loaded(tmp_path: Path, base: Base) -> None:
    adapter = _tuned(base)
    adapter.save(tmp_path)
    again = Adapter.load(tmp_path)
    assert again.lora is not None
    assert adapter.lora is not None
    assert again.describe() == adapter.describe()
    assert again.lora.A.keys() == adapter.lora.A.keys()
    for name, part in adapter.lora.A.items():
        assert torch.equal(again.lora.A[name], part)
        assert torch.equal(again.lora.B[name], adapter.lora.B[name])


def test_peft_loads_ours_with_equal_logits(tmp_path: Path, base: Base, ids: torch.Tensor, recwarn: Any) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = _tuned(base, targets=9)
    adapter.save(tmp_path / "lora")
    bound = bind(base, adapter)
    with torch.no_grad(), bound.active():
        expected = base.model(input_ids=ids).logits
    bound.detach()
    with torch.no_grad():
        bare = base.model(input_ids=ids).logits
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.path), tmp_path / "lora")
        theirs = model(input_ids=ids).logits
    assert (expected - bare).abs().max() > 0.1
    assert torch.allclose(theirs, expected, atol=1e-5)
    assert not [warning for warning in recwarn if "keyword" in str(warning.message)]


def test_detached_is_the_bare_base_bit_for_bit_and_again(base: Base, ids: torch.Tensor, recwarn: Any) -> None:
    with torch.no_grad():
        before = base.model(input_ids=ids).logits
        for _ in range(2):
            bound = bind(base, _tuned(base))
            assert torch.equal(base.model(input_ids=ids).logits, before)
            with bound.active():
                assert not torch.equal(base.model(input_ids=ids).logits, before)
            bound.detach()
            assert torch.equal(base.model(input_ids=ids).logits, before)
    assert not [warning for warning in recwarn if "peft_config" in str(warning.message)]
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_a_lora_of_another_base(tmp_path: Path, base: Base) -> None:
    adapter = _tuned(base)
    with pytest.raises(WrongBase):
        bind(tiny_base(tmp_path / "seed", seed=3), adapter)


def test_a_lora_of_another_shape_is_refused_and_leaves_nothing(tmp_path: Path, base: Base) -> None:
    """Without a fingerprint only the shapes tell; a column would even be spread over the whole matrix."""
    for shape in ((3, 1), (3, 65)):
        A, B = torch.ones(shape), torch.ones(64, 3)
        weights = LoraWeights(rank=3, alpha=3, A={NAME: A}, B={NAME: B})
        with pytest.raises(AdapterError, match="another base"):
            bind(base, Adapter(kind="lora", base="", lora=weights))


@pytest.mark.parametrize(("rank", "alpha", "dropout"), [(0, 1, 0), (-1, 1, 0), (4, 0, 0), (4, 1, 1.0), (4, 1, -0.1)])
def test_settings_that_cannot_be(base: Base, rank: int, alpha: float, dropout: float) -> None:
    with pytest.raises(UsageError):
        tune_lora(base, (), rank=rank, alpha=alpha, dropout=dropout, seed=0)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    def write(tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
        described = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], **config}
        (tmp_path / CONFIG_NAME).write_text(json.dumps(described))
        given = {"A": torch.ones(2, 64), "B": torch.ones(64, 2)}
        held = {f"{KEY}.lora_{side}.weight": part for side, part in given.items()} if tensors is None else tensors
        save_file(held, str(tmp_path / WEIGHTS_NAME))
        return tmp_path

    return write


def test_the_plain_folder_is_read(folder: Callable[..., Path]) -> None:
    weights = LoraWeights.load(folder(some_future_key={"nested": 1}))
    assert (weights.rank, weights.scale, list(weights.A)) == (2, 2.0, [NAME])


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "run code"),
        ({"peft_type": "TINYLORA"}, "TINYLORA"),
        ({"peft_type": "LORA", "rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"use_dora": True}, "use_dora"),
        ({"use_rslora": True}, "use_rslora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"layer_replication": [[0, 4]]}, "layer_replication"),
        ({"r": 10**9}, "no rank"),
        ({"r": 0}, "no rank"),
        ({"r": True}, "no rank"),
        ({"r": "2"}, "no rank"),
        ({"r": None}, "no rank"),
        ({"r": 3}, "rank 3"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"lora_alpha": float("inf")}, "lora_alpha"),
        ({"lora_alpha": 1e30}, "lora_alpha"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"lora_dropout": "much"}, "lora_dropout"),
        ({"lora_dropout": [1]}, "lora_dropout"),
        ({"lora_dropout": 1.0}, "lora_dropout"),
    ],
)
def test_hostile_settings(folder: Callable[..., Path], config: dict[str, Any], reason: str) -> None:
    with pytest.raises(DamagedAdapter, match=reason):
        Adapter.load(folder(**config))


@pytest.mark.parametrize(
    ("A", "B", "reason"),
    [
        (torch.ones(2, 64), None, "two matrices"),
        (torch.ones(()), torch.ones(64, 2), "two matrices"),
        (torch.ones(2, 8, 8), torch.ones(64, 2), "two matrices"),
        (torch.ones(2, 64, dtype=torch.int8), torch.ones(64, 2), "two matrices"),
        (torch.ones(2, 64).to(torch.float8_e4m3fn), torch.ones(64, 2), "two matrices"),
        (torch.full((2, 64), float("nan")), torch.ones(64, 2), "NaN"),
        (torch.ones(2, 64), torch.full((64, 2), float("inf")), "NaN"),
        (torch.ones(4, 64), torch.ones(64, 2), "rank 2"),
    ],
)
def test_hostile_tensors(folder: Callable[..., Path], A: torch.Tensor, B: torch.Tensor | None, reason: str) -> None:
    tensors = {f"{KEY}.lora_A.weight": A} | ({} if B is None else {f"{KEY}.lora_B.weight": B})
    with pytest.raises(DamagedAdapter, match=reason):
        Adapter.load(folder(tensors))


def test_other_tensors_and_none(folder: Callable[..., Path]) -> None:
    with pytest.raises(DamagedAdapter, match="belongs to no plain LoRA"):
        Adapter.load(folder({"base_model.model.lm_head.weight": torch.ones(2, 2)}))
    with pytest.raises(DamagedAdapter, match="no tensor"):
        Adapter.load(folder({}))


def test_a_module_that_is_no_projection(folder: Callable[..., Path], base: Base) -> None:
    held = {f"base_model.model.lm_head.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
    with pytest.raises(DamagedAdapter, match="lm_head, which is no projection"):
        bind(base, Adapter.load(folder(held)))


def test_files_that_are_not_whole(folder: Callable[..., Path]) -> None:
    path = folder()
    content = (path / WEIGHTS_NAME).read_bytes()
    for damaged in (b"", content[:7], content[:200], content[:-1], b"\xff" * 8 + content, b"PK\x03\x04" + content):
        (path / WEIGHTS_NAME).write_bytes(damaged)
        with pytest.raises(DamagedAdapter):
            Adapter.load(path)


def test_only_a_pickle(folder: Callable[..., Path]) -> None:
    path = folder()
    (path / WEIGHTS_NAME).rename(path / "adapter_model.bin")
    with pytest.raises(DamagedAdapter, match="pickled"):
        Adapter.load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "\x00", '{"peft_type": 5}'])
def test_settings_that_are_no_settings(folder: Callable[..., Path], text: str) -> None:
    path = folder()
    (path / CONFIG_NAME).write_text(text)
    with pytest.raises(DamagedAdapter):
        Adapter.load(path)


def test_settings_missing_or_too_large(folder: Callable[..., Path]) -> None:
    path = folder()
    (path / CONFIG_NAME).write_text(" " * (1 << 21))
    with pytest.raises(DamagedAdapter, match="at most"):
        Adapter.load(path)
    (path / CONFIG_NAME).unlink()
    with pytest.raises(DamagedAdapter, match=CONFIG_NAME):
        LoraWeights.load(path)
