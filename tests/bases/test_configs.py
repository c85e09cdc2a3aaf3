"""A configuration is checked before anything else sees it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from whit.bases.configs import folder_config, read_json, weight_files
from whit.errors import BaseError


def change(folder: Path, name: str = "config.json", **values: Any) -> None:
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | values))


def test_known_keys_are_believed_and_others_left_unread(tiny_copy: Path) -> None:
    change(tiny_copy, something_new=1, torchscript=True, transformers_version="9")
    architecture, config = folder_config(tiny_copy)
    assert architecture.model_type == "llama"
    assert config["hidden_size"] == 64
    assert not {"something_new", "torchscript", "transformers_version"} & set(config)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "values",
    [
        {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}},
        {"auto_map": "evil"},
        {"nested": {"deep": [{"auto_map": {"AutoConfig": "x.Y"}}]}},
        {"custom_pipelines": {"x": {"impl": "evil.Evil"}}},
        {"trust_remote_code": True},
        {"_attn_implementation": "someone/kernel"},
        {"text": {"attn_implementation": "someone/kernel:function"}},
    ],
)
def test_any_code_of_its_own_is_refused(tiny_copy: Path, name: str, values: dict[str, Any]) -> None:
    change(tiny_copy, name, **values)
    with pytest.raises(BaseError, match="code"):
        folder_config(tiny_copy)


@pytest.mark.parametrize("value", [None, False, {}, "sdpa"])
def test_harmless_values_pass(tiny_copy: Path, value: Any) -> None:
    change(tiny_copy, **({"_attn_implementation": value} if value == "sdpa" else {"auto_map": value}))
    folder_config(tiny_copy)


def test_a_deeply_nested_configuration_is_refused(tiny_copy: Path) -> None:
    nested: dict[str, Any] = {}
    for _ in range(60):
        nested = {"x": nested}
    change(tiny_copy, nested=nested)
    with pytest.raises(BaseError, match="deep"):
        folder_config(tiny_copy)
    (tiny_copy / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(BaseError, match="not JSON"):
        folder_config(tiny_copy)


@pytest.mark.parametrize("model_type", ["gpt2", "mixtral", "", None, 7, ["llama"], "LLAMA", "gemma3"])
def test_an_unknown_architecture_is_refused(tiny_copy: Path, model_type: Any) -> None:
    change(tiny_copy, model_type=model_type)
    with pytest.raises(BaseError, match="not supported; whit adapts llama"):
        folder_config(tiny_copy)


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": 10**12},
        {"hidden_size": -64},
        {"hidden_size": 64.0},
        {"hidden_size": "64"},
        {"hidden_size": None},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": True},
        {"vocab_size": 0},
        {"num_attention_heads": 0},
        {"num_key_value_heads": 3},
        {"max_position_embeddings": 2**40},
    ],
)
def test_absurd_sizes_are_refused(tiny_copy: Path, values: dict[str, Any]) -> None:
    change(tiny_copy, **values)
    with pytest.raises(BaseError, match=r"config\.json"):
        folder_config(tiny_copy)


def test_a_quantised_checkpoint_is_refused(tiny_copy: Path) -> None:
    change(tiny_copy, quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(BaseError, match="already quantised"):
        folder_config(tiny_copy)


@pytest.mark.parametrize("content", ["", "nothing", "[1]", '"text"', "\0\1\2"])
def test_a_configuration_that_is_no_object_is_refused(tiny_copy: Path, content: str) -> None:
    (tiny_copy / "config.json").write_text(content)
    with pytest.raises(BaseError, match=r"config\.json is not"):
        folder_config(tiny_copy)


def test_a_huge_json_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    with path.open("wb") as handle:
        handle.truncate(10_000_000_000)  # sparse
    with pytest.raises(BaseError, match="larger than 1000 bytes"):
        read_json(path, most=1000)


def test_a_folder_that_is_no_base_says_so(tmp_path: Path) -> None:
    with pytest.raises(BaseError, match=r"no config\.json"):
        folder_config(tmp_path)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("pwned"),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl", "model.ckpt", "x.pth"])
def test_pickles_are_refused_and_not_opened(tiny_copy: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_copy)
    (tiny_copy / "model.safetensors").unlink()
    (tiny_copy / name).write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(BaseError, match="pickles can run code"):
        weight_files(tiny_copy)
    assert not (tiny_copy / "pwned").exists()


def test_a_pickle_beside_safetensors_is_left_alone(tiny_copy: Path) -> None:
    (tiny_copy / "training_args.bin").write_bytes(pickle.dumps(_Evil()))
    assert [item.name for item in weight_files(tiny_copy)] == ["model.safetensors"]


def test_no_weights_at_all_says_so(tiny_copy: Path) -> None:
    (tiny_copy / "model.safetensors").unlink()
    with pytest.raises(BaseError, match=r"no model\.safetensors"):
        weight_files(tiny_copy)


@pytest.mark.parametrize("named", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "x.bin", "", 7])
def test_an_index_names_files_of_its_folder_only(tiny_copy: Path, named: Any) -> None:
    (tiny_copy.parent / "x.safetensors").write_bytes(b"x")
    change(tiny_copy, "model.safetensors.index.json", weight_map={"a": named})
    with pytest.raises(BaseError, match="no safetensors file of this folder"):
        weight_files(tiny_copy)


def test_a_missing_shard_is_named(tiny_copy: Path) -> None:
    change(tiny_copy, "model.safetensors.index.json", weight_map={"a": "part-2.safetensors"})
    with pytest.raises(BaseError, match=r"lacks part-2\.safetensors"):
        weight_files(tiny_copy)


@pytest.mark.parametrize("value", [None, {}, [], "x"])
def test_an_index_without_a_map_is_refused(tiny_copy: Path, value: Any) -> None:
    change(tiny_copy, "model.safetensors.index.json", weight_map=value)
    with pytest.raises(BaseError, match="weight_map"):
        weight_files(tiny_copy)
