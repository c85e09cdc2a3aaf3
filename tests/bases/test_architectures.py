"""GGUF names, layouts and metadata become those of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from whit.bases.architectures import (
    ARCHITECTURES,
    gguf_architecture_of,
    gguf_config,
    gguf_name,
    gguf_transform,
)
from whit.errors import BaseError

SHAPES: dict[str, tuple[int, ...]] = {"token_embd.weight": (100, 64)}


def metadata(**changed: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "context_length": 128,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "block_count": 2,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 5e4,
    }
    values |= {key.replace("__", "."): value for key, value in changed.items()}
    return {f"llama.{key}": value for key, value in values.items() if value is not None}


def config(shapes: dict[str, tuple[int, ...]] = SHAPES, **changed: Any) -> dict[str, Any]:
    return gguf_config(ARCHITECTURES["llama"], metadata(**changed), shapes, "x.gguf")


def test_metadata_becomes_a_configuration() -> None:
    found = config()
    assert found["vocab_size"] == 100 and found["head_dim"] == 16 and found["tie_word_embeddings"]
    assert found["rope_parameters"] == {"rope_type": "default", "rope_theta": 5e4}
    assert not config({**SHAPES, "output.weight": (100, 64)})["tie_word_embeddings"]
    assert config(attention__head_count_kv=[2, 2])["num_key_value_heads"] == 2


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"block_count": None}, "lacks llama.block_count"),
        ({"attention__head_count_kv": [2, 4]}, "differs from layer to layer"),
        ({"attention__head_count_kv": []}, "differs from layer to layer"),
        ({"rope__freq_base": float("nan")}, "no number from"),
        ({"rope__freq_base": "x"}, "no number from"),
        ({"attention__layer_norm_rms_epsilon": -1.0}, "no number from"),
        ({"rope__scaling__type": "yarn"}, "by a table"),
        ({"rope__dimension_count": 8}, "only a part of each head"),
    ],
)
def test_metadata_that_makes_no_sense_is_refused(changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(BaseError, match=reason):
        config(**changed)


def test_a_table_of_rotary_factors_is_refused() -> None:
    with pytest.raises(BaseError, match="by a table"):
        config({**SHAPES, "rope_freqs.weight": (8,)})


def test_a_file_without_a_language_model_is_refused() -> None:
    with pytest.raises(BaseError, match="no language model"):
        config({})


@pytest.mark.parametrize("name", ["gpt2", "whisper", "", None, 3, "clip"])
def test_an_unknown_gguf_architecture_is_refused(name: Any) -> None:
    with pytest.raises(BaseError, match="not supported; whit reads"):
        gguf_architecture_of(name, "x.gguf")


def test_q_and_k_are_brought_to_transformers_layout() -> None:
    heads, head_dim, hidden = 4, 16, 8
    W = torch.randn(heads * head_dim, hidden)
    # llama.cpp's convert_hf_to_gguf.py, `permute`
    stored = W.reshape(heads, 2, head_dim // 2, hidden).swapaxes(1, 2).reshape(W.shape)
    sizes = {"num_attention_heads": heads, "num_key_value_heads": heads}
    for part in ("q", "k"):
        name = f"model.layers.0.self_attn.{part}_proj.weight"
        transform = gguf_transform(ARCHITECTURES["llama"], name, sizes)
        assert transform is not None and torch.equal(transform(stored), W)
        assert gguf_transform(ARCHITECTURES["qwen3"], name, sizes) is None
    assert gguf_transform(ARCHITECTURES["llama"], "model.layers.0.self_attn.v_proj.weight", sizes) is None


@pytest.mark.parametrize(
    ("architecture", "name", "expected"),
    [
        ("llama", "token_embd.weight", "model.embed_tokens.weight"),
        ("llama", "blk.7.ffn_norm.weight", "model.layers.7.post_attention_layernorm.weight"),
        ("gemma3_text", "blk.7.ffn_norm.weight", "model.layers.7.pre_feedforward_layernorm.weight"),
        ("qwen2", "blk.0.attn_q.bias", "model.layers.0.self_attn.q_proj.bias"),
        ("llama", "blk.07.attn_q.weight", None),
        ("llama", "blk.0.attn_q.weight.weight", None),
        ("llama", "blk.0.ffn_gate_inp.weight", None),
        ("llama", "output.bias", None),
        ("llama", "v.blk.0.attn_q.weight", None),
    ],
)
def test_names(architecture: str, name: str, expected: str | None) -> None:
    assert gguf_name(ARCHITECTURES[architecture], name) == expected
