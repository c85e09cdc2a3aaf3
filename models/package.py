"""From a trained network to the GGUF file that whit ships.

Promises that the ternary projections are stored exactly. Knows nothing of how the network was trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.config import CHAT_TEMPLATE, SPECIAL_TOKENS, TURN_END, Recipe
from models.network import Network
from whit.bundle.gguf import LlamaShape, WordsToWrite, write_gguf

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
