"""The vocabulary of both models: byte-level BPE, 4,096 entries.

Promises that the same text gives the same tokens in `tokenizers`, in transformers and in llama.cpp. Numbers are
split into digits only while the merges are learned: no merge then holds a digit, and the plain GPT-2 rule, which
every loader knows by name, is enough ever after. Knows nothing of networks.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from models.config import SPECIAL_TOKENS
from whit.errors import DataError
from whit.files import atomic_write


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A `tokenizers.Tokenizer` with exactly `vocabulary` entries. Raises `DataError` where the text is too little."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocabulary:
        raise DataError(
            f"the corpus gives only {tokenizer.get_vocab_size()} of {vocabulary} vocabulary entries; give more text"
        )
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a `tokenizer.json`."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


def save_tokenizer(tokenizer: Any, path: Path) -> None:
    """Write `tokenizer.json`, whole or not at all."""
    atomic_write(path, tokenizer.to_str(pretty=False))
