"""Small random Llamas as GGUF files, and the same weights in transformers to compare with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

PROJECTIONS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True)
class Shape:
    dim: int = 64
    ffn: int = 128
    heads: int = 4
    kv_heads: int = 2
    layers: int = 2
    context: int = 256
    tied: bool = True


def encode(weights: np.ndarray, kind: Type, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of a matrix in a number type, and the float32 values that they stand for."""
    if kind == Type.F32:
        return weights, weights
    if kind == Type.Q6_K:
        # gguf cannot quantise to this type: any bytes with a small scale will do.
        rng = np.random.default_rng(seed)
        blocks = rng.integers(0, 256, (weights.shape[0], weights.shape[1] // 256, 210), dtype=np.uint8)
        blocks[..., 208:] = np.frombuffer(np.float16(2e-5).tobytes(), dtype=np.uint8)
        packed = blocks.reshape(weights.shape[0], -1)
    else:
        packed = gguf.quantize(weights, kind)
    return packed, gguf.dequantize(packed, kind)


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """The order of rows that GGUF keeps for rotary embeddings."""
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


def unpermute(weights: np.ndarray, heads: int) -> np.ndarray:
    return (
        weights.reshape(heads, weights.shape[0] // heads // 2, 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


def tokenizer_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "tokenizer.json").read_text("utf-8"))


def write_model(path: Path, tokenizer: dict[str, Any], kind: Type, shape: Shape = Shape(), *, seed: int = 0) -> Any:
    """Write a GGUF file; the transformers model with the same float32 weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    vocab = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    added = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    names = {number: name for name, number in vocab} | added
    tokens = [names[number] for number in range(len(names))]
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokens),
            hidden_size=shape.dim,
            intermediate_size=shape.ffn,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            max_position_embeddings=shape.context,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
            tie_word_embeddings=shape.tied,
            attn_implementation="eager",
        )
    ).eval()
    model.requires_grad_(False)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.dim)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)
    writer.add_rope_dimension_count(shape.dim // shape.heads)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if number in added else 1 for number in range(len(tokens))])
    writer.add_token_merges(
        [" ".join(pair) if isinstance(pair, list) else pair for pair in tokenizer["model"]["merges"]]
    )
    writer.add_bos_token_id(tokens.index("<|im_start|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_chat_template("{{ messages }}")

    def matrix(parameter: torch.nn.Parameter, name: str, heads: int = 0) -> None:
        parameter.normal_(0.0, 0.1)
        stored = parameter.numpy() if not heads else permute(parameter.numpy(), heads)
        packed, values = encode(stored.copy(), kind, seed=len(name))
        parameter.copy_(torch.from_numpy(values if not heads else unpermute(values, heads)))
        writer.add_tensor(name, packed, raw_dtype=kind)

    def gain(parameter: torch.nn.Parameter, name: str) -> None:
        parameter.uniform_(0.5, 1.5)
        writer.add_tensor(name, parameter.numpy())

    with torch.no_grad():
        matrix(model.model.embed_tokens.weight, "token_embd.weight")
        if not shape.tied:
            matrix(model.lm_head.weight, "output.weight")
        gain(model.model.norm.weight, "output_norm.weight")
        for number, layer in enumerate(model.model.layers):
            gain(layer.input_layernorm.weight, f"blk.{number}.attn_norm.weight")
            gain(layer.post_attention_layernorm.weight, f"blk.{number}.ffn_norm.weight")
            for name, short in PROJECTIONS.items():
                heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads}.get(short, 0)
                matrix(layer.get_submodule(name).weight, f"blk.{number}.{short}.weight", heads)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def logits_of(model: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The smallest cosine between rows."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min())
