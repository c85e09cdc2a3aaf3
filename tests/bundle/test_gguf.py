"""A written GGUF gives the same logits and the same tokens in whit and in transformers."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from whit.bases import load_base
from whit.bundle.gguf import LlamaShape, WordsToWrite, permute_rotary, split_rule, write_gguf
from whit.errors import BaseError, StorageError, UsageError
from whit.testing import write_tiny_base

TEXT = "Say 12 apples & 30  pears, it's\n\n a \u00e9 \U0001f600 test <|im_end|>\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="module")
def model(folder):
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def parts(folder, model):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    roles = {key: settings[f"{key}_token"] for key in ("bos", "eos", "pad")}
    words = WordsToWrite((folder / "tokenizer.json").read_text(), roles, settings.get("chat_template"))
    return model.state_dict(), LlamaShape.from_config(model.config.to_dict()), words


def logits(model):
    ids = torch.arange(40).remainder(300)[None]
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize(("kind", "off"), [("F32", 1e-5), ("F16", 2e-2), ("Q8_0", 0.15)])
def test_logits_are_those_of_the_model(parts, model, tmp_path, kind, off):
    path = write_gguf(tmp_path / "x.gguf", *parts, number_type=kind, name="x")
    ours = logits(load_base(path, dtype="float32").model)
    assert (ours - logits(model)).abs().max() < off


def test_transformers_reads_the_same_model_and_the_same_tokens(parts, model, tmp_path):
    path = write_gguf(tmp_path / "x.gguf", *parts, number_type="Q8_0", name="x")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf", dtype=torch.float32).eval()
    base = load_base(path, dtype="float32")
    torch.testing.assert_close(logits(theirs), logits(base.model), atol=1e-5, rtol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    assert tokenizer(TEXT, add_special_tokens=False)["input_ids"] == base.encode(TEXT)


def test_tokens_are_those_of_the_tokenizer(parts, folder, tmp_path):
    path = write_gguf(tmp_path / "x.gguf", *parts, name="x")
    written, original = load_base(path), load_base(folder)
    assert written.encode(TEXT) == original.encode(TEXT)
    assert written.stop_ids == original.stop_ids
    assert written.template.source == original.template.source


def test_mixed_types_are_stored_as_chosen(parts, tmp_path):
    def choose(name):
        return "Q4_0" if "mlp" in name else "F16"

    path = write_gguf(tmp_path / "x.gguf", *parts, number_type=choose, name="x")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert kinds["blk.0.ffn_up.weight"] == "Q4_0" and kinds["blk.0.attn_q.weight"] == "F16"
    assert kinds["blk.0.attn_norm.weight"] == "F32"


def test_an_exact_tensor_that_the_type_cannot_hold_is_refused_and_nothing_is_left(parts, tmp_path):
    with pytest.raises(BaseError, match="cannot be stored exactly"):
        write_gguf(tmp_path / "x.gguf", *parts, number_type="Q4_0", exact=lambda name: "q_proj" in name, name="x")
    assert list(tmp_path.iterdir()) == []


def test_an_untied_head_is_written_and_a_tied_one_is_not(parts, tmp_path):
    weights, shape, words = parts
    path = write_gguf(tmp_path / "tied.gguf", weights, shape, words, number_type="F32", name="x")
    assert "output.weight" not in {tensor.name for tensor in gguf.GGUFReader(path).tensors}
    head = torch.randn_like(weights["model.embed_tokens.weight"])
    path = write_gguf(
        tmp_path / "own.gguf", {**weights, "lm_head.weight": head}, shape, words, number_type="F32", name="x"
    )
    assert torch.equal(load_base(path, dtype="float32").weight("lm_head"), head)


def test_rotary_rows_are_permuted_as_llama_cpp_pairs_them():
    rows = np.arange(16.0).reshape(16, 1)  # two heads of eight: halves 0..3 and 4..7 become pairs
    assert permute_rotary(rows, 2)[:8, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert permute_rotary(rows, 2)[8:, 0].tolist() == [8, 12, 9, 13, 10, 14, 11, 15]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: w.pop("model.norm.weight"), "missing"),
        (lambda w: w.update({"model.extra.weight": torch.zeros(2)}), "unknown"),
        (lambda w: w.update({"model.norm.weight": torch.zeros(3)}), "shape"),
    ],
)
def test_weights_that_are_not_this_llama_are_refused(parts, tmp_path, change, told):
    weights = dict(parts[0])
    change(weights)
    with pytest.raises(BaseError, match=told):
        write_gguf(tmp_path / "x.gguf", weights, *parts[1:], name="x")


def test_a_row_that_no_block_fits_and_a_type_that_is_none_are_refused(parts, tmp_path):
    with pytest.raises(BaseError, match="no multiple of TQ2_0"):
        write_gguf(tmp_path / "x.gguf", *parts, number_type="TQ2_0", name="x")
    with pytest.raises(UsageError, match="Q3_K"):
        write_gguf(tmp_path / "x.gguf", *parts, number_type="Q3_K", name="x")


def test_other_architectures_and_biases_are_refused():
    with pytest.raises(BaseError, match="qwen2"):
        LlamaShape.from_config({"model_type": "qwen2"})
    with pytest.raises(BaseError, match="without biases"):
        LlamaShape.from_config({"model_type": "llama", "attention_bias": True})


def test_splitting_rules_have_llama_cpps_names():
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    assert split_rule({"pre_tokenizer": level}) == "gpt-2"
    assert split_rule({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, level]}}) == "smollm"
    for other in ({**level, "use_regex": False}, {"type": "Whitespace"}, None):
        with pytest.raises(BaseError, match="no name"):
            split_rule({"pre_tokenizer": other})


def test_a_folder_that_cannot_be_written_is_told(parts, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_gguf(tmp_path / "file" / "x.gguf", *parts, name="x")
