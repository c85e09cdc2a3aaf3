"""The public fakes are what they promise: small, quick, and the same every time."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from whit.testing import tiny_base, write_tiny_base


def test_it_is_an_ordinary_transformers_folder(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == model.config.vocab_size == 384
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    one, other = write_tiny_base(tmp_path / "a"), write_tiny_base(tmp_path / "b")
    for item in sorted(one.iterdir()):
        assert item.read_bytes() == (other / item.name).read_bytes(), item.name
    assert tiny_base().fingerprint == tiny_base().fingerprint != tiny_base(seed=1).fingerprint


def test_the_shape_is_as_asked() -> None:
    base = tiny_base(layers=3, hidden=32, heads=2, kv_heads=1, ffn=48, vocab=300, context=64)
    assert base.context == 64 and base.model.config.num_hidden_layers == 3
    assert base.weight("model.layers.2.self_attn.k_proj").shape == (16, 32)
    assert base.weight("model.layers.2.mlp.down_proj").shape == (32, 48)


@pytest.mark.parametrize("vocab", [258, 5000])
def test_a_vocabulary_that_cannot_be_is_refused(tmp_path: Path, vocab: int) -> None:
    with pytest.raises(ValueError, match="vocab"):
        write_tiny_base(tmp_path / "x", vocab=vocab)


def test_it_loads_in_well_under_a_second() -> None:
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        tiny_base()
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1


def test_its_files_go_when_it_goes() -> None:
    base = tiny_base()
    path = base.path
    assert base.weight("model.layers.0.mlp.up_proj").shape == (128, 64)
    del base
    gc.collect()
    assert not path.exists()


def test_training_state_is_not_disturbed() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    tiny_base()
    assert torch.equal(torch.rand(2), expected)
