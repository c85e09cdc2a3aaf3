"""The two models' dimensions, mixtures and training settings: one frozen dataclass each.

Promises that everything which changes the trained numbers is in here, so that `fingerprint` tells whether
a checkpoint belongs to a recipe. Knows nothing of torch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace

# Ids 0, 1, 2 of the vocabulary, in this order.
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_OF_TEXT, TURN_START, TURN_END = range(3)

# ChatML, as SmolLM2's, without a default system turn.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """A Llama decoder's dimensions. `ternary` says that projections hold {-s, 0, +s} per block of 256."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int = 4096
    context: int = 1024
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    ternary: bool = False


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a model becomes. Rates are per step; `tokens` counts trained positions."""

    name: str
    shape: Shape
    mixture: dict[str, int] = field(default_factory=dict)  # corpus file stem -> times seen in one epoch
    sequence: int = 512
    batch: int = 8  # sequences in a step
    micro_batch: int = 4  # sequences in one forward; does not change the sum of gradients
    matrix_rate: float = 0.04  # Muon, for the projections
    vector_rate: float = 0.01  # AdamW, for embeddings and norms
    matrix_decay: float = 0.01
    warmup_steps: int = 100
    decay_share: float = 0.25  # of all steps, at the end: the "D" of warm-up, stable, decay
    clip: float = 1.0
    seed: int = 20

    def fingerprint(self) -> str:
        """64 hex digits over all settings except `micro_batch`, which is about memory and not about numbers."""
        settings = asdict(replace(self, micro_batch=0))
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


# The vocabulary is trained on the same text for both models, so that they share one tokenizer.
TOKENIZER_MIXTURE = {"gutenberg_kids": 1, "sgd_dialogue": 1, "fairytale": 1, "tinystories": 1}

EENY = Recipe(
    name="eeny",
    shape=Shape(hidden=128, ffn=192, layers=4, heads=4, kv_heads=1, head=32),
    # 19th century prose for adults is left out: a million parameters are too few for it.
    mixture={"gutenberg_kids": 1, "sgd_dialogue": 1, "fairytale": 2, "tinystories": 3},
)

MEENY = Recipe(
    name="meeny",
    decay_share=0.65,
    shape=Shape(hidden=256, ffn=768, layers=6, heads=4, kv_heads=2, head=64, ternary=True),
    mixture={
        "gutenberg_kids": 1,
        "gutenberg_simple_adult": 1,
        "sgd_dialogue": 1,
        "fairytale": 2,
        "tinystories": 3,
    },
)

# The same network and tokens without ternary weights: what the 1.58 bits cost is measured against it.
MEENY_TWIN = replace(MEENY, name="meeny-twin", shape=replace(MEENY.shape, ternary=False))

RECIPES = {recipe.name: recipe for recipe in (EENY, MEENY, MEENY_TWIN)}
