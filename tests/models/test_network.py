"""The network equals transformers' Llama; ternary weights are what TQ2_0 can hold."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models.config import EENY, MEENY, MEENY_TWIN, Shape
from models.network import Network, Projection, attend, ternarise

TERNARY = Shape(hidden=256, ffn=256, layers=1, heads=4, kv_heads=2, head=64, vocabulary=64, context=32, ternary=True)


def transformers_twin(network: Network) -> LlamaForCausalLM:
    shape = network.shape
    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head,
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.context,
        rms_norm_eps=shape.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(network.state_for_transformers(), strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    model.tie_weights()
    return model


@pytest.mark.parametrize("ternary", [False, True])
@torch.no_grad()
def test_logits_equal_transformers(recipe, ternary):
    network = Network(TERNARY if ternary else recipe.shape)
    network.initialise(3)
    for parameter in network.parameters():
        if parameter.dim() == 1:
            parameter.copy_(torch.rand(parameter.shape) + 0.5)  # a norm that does nothing would hide a mix-up
    ids = torch.randint(0, network.shape.vocabulary, (2, 24))
    torch.testing.assert_close(network(ids), transformers_twin(network)(ids).logits, atol=2e-5, rtol=1e-4)


def test_a_ternary_weight_survives_tq2_0_exactly():
    W = torch.randn(8, 768)
    W[2, :256] = 0  # a dead block
    effective = ternarise(W).numpy()
    stored = gguf.quants.quantize(effective, gguf.GGMLQuantizationType.TQ2_0)
    assert np.array_equal(gguf.quants.dequantize(stored, gguf.GGMLQuantizationType.TQ2_0), effective)


def test_ternary_scale_is_the_mean_of_each_block():
    W = torch.cat([torch.full((1, 256), 0.5), torch.full((1, 256), 4.0)], dim=1)
    assert torch.equal(ternarise(W).unique(), torch.tensor([0.5, 4.0]))


def test_the_gradient_passes_straight_through_the_rounding():
    module = Projection(256, 4, ternary=True)
    x = torch.randn(3, 256)
    module(x).sum().backward()
    torch.testing.assert_close(module.weight.grad, x.sum(0).expand(4, 256))


def test_a_ternary_row_that_no_block_fits_is_refused():
    with pytest.raises(ValueError, match="256"):
        Projection(128, 4, ternary=True)


@pytest.mark.parametrize(("recipe", "least", "most"), [(EENY, 0.9e6, 1.0e6), (MEENY, 5e6, 7e6), (MEENY_TWIN, 5e6, 7e6)])
def test_sizes_are_those_of_the_plan(recipe, least, most):
    with torch.device("meta"):
        assert least <= sum(p.numel() for p in Network(recipe.shape).parameters()) <= most


def test_more_positions_than_the_context_are_refused(recipe):
    with pytest.raises(ValueError, match="context"):
        Network(recipe.shape)(torch.zeros(1, 65, dtype=torch.long))


def test_attention_in_bfloat16_is_that_of_float32_rounded():
    generator = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(2, 3, 40, 16, generator=generator).requires_grad_() for _ in range(3))
    expected = attend(q, k, v)
    wanted = torch.autograd.grad(expected.square().sum(), (q, k, v))
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(q, k, v)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.03)
    for mine, theirs in zip(torch.autograd.grad(found.float().square().sum(), (q, k, v)), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=0.2, rtol=0.1)
