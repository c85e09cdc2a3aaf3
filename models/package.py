"""From a trained network to the GGUF file that whit ships, and back.

Promises that the ternary projections are stored exactly, and read back as weights that give the same. Knows nothing of
how the network was trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from models.config import CHAT_TEMPLATE, SPECIAL_TOKENS, TURN_END, Recipe
from models.network import BLOCK, Network, transformers_name
from whit.bases.load import load_base
from whit.bundle.gguf import LlamaShape, WordsToWrite, write_gguf
from whit.errors import DataError

LICENCE = "Apache-2.0"


def llama_shape(recipe: Recipe) -> LlamaShape:
    """The dimensions as the GGUF writer takes them."""
    shape = recipe.shape
    return LlamaShape(
        hidden=shape.hidden, ffn=shape.ffn, layers=shape.layers, heads=shape.heads, kv_heads=shape.kv_heads,
        head=shape.head, context=shape.context, rope_theta=shape.rope_theta, norm_eps=shape.norm_eps,
    )  # fmt: skip


def write(recipe: Recipe, network: Network, tokenizer: Any, path: Path) -> Path:
    """Write the GGUF: projections TQ2_0 where ternary, else Q8_0; embedding Q8_0; norms F32."""
    end_of_text = SPECIAL_TOKENS[0]
    words = WordsToWrite(
        tokenizer.to_str(),
        {"bos": end_of_text, "eos": SPECIAL_TOKENS[TURN_END], "pad": end_of_text},
        CHAT_TEMPLATE,
    )

    def ternary(name: str) -> bool:
        return recipe.shape.ternary and name.endswith("_proj.weight")

    return write_gguf(
        path,
        network.state_for_transformers(),
        llama_shape(recipe),
        words,
        number_type=lambda name: "TQ2_0" if ternary(name) else "Q8_0",
        exact=ternary,
        name=recipe.name,
        licence=LICENCE,
        description=f"{recipe.name}: a small English model of whit's own; it knows almost nothing. See its card.",
    )


def read(recipe: Recipe, base: str) -> dict[str, torch.Tensor]:
    """The weights of a published base, by the names of `Network`: to go on where the checkpoints are lost.

    A ternary block is widened by the inverse of its share of non-zeros, since its scale is the mean of all 256: so
    `ternarise` gives back what the file holds. Raises `DataError` where the base is of another shape.
    """
    stored = load_base(base, dtype="float32").model.state_dict()
    found = {}
    for name, wanted in Network(recipe.shape).state_dict().items():
        weight = stored.get(transformers_name(name))
        if weight is None or weight.shape != wanted.shape:
            raise DataError(f"{base} is no {recipe.name}: it has no {name} of {list(wanted.shape)}")
        if recipe.shape.ternary and name.endswith("_proj.weight"):
            blocks = weight.view(weight.shape[0], -1, BLOCK)
            share = (blocks != 0).float().mean(dim=-1, keepdim=True).clamp(min=1 / BLOCK)
            weight = (blocks / share).view_as(weight)
        found[name] = weight.clone()
    return found
