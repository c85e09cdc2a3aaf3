"""The architectures that whit adapts: dense decoders with q, k, v, o, gate, up and down projections.

An allow-list: what is not here is refused before transformers sees it. Holds which configuration keys
are believed, how GGUF metadata becomes a configuration, and how GGUF names and layouts become those of
transformers (Llama's q and k rows are stored interleaved; Gemma's norms are stored plus one).
Knows nothing of files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whit.errors import BaseError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Architecture:
    """One architecture: transformers' class names, and the GGUF name where GGUF files are read too."""

    model_type: str
    config_class: str
    model_class: str
    gguf: str | None = None
    permuted: bool = False  # GGUF interleaves the rows of q and k (llama.cpp's convert_hf_to_gguf.py)
    shifted_norms: bool = False  # GGUF stores 1 + weight


ARCHITECTURES: dict[str, Architecture] = {
    item.model_type: item
    for item in [
        Architecture("llama", "LlamaConfig", "LlamaForCausalLM", "llama", permuted=True),
        Architecture("mistral", "MistralConfig", "MistralForCausalLM"),
        Architecture("qwen2", "Qwen2Config", "Qwen2ForCausalLM", "qwen2"),
        Architecture("qwen3", "Qwen3Config", "Qwen3ForCausalLM", "qwen3"),
        Architecture("smollm3", "SmolLM3Config", "SmolLM3ForCausalLM"),
        Architecture("gemma3_text", "Gemma3TextConfig", "Gemma3ForCausalLM", "gemma3", shifted_norms=True),
    ]
}
_BY_GGUF = {item.gguf: item for item in ARCHITECTURES.values() if item.gguf}

#: configuration keys that are believed; every other key of a config.json is left unread
_CONFIG_KEYS = """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
    head_dim hidden_act hidden_activation max_position_embeddings initializer_range rms_norm_eps
    tie_word_embeddings rope_theta rope_scaling rope_parameters rope_local_base_freq attention_bias mlp_bias
    attention_dropout bos_token_id eos_token_id pad_token_id sliding_window use_sliding_window
    max_window_layers layer_types sliding_window_pattern _sliding_window_pattern query_pre_attn_scalar
    final_logit_softcapping attn_logit_softcapping no_rope_layers no_rope_layer_interval"""
CONFIG_KEYS = frozenset(_CONFIG_KEYS.split())
#: (key, least, most): bounds that no base of today leaves, so that no number can exhaust the machine
_BOUNDS = [
    ("vocab_size", 1, 4_000_000),
    ("hidden_size", 1, 131_072),
    ("intermediate_size", 1, 1_048_576),
    ("num_hidden_layers", 1, 1_024),
    ("num_attention_heads", 1, 1_024),
    ("num_key_value_heads", 1, 1_024),
    ("head_dim", 2, 4_096),
    ("max_position_embeddings", 1, 1 << 31),
]
_PROJECTIONS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,3})\.([a-z_]+)\.(weight|bias)")


def architecture_of(model_type: object, where: object) -> Architecture:
    """The architecture of a config.json's `model_type`. Raises `BaseError`."""
    found = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    if found is None:
        raise BaseError(
            f"{where}: the architecture {model_type!r} is not supported; whit adapts {', '.join(ARCHITECTURES)}."
        )
    return found


def gguf_architecture_of(name: object, where: object) -> Architecture:
    """The architecture of a GGUF's `general.architecture`. Raises `BaseError`."""
    found = _BY_GGUF.get(name) if isinstance(name, str) else None
    if found is None:
        raise BaseError(
            f"{where}: the GGUF architecture {name!r} is not supported; whit reads {', '.join(sorted(_BY_GGUF))}."
        )
    return found


def check_bounds(config: Mapping[str, Any], where: object) -> None:
    """Refuse a configuration whose sizes are absent, no whole numbers, or absurd. Raises `BaseError`."""
    for key, least, most in _BOUNDS:
        value = config.get(key)
        if value is None and key in ("num_key_value_heads", "head_dim", "max_position_embeddings"):
            continue
        if type(value) is not int or not least <= value <= most:
            raise BaseError(f"{where}: {key} is {value!r}; it must be a whole number from {least} to {most}.")
    heads = config["num_attention_heads"]
    if heads % (config.get("num_key_value_heads") or heads):
        raise BaseError(f"{where}: {heads} attention heads cannot share {config['num_key_value_heads']} key heads.")


def gguf_config(
    architecture: Architecture,
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    where: object,
) -> dict[str, Any]:
    """A transformers configuration from GGUF metadata. `shapes` are the file's. Raises `BaseError`."""
    prefix = architecture.gguf

    def value(key: str, default: Any = None, *, required: bool = True) -> Any:
        found = metadata.get(f"{prefix}.{key}", default)
        if found is None and required:
            raise BaseError(f"{where}: the GGUF metadata lacks {prefix}.{key}; fetch or convert the file again.")
        if isinstance(found, list):  # one number per layer; only bases whose layers are alike are read
            if not found or any(item != found[0] for item in found):
                raise BaseError(f"{where}: {prefix}.{key} differs from layer to layer, which is not supported.")
            found = found[0]
        return found

    if "token_embd.weight" not in shapes or len(shapes["token_embd.weight"]) != 2:
        raise BaseError(f"{where}: there is no token_embd.weight; this GGUF holds no language model.")
    if "rope_freqs.weight" in shapes or value("rope.scaling.type", "none") not in ("none", "linear"):
        raise BaseError(
            f"{where}: this GGUF scales its rotary embedding by a table; use the model's transformers folder instead."
        )
    heads, hidden = value("attention.head_count"), value("embedding_length")
    head_dim = value("attention.key_length", required=False)
    if head_dim is None and type(heads) is int and type(hidden) is int and heads > 0:
        head_dim = hidden // heads
    config: dict[str, Any] = {
        "model_type": architecture.model_type,
        "vocab_size": shapes["token_embd.weight"][0],
        "hidden_size": hidden,
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": _number(value("attention.layer_norm_rms_epsilon"), 0, 1, where),
        "tie_word_embeddings": "output.weight" not in shapes,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
    }
    if value("rope.dimension_count", head_dim) != head_dim:
        raise BaseError(f"{where}: the rotary embedding covers only a part of each head, which is not supported.")
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": _number(value("rope.freq_base", 10000.0), 1, 1e12, where),
    }
    if value("rope.scaling.type", "none") == "linear":
        rope |= {"rope_type": "linear", "factor": _number(value("rope.scaling.factor"), 1, 1e6, where)}
    if architecture.model_type == "gemma3_text":
        local = {"rope_type": "default", "rope_theta": 10000.0}
        config["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}
        config["sliding_window"] = value("attention.sliding_window")
    else:
        config["rope_parameters"] = rope
    if architecture.model_type == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in shapes
        config["mlp_bias"] = "blk.0.ffn_up.bias" in shapes
    return config


def _number(value: Any, least: float, most: float, where: object) -> float:
    if not isinstance(value, int | float) or not least <= value <= most:
        raise BaseError(f"{where}: {value!r} is no number from {least:g} to {most:g}.")
    return float(value)


def gguf_name(architecture: Architecture, name: str) -> str | None:
    """The transformers name of a GGUF tensor, or None where there is none."""
    stem, _, suffix = name.rpartition(".")
    if stem in _TOP and suffix == "weight":
        return f"{_TOP[stem]}.weight"
    match = _BLOCK.fullmatch(name)
    if match is None:
        return None
    layer, part, suffix = match.groups()
    inner = _PROJECTIONS.get(part) or _norms(architecture).get(part)
    return f"model.layers.{layer}.{inner}.{suffix}" if inner else None


def _norms(architecture: Architecture) -> dict[str, str]:
    if architecture.model_type == "gemma3_text":  # Gemma 3 norms before and after both halves of a layer
        return {
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        }
    return {"ffn_norm": "post_attention_layernorm"}


def gguf_transform(
    architecture: Architecture, name: str, config: Mapping[str, Any]
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What turns the stored tensor into transformers' layout (`name` is transformers'); None: nothing."""
    if architecture.permuted and ".self_attn.q_proj." in name:
        return lambda W: _unpermute(W, config["num_attention_heads"])
    if architecture.permuted and ".self_attn.k_proj." in name:
        return lambda W: _unpermute(W, config["num_key_value_heads"])
    if architecture.shifted_norms and name.endswith("norm.weight"):
        return lambda W: W - 1
    return None


def _unpermute(W: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows (head, pair, half) -> (head, half, pair): the inverse of llama.cpp's `permute`."""
    half = W.shape[0] // heads // 2
    return W.reshape(heads, half, 2, *W.shape[1:]).swapaxes(1, 2).reshape(W.shape)
