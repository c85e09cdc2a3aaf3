"""Public fakes, so that users of whit can test too: a random tiny base that loads in well under a second.

Promises that the same arguments give the same weights and the same tokenizer on every machine with
the same torch, and that the folder is an ordinary transformers folder (config.json,
model.safetensors, tokenizer.json). Knows nothing of training: a tiny base answers noise.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whit.bases import Base

#: ChatML, as SmolLM2 and Qwen use it: a system turn is a turn like any other.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# What the tokenizer is trained on: enough everyday and task words that prompts stay short.
_TEXT = """
The quick brown fox jumps over the lazy dog. What is the weather like in Paris today, please?
My card was stolen and I would like to have a new one. I have not received the money that was sent.
Classify the sentiment of this review: a charming and often affecting journey. positive negative neutral
{"intent": "book_restaurant", "slots": {"city": "London", "party_size": "two", "date": "tomorrow"}}
There are 12 apples and 30 pears in 4 boxes; how many are in each box? The answer is 42.
user assistant system question answer label true false yes no null text input output instruction
0 1 2 3 4 5 6 7 8 9 10 11 20 25 50 100 1000 red green blue small large left right up down
def add(a, b): return a + b  for item in list: print(item)  if x == y: pass  else: raise ValueError
"""


def write_tiny_base(
    folder: str | Path,
    *,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    ffn: int = 128,
    vocab: int = 384,
    context: int = 256,
    tied: bool = True,
) -> Path:
    """Write a random Llama with a byte-level BPE tokenizer and a ChatML template; return the folder.

    `vocab` counts the 256 bytes and three special tokens, so at least 259. Weights are float32,
    normal with a deviation of 0.08 (large enough that an adapter changes the answers).
    """
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    specials = write_tokenizer(target, vocab=vocab, context=context)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        bos_token_id=specials["<|im_start|>"],
        eos_token_id=specials["<|im_end|>"],
        pad_token_id=specials["<|endoftext|>"],
        architectures=["LlamaForCausalLM"],
        dtype="float32",
    )
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Any] = {}
    for name in sorted(shapes):
        if name == "lm_head.weight" and tied:
            continue
        noise = torch.randn(shapes[name], generator=generator)
        # Norms near one, as in a trained model; everything else small noise.
        tensors[name] = 1 + 0.05 * noise if len(shapes[name]) == 1 else 0.08 * noise
    config.save_pretrained(target)
    save_file(tensors, str(target / "model.safetensors"), metadata={"format": "pt"})
    return target


def write_tokenizer(folder: str | Path, *, vocab: int = 384, context: int = 256) -> dict[str, int]:
    """Train a byte-level BPE tokenizer in place and write its files; return the special tokens' ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    if vocab < 256 + len(special):
        raise ValueError(f"vocab must be at least {256 + len(special)} (bytes and special tokens), got {vocab}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        min_frequency=1,
    )
    tokenizer.train_from_iterator(_TEXT.splitlines(), trainer)
    missing = vocab - tokenizer.get_vocab_size()
    if missing > 0:
        raise ValueError(f"vocab={vocab} is more than the built-in text gives; use at most {vocab - missing}")
    target = Path(folder)
    tokenizer.save(str(target / "tokenizer.json"))
    description = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHATML,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(description, indent=2), encoding="utf-8")
    vocabulary = tokenizer.get_vocab()
    return {token: vocabulary[token] for token in special}


def write_tiny_gguf(folder: str | Path, path: str | Path, *, number_type: str = "F32") -> Path:
    """Write the base in `folder` (as `write_tiny_base` makes it) as a GGUF file; return its path.

    Matrices are stored as `number_type` (`F32`, `F16`, `BF16`, `Q8_0`, `Q4_0`, `Q4_1`, `TQ2_0`: a row's
    length must be a multiple of the type's block), everything else as F32. Llama, Qwen 2, Qwen 3 and
    Gemma 3 are known.
    """
    import gguf
    from safetensors.numpy import load_file

    source, target = Path(folder), Path(path)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    name = config["model_type"].removesuffix("_text")
    architecture = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(str(target), name)
    _write_shape(writer, config)
    _write_words(writer, source)
    quantisation = gguf.GGMLQuantizationType[number_type]
    for key, W in load_file(str(source / "model.safetensors")).items():
        stem, _, suffix = key.rpartition(".")
        if name == "llama" and (".q_proj" in key or ".k_proj" in key):
            heads = config["num_attention_heads" if ".q_proj" in key else "num_key_value_heads"]
            W = W.reshape(heads, 2, -1, *W.shape[1:]).swapaxes(1, 2).reshape(W.shape)  # llama.cpp's permute
        if name == "gemma3" and stem.endswith("norm"):
            W = W + 1
        kind = quantisation if W.ndim > 1 else gguf.GGMLQuantizationType.F32
        data = W if kind == gguf.GGMLQuantizationType.F32 else gguf.quants.quantize(W, kind)
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _write_shape(writer: Any, config: dict[str, Any]) -> None:
    rope = config.get("rope_parameters") or {}
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope.get("full_attention", rope).get("rope_theta", 10000.0))
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])


def _write_words(writer: Any, folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    special = {entry["content"] for entry in tokenizer["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(vocabulary[settings["bos_token"]])
    writer.add_eos_token_id(vocabulary[settings["eos_token"]])
    writer.add_pad_token_id(vocabulary[settings["pad_token"]])
    writer.add_chat_template(settings["chat_template"])


def tiny_base(folder: str | Path | None = None, *, dtype: str = "float32", **shape: Any) -> Base:
    """Write a tiny base (into a temporary folder where none is given) and load it.

    The keyword arguments are those of `write_tiny_base`.
    """
    from whit.bases import load_base

    if folder is not None:
        return load_base(str(write_tiny_base(folder, **shape)), dtype=dtype)
    temporary = tempfile.mkdtemp(prefix="whit-tiny-")
    try:
        base = load_base(str(write_tiny_base(temporary, **shape)), dtype=dtype)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    # The base reads its files when a weight is asked for, so they live as long as it does.
    weakref.finalize(base, shutil.rmtree, temporary, ignore_errors=True)
    return base


def write_rows(path: str | Path, count: int, *, seed: int = 0) -> Path:
    """Write `count` labelled rows as JSON lines: short requests, each `card` or `cash` by what it speaks of."""
    import random

    draw = random.Random(seed)
    openings = ("please", "hello", "today", "can you", "how do i", "i want to", "what if i", "why did it")
    things = {"card": ("block my card", "see my new card", "use the card", "order a card"),
              "cash": ("send money", "get my money", "have not received the money", "ask for money")}  # fmt: skip
    places = ("in paris", "in london", "for my box", "for the review", "at twelve", "at thirty", "tomorrow", "now")
    lines = []
    for number in range(count):
        label = ("card", "cash")[number % 2]
        words = f"{draw.choice(openings)} {draw.choice(things[label])} {draw.choice(places)} {draw.randrange(10**4)}"
        lines.append(json.dumps({"id": f"row-{number}", "prompt": words, "completion": label}))
    target = Path(path)
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return target
