"""Writing a Llama as a GGUF file that llama.cpp, transformers and whit's engine read alike.

Promises that the file is whole or absent, that a tensor asked to be stored exactly is stored exactly or
refused, and that the tokenizer written is one whose splitting rule has a name in llama.cpp. Format: ggml's
docs/gguf.md; the order of rows in q and k is llama.cpp's (rotary pairs side by side). Knows nothing of
training; the weights it is given are those that the file will stand for.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whit.errors import BaseError, UsageError
from whit.files import atomic_open

NUMBER_TYPES = ("F32", "F16", "Q8_0", "Q4_0", "Q4_1", "TQ2_0")
# llama.cpp's names of whole-file types (llama.h, enum llama_ftype).
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "TQ2_0": 37}
_NORMAL, _CONTROL = 1, 3  # llama.cpp's token types
_ROLES = {"bos": "bos", "eos": "eos", "pad": "pad", "unk": "unk"}


@dataclass(frozen=True)
class LlamaShape:
    """The dimensions that a GGUF of architecture `llama` states. `head` is the length of one head."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    context: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LlamaShape:
        """From a transformers configuration of a Llama, as a mapping. Raises `BaseError` for another kind."""
        kind = config.get("model_type", "llama")
        if kind != "llama" or config.get("attention_bias") or config.get("mlp_bias"):
            raise BaseError(f"only Llama without biases can be written as GGUF here, not {kind!r}")
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if rope.get("rope_type", "default") != "default":
            raise BaseError(f"the rotary scaling {rope['rope_type']!r} cannot be written as GGUF here")
        heads = int(config["num_attention_heads"])
        return cls(
            hidden=int(config["hidden_size"]),
            ffn=int(config["intermediate_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head=int(config.get("head_dim") or config["hidden_size"] // heads),
            context=int(config["max_position_embeddings"]),
            rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
            norm_eps=float(config["rms_norm_eps"]),
        )


@dataclass(frozen=True)
class WordsToWrite:
    """A byte-level BPE tokenizer (`tokenizer_json`), the names of its roles, and its chat template."""

    tokenizer_json: str
    roles: Mapping[str, str]  # bos, eos, pad, unk -> token
    template: str | None = None


def permute_rotary(W: Any, heads: int) -> Any:
    """Rows of q or k from transformers' order (halves) to llama.cpp's (pairs): [heads * head, in], same shape."""
    return W.reshape(heads, 2, W.shape[0] // heads // 2, *W.shape[1:]).swapaxes(1, 2).reshape(W.shape)


def write_gguf(
    path: str | Path,
    weights: Mapping[str, Any],
    shape: LlamaShape,
    words: WordsToWrite,
    *,
    number_type: str | Callable[[str], str] = "Q8_0",
    exact: Callable[[str], bool] = lambda name: False,
    name: str,
    licence: str = "unknown",
    description: str = "",
) -> Path:
    """Write `weights` (transformers' names of `LlamaForCausalLM` -> tensors or arrays) as a GGUF file.

    `number_type` is one of `NUMBER_TYPES` for every matrix, or a function from a tensor's name to one; vectors are F32.
    `exact(name)` says that the stored numbers must equal the given ones. `lm_head.weight` is left out where it equals
    the embedding. Raises `BaseError` (missing tensor, not exact, unknown splitting rule), `UsageError` (number type),
    `StorageError`.
    """
    import gguf

    arrays = {key: _array(value) for key, value in weights.items()}
    if "lm_head.weight" in arrays and _same(arrays["lm_head.weight"], arrays.get("model.embed_tokens.weight")):
        del arrays["lm_head.weight"]
    _check_complete(arrays, shape)
    choose = number_type if callable(number_type) else lambda _: number_type
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape.layers)
    chosen = {key: "F32" if W.ndim < 2 else choose(key) for key, W in arrays.items()}
    for key, kind in chosen.items():
        if kind not in NUMBER_TYPES:
            raise UsageError(f"{key}: the number type {kind!r} is not one of {', '.join(NUMBER_TYPES)}")
    with tempfile.TemporaryDirectory() as folder:
        aside = Path(folder) / "model.gguf"
        writer = gguf.GGUFWriter(str(aside), "llama")
        writer.add_name(name)
        writer.add_license(licence)
        if description:
            writer.add_description(description)
        matrices = [kind for key, kind in chosen.items() if arrays[key].ndim > 1 and "embed" not in key]
        writer.add_file_type(_FILE_TYPES[max(set(matrices), key=matrices.count)])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_shape(writer, shape, len(arrays["model.embed_tokens.weight"]))
        _add_words(writer, words)
        for key in sorted(arrays):
            W, kind = arrays[key], gguf.GGMLQuantizationType[chosen[key]]
            if key.endswith("q_proj.weight"):
                W = permute_rotary(W, shape.heads)
            elif key.endswith("k_proj.weight"):
                W = permute_rotary(W, shape.kv_heads)
            stored = _quantise(W, chosen[key], key)
            if exact(key) and not (gguf.quants.dequantize(stored, kind) == W).all():
                raise BaseError(f"{key} cannot be stored exactly as {chosen[key]}; round it to that type first")
            writer.add_tensor(names.get_name(key, try_suffixes=(".weight",)), stored, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with aside.open("rb") as source, atomic_open(path) as target:
            shutil.copyfileobj(source, target)
    return Path(path)


def _array(value: Any) -> Any:
    import numpy as np

    if hasattr(value, "detach"):
        value = value.detach().float().cpu().numpy()
    return np.ascontiguousarray(value, dtype=np.float32)


def _same(first: Any, second: Any) -> bool:
    return second is not None and first.shape == second.shape and bool((first == second).all())


def _quantise(W: Any, kind: str, key: str) -> Any:
    import gguf

    quantisation = gguf.GGMLQuantizationType[kind]
    block = gguf.GGML_QUANT_SIZES[quantisation][0]
    if W.shape[-1] % block:
        raise BaseError(f"{key} has rows of {W.shape[-1]}, no multiple of {kind}'s block of {block}")
    return gguf.quants.quantize(W, quantisation)


def _check_complete(arrays: Mapping[str, Any], shape: LlamaShape) -> None:
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    wanted: dict[str, tuple[int, ...]] = {"model.norm.weight": (shape.hidden,)}
    for layer in range(shape.layers):
        stem = f"model.layers.{layer}."
        wanted[f"{stem}input_layernorm.weight"] = (shape.hidden,)
        wanted[f"{stem}post_attention_layernorm.weight"] = (shape.hidden,)
        wanted[f"{stem}self_attn.q_proj.weight"] = (queries, shape.hidden)
        wanted[f"{stem}self_attn.k_proj.weight"] = (keys, shape.hidden)
        wanted[f"{stem}self_attn.v_proj.weight"] = (keys, shape.hidden)
        wanted[f"{stem}self_attn.o_proj.weight"] = (shape.hidden, queries)
        wanted[f"{stem}mlp.gate_proj.weight"] = (shape.ffn, shape.hidden)
        wanted[f"{stem}mlp.up_proj.weight"] = (shape.ffn, shape.hidden)
        wanted[f"{stem}mlp.down_proj.weight"] = (shape.hidden, shape.ffn)
    extra = arrays.keys() - wanted.keys() - {"model.embed_tokens.weight", "lm_head.weight"}
    missing = (wanted.keys() | {"model.embed_tokens.weight"}) - arrays.keys()
    if extra or missing:
        raise BaseError(f"not the tensors of this Llama: {sorted(missing)[:3]} missing, {sorted(extra)[:3]} unknown")
    for key, size in wanted.items():
        if arrays[key].shape != size:
            raise BaseError(f"{key} has the shape {arrays[key].shape}, but the dimensions say {size}")


def _add_shape(writer: Any, shape: LlamaShape, vocabulary: int) -> None:
    writer.add_context_length(shape.context)
    writer.add_block_count(shape.layers)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    writer.add_rope_dimension_count(shape.head)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_vocab_size(vocabulary)


def split_rule(tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name of a tokenizer.json's splitting rule: `gpt-2` or `smollm`. Raises `BaseError` for others."""
    described = tokenizer.get("pre_tokenizer") or {}
    steps = described.get("pretokenizers", [described])
    kinds = [step.get("type") for step in steps]
    by_level = steps[-1].get("type") == "ByteLevel" and not steps[-1].get("add_prefix_space")
    if by_level and steps[-1].get("use_regex", True):
        if kinds == ["ByteLevel"]:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
            return "smollm"
    raise BaseError(f"the tokenizer splits text by {kinds}, for which llama.cpp has no name that is known here")


def _add_words(writer: Any, words: WordsToWrite) -> None:
    tokenizer = json.loads(words.tokenizer_json)
    model = tokenizer["model"]
    if model.get("type", "BPE") != "BPE" or tokenizer.get("normalizer"):
        raise BaseError("only a byte-level BPE tokenizer without a normalizer can be written as GGUF here")
    vocabulary: dict[str, int] = dict(model["vocab"])
    added = {entry["content"]: entry for entry in tokenizer.get("added_tokens", [])}
    vocabulary.update({token: entry["id"] for token, entry in added.items()})
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    if [vocabulary[token] for token in tokens] != list(range(len(tokens))):
        raise BaseError("the tokenizer's ids have gaps; a GGUF file needs them from 0 on without any")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split_rule(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types([_CONTROL if token in added else _NORMAL for token in tokens])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    for role, token in words.roles.items():
        if role not in _ROLES or token not in vocabulary:
            raise BaseError(f"the tokenizer has no token {token!r} for the role {role!r}")
        getattr(writer, f"add_{_ROLES[role]}_token_id")(vocabulary[token])
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    if words.template is not None:
        writer.add_chat_template(words.template)
