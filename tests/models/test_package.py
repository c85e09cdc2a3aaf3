"""What the file holds is what was trained: ternary projections to the bit, the rest within Q8_0."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from models.config import EENY, MEENY, Shape
from models.network import Network
from models.package import read, write
from models.prepare import TOKENIZER
from models.tokens import load_tokenizer
from whit.bases import load_base
from whit.errors import DataError

SMALL = Shape(hidden=256, ffn=512, layers=2, heads=4, kv_heads=2, head=64, context=32, ternary=True)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TOKENIZER)


@torch.no_grad()
def test_the_ternary_file_is_the_trained_forward(tokenizer, tmp_path):
    recipe = replace(MEENY, shape=SMALL)
    network = Network(recipe.shape)
    network.initialise(1)
    path = write(recipe, network, tokenizer, tmp_path / "meeny.gguf")
    base = load_base(path, dtype="float32")
    for name, W in network.state_for_transformers().items():
        if name.endswith("_proj.weight"):
            assert torch.equal(base.weight(name.removesuffix(".weight")), W), name
    # With the embedding as the file rounds it, nothing is left to differ.
    network.embed_tokens.weight.copy_(base.weight("model.embed_tokens"))
    ids = torch.randint(0, 4096, (2, 24))
    torch.testing.assert_close(network(ids), base.model(ids).logits, atol=2e-4, rtol=1e-4)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="meeny.gguf", dtype=torch.float32).eval()
    torch.testing.assert_close(theirs(ids).logits, base.model(ids).logits, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("recipe", "most"), [(EENY, 1.3e6), (MEENY, 2.6e6)])
def test_files_are_as_small_as_they_have_to_be(recipe, most, tokenizer, tmp_path):
    network = Network(recipe.shape)
    network.initialise(1)
    assert write(recipe, network, tokenizer, tmp_path / "x.gguf").stat().st_size <= most


def test_special_tokens_and_template_arrive(tokenizer, tmp_path):
    network = Network(EENY.shape)
    network.initialise(1)
    base = load_base(write(EENY, network, tokenizer, tmp_path / "x.gguf"))
    assert base.stop_ids == (0, 2) and base.context == 1024
    text = "<|im_start|>user\nIt's 7  o'clock\n\n in 1999<|im_end|>\n"
    assert base.encode(text) == tokenizer.encode(text, add_special_tokens=False).ids
    assert base.template.takes_system


@pytest.mark.parametrize("ternary", [False, True])
def test_a_published_file_is_where_training_can_go_on(ternary, tokenizer, tmp_path):
    recipe = replace(MEENY, shape=replace(SMALL, ternary=ternary))
    network = Network(recipe.shape)
    network.initialise(2)
    path = write(recipe, network, tokenizer, tmp_path / "x.gguf")
    again = Network(recipe.shape)
    again.load_state_dict(read(recipe, str(path)))
    stored = load_base(path, dtype="float32").model.state_dict()
    for name, weight in again.state_for_transformers().items():
        assert torch.equal(weight, stored[name]), name
    with pytest.raises(DataError, match="is no eeny"):
        read(EENY, str(path))
