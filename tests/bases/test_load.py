"""Loading gives transformers' own model, from every container, or one clear error."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from whit.bases import load_base
from whit.errors import BaseError, UsageError
from whit.testing import write_tiny_base, write_tiny_gguf, write_tokenizer

pytestmark = pytest.mark.usefixtures("cache")

SMALL: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {"tie_word_embeddings": False}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": 32}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"tie_word_embeddings": True}),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", {}),
    "gemma3_text": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {"query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 7},
    ),
}


def folder_of(family: str, folder: Path) -> Path:
    config_class, model_class, more = FAMILIES[family]
    torch.manual_seed(1)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**(SMALL | more)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    write_tokenizer(folder, vocab=384, context=128)
    return folder


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(3, 43).reshape(2, 20)
    with torch.no_grad():
        return torch.as_tensor(model(ids).logits)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_folder_gives_transformers_own_logits(family: str, tmp_path: Path) -> None:
    folder = folder_of(family, tmp_path / "base")
    expected = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    base = load_base(folder, dtype="float32")
    assert torch.equal(logits(base.model), logits(expected))
    assert logits(expected).std() > 0.01
    assert base.parameters == sum(parameter.numel() for parameter in expected.parameters())


@pytest.mark.parametrize("number_type", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_a_gguf_gives_transformers_own_logits(tiny_gguf: Callable[[str], Path], number_type: str) -> None:
    path = tiny_gguf(number_type)
    expected = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    assert torch.equal(logits(load_base(path, dtype="float32").model), logits(expected))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3_text"])
def test_a_gguf_gives_the_folder_s_logits(family: str, tmp_path: Path) -> None:
    folder = folder_of(family, tmp_path / "base")
    if family == "gemma3_text":  # a GGUF has no place for it; the default is what its readers assume
        change(folder, query_pre_attn_scalar=256)
    path = write_tiny_gguf(folder, tmp_path / "base.gguf")
    one, other = load_base(folder, dtype="float32"), load_base(path, dtype="float32")
    # 1 + w, stored in float32, does not give w back to the last bit
    assert (logits(one.model) - logits(other.model)).abs().max() < (1e-4 if family == "gemma3_text" else 1e-6)
    assert (one.fingerprint == other.fingerprint) == (family != "gemma3_text")
    assert one.encode("What is 12?") == other.encode("What is 12?")
    assert (one.context, one.stop_ids) == (other.context, other.stop_ids)


def test_ternary_weights(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path / "base", hidden=256, ffn=256)
    path = write_tiny_gguf(folder, tmp_path / "t.gguf", number_type="TQ2_0")
    base = load_base(path)
    W = base.weight("model.layers.1.mlp.down_proj")
    assert all(len(row.unique()) <= 3 for row in W)
    loaded = base.model.get_submodule("model.layers.1.mlp.down_proj").weight
    assert torch.equal(W.to(loaded.dtype), loaded)  # bfloat16 where this machine is faster in it


def test_every_weight_is_the_file_s_whatever_the_type_loaded(tiny_gguf: Callable[[str], Path]) -> None:
    exact, coarse = load_base(tiny_gguf("Q4_1"), dtype="float32"), load_base(tiny_gguf("Q4_1"), dtype="bfloat16")
    assert coarse.model.dtype == torch.bfloat16 and coarse.dtype == "bfloat16" and exact.dtype == "float32"
    assert exact.fingerprint == coarse.fingerprint
    names = [name for name, module in exact.model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert len(names) == 15  # seven of each of the two layers, and the head
    for name in names:
        W = coarse.weight(name)
        assert W.dtype == torch.float32
        assert torch.equal(W, exact.weight(name)) and torch.equal(W, exact.model.get_submodule(name).weight)
        assert torch.equal(W.bfloat16(), coarse.model.get_submodule(name).weight)


def test_q_is_brought_to_transformers_layout(tiny_folder: Path, tiny_gguf: Callable[[str], Path]) -> None:
    stored = gguf.GGUFReader(tiny_gguf("F32"))
    raw = next(item.data for item in stored.tensors if item.name == "blk.0.attn_q.weight")
    W = load_base(tiny_gguf("F32")).weight("model.layers.0.self_attn.q_proj")
    expected = load_file(tiny_folder / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    assert torch.equal(W, expected) and not torch.equal(W, torch.tensor(raw))


def test_what_a_base_knows(tiny_folder: Path) -> None:
    base = load_base(tiny_folder)
    assert base.context == 256 and base.stop_ids == (0, 2) and base.path == tiny_folder
    assert base.licence == "unknown" and len(base.fingerprint) == 64
    assert base.decode(base.encode("My card was stolen. Ünïcode 日本!")) == "My card was stolen. Ünïcode 日本!"
    assert base.encode("<|im_end|>") == [2] and base.decode([2]) == ""
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not base.model.training
    with pytest.raises(BaseError, match="no module"):
        base.weight("model.layers.9.mlp.up_proj")


def test_an_untied_head(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path / "untied", tied=False)
    one, other = load_base(folder), load_base(write_tiny_gguf(folder, tmp_path / "untied.gguf"))
    assert one.fingerprint == other.fingerprint
    assert torch.equal(logits(one.model), logits(other.model))
    assert not torch.equal(one.weight("lm_head"), one.weight("model.embed_tokens"))


def change(folder: Path, name: str = "config.json", **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"num_hidden_layers": 3}, "says it has 3 layers, but holds tensors of 2"),
        ({"num_hidden_layers": 1}, "says it has 1 layers"),
        ({"intermediate_size": 256}, "has the shape"),
        ({"vocab_size": 400}, "has the shape"),
        ({"tie_word_embeddings": False}, "lacks lm_head"),
        ({"attention_bias": True}, "lacks model.layers.0.self_attn"),
        ({"hidden_act": "no_such_function"}, "makes no llama model"),
        ({"rope_parameters": {"rope_type": "no_such_type"}}, "makes no llama model"),
        ({"rms_norm_eps": "tiny"}, "makes no llama model"),
        ({"auto_map": {"AutoModelForCausalLM": "evil.Evil"}}, "code of its own"),
    ],
)
def test_a_configuration_that_does_not_fit_its_weights(tiny_copy: Path, values: dict[str, Any], reason: str) -> None:
    change(tiny_copy, **values)
    with pytest.raises(BaseError, match=reason):
        load_base(tiny_copy)


def test_code_beside_the_weights_is_never_run(tiny_copy: Path) -> None:
    (tiny_copy / "modeling_evil.py").write_text("raise SystemExit('ran')")
    (tiny_copy / "tokenization_evil.py").write_text("raise SystemExit('ran')")
    change(tiny_copy, "tokenizer_config.json", tokenizer_class="EvilTokenizer")
    assert load_base(tiny_copy).encode("a")


def test_extra_and_missing_tensors(tiny_copy: Path) -> None:
    tensors = load_file(tiny_copy / "model.safetensors")
    save_file(tensors | {"model.layers.0.evil.weight": torch.ones(1)}, tiny_copy / "model.safetensors")
    with pytest.raises(BaseError, match="has tensors that its model has not"):
        load_base(tiny_copy)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, tiny_copy / "model.safetensors")
    with pytest.raises(BaseError, match="lacks model"):
        load_base(tiny_copy)


def test_a_truncated_base_is_refused(tiny_copy: Path, tiny_gguf: Callable[[str], Path], tmp_path: Path) -> None:
    for path in (tiny_copy / "model.safetensors", tmp_path / "short.gguf"):
        content = path.read_bytes() if path.exists() else tiny_gguf("F32").read_bytes()
        path.write_bytes(content[:-100])
        with pytest.raises(BaseError, match="truncated"):
            load_base(tiny_copy if path.suffix == ".safetensors" else path)


def test_a_tokenizer_larger_than_the_model_is_refused(tiny_copy: Path) -> None:
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tiny_copy / "tokenizer.json"))
    tokenizer.add_tokens([f"<extra{index}>" for index in range(5)])
    tokenizer.backend_tokenizer.save(str(tiny_copy / "tokenizer.json"))
    with pytest.raises(BaseError, match="389 tokens, its model only 384"):
        load_base(tiny_copy)


@pytest.mark.parametrize("name", ["smollm2", "owner/model"])
def test_a_base_that_is_not_here_names_the_command(name: str) -> None:
    with pytest.raises(BaseError, match=f"whit pull {name}"):
        load_base(name)


def test_what_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("hello")
    for path in (tmp_path, tmp_path / "x.gguf", tmp_path / "absent"):
        with pytest.raises(BaseError):
            load_base(path)


def test_an_unknown_number_type(tiny_folder: Path) -> None:
    with pytest.raises(UsageError, match="auto, float32, bfloat16"):
        load_base(tiny_folder, dtype="float64")


def test_random_damage_to_a_gguf_never_raises_anything_else(tiny_gguf: Callable[[str], Path], tmp_path: Path) -> None:
    content, dice, path = tiny_gguf("F32").read_bytes(), random.Random(1), tmp_path / "damaged.gguf"
    for _ in range(60):
        changed = bytearray(content)
        for _ in range(dice.choice([1, 1, 2])):
            changed[dice.randrange(2000)] = dice.randrange(256)  # the metadata that makes the configuration
        path.write_bytes(changed)
        with contextlib.suppress(BaseError):
            load_base(path, dtype="float32")


def test_the_same_everywhere(tiny_folder: Path) -> None:
    """Another process with other threads and another hash seed finds the same base."""
    code = (
        "import sys, torch; torch.set_num_threads(2); from whit.bases import load_base; "
        "print(load_base(sys.argv[1], dtype='bfloat16').fingerprint)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny_folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == load_base(tiny_folder).fingerprint
    assert done.stderr == ""


@pytest.mark.slow
def test_smollm2(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_base(smollm2, dtype="float32")
    assert base.fingerprint == "2525c93f22b5c687a972e881ec4608b852383170ac79ed00320dc9d09daf13a0"
    assert (base.parameters, base.context, base.licence) == (134_515_008, 8192, "apache-2.0")
    assert base.stop_ids == (0, 2)
    expected = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    )
    assert torch.equal(logits(base.model), logits(expected))
    # the numbers of SmolLM2 are single digits, as its own tokenizer.json has it
    assert base.tokenizer.convert_ids_to_tokens(base.encode("in 2024")) == ["in", "Ġ", "2", "0", "2", "4"]
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = torch.tensor([base.encode(prompt)])
    answer = base.model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=list(base.stop_ids))
    assert "Paris" in base.decode(answer[0, ids.shape[1] :].tolist())
