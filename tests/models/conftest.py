"""A recipe small enough to train in a second, and a corpus of generated sentences."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.config import EENY, Recipe, Shape
from models.corpus import Windows, encode_documents
from models.tokens import train_tokenizer

TEXT = "the a cat dog bird saw ran sat under over tree house big small red and then home again with"
WORDS = TEXT.split(" ")


@pytest.fixture(scope="session")
def texts() -> list[str]:
    rng = random.Random(1)
    return [" ".join(rng.choices(WORDS, k=60)).capitalize() + "." for _ in range(60)]


@pytest.fixture(scope="session")
def tokenizer(texts):
    return train_tokenizer(texts, 320)


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    shape = Shape(hidden=32, ffn=64, layers=2, heads=4, kv_heads=2, head=8, vocabulary=320, context=64)
    return replace(
        EENY, name="toy", shape=shape, mixture={"toy": 1}, sequence=16, batch=4, micro_batch=2, warmup_steps=2
    )


@pytest.fixture(scope="session")
def windows(texts, tokenizer, recipe) -> Windows:
    return Windows({"toy": encode_documents(tokenizer, texts)}, recipe.mixture, sequence=recipe.sequence, seed=1)
