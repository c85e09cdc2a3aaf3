"""From a corpus folder to windows of tokens: the tokenizer, the token cache, the hub.

Promises that tokens are kept by content: another text, tokenizer or rule of holding out makes them anew.
Knows nothing of networks.
"""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np

from models import corpus
from models.config import TOKENIZER_MIXTURE, Recipe
from models.pretrain import Validation
from models.tokens import load_tokenizer, save_tokenizer, train_tokenizer
from whit.errors import DataError
from whit.files import atomic_open, atomic_write

TOKENIZER = Path(__file__).resolve().parent / "tokenizer.json"  # committed: 4,096 entries, both models
VALIDATION_WINDOWS = 8  # of each source, for the curve
_RULES = (corpus.held_books, corpus.split_source, corpus.load_source, corpus.documents, corpus.encode_documents)


def make_tokenizer(folder: Path, path: Path) -> Any:
    """The tokenizer of `path`, trained on the folder's text where it does not exist yet."""
    if not path.exists():
        texts = [t for source in TOKENIZER_MIXTURE for t in corpus.load_source(folder, source)[0]]
        save_tokenizer(train_tokenizer(texts, 4096), path)
    return load_tokenizer(path)


def encoded_source(folder: Path, source: str, tokenizer: Any, cache: Path) -> dict[str, np.ndarray]:
    """Tokens and starts of a source's train and held-out parts, kept in the cache by content."""
    rules = "".join(inspect.getsource(rule) for rule in _RULES) + repr((corpus.HELD_SHARE, corpus.HELD_SHARES))
    content = corpus.find_source(folder, source).read_bytes()
    key = hashlib.sha256(content + tokenizer.to_str().encode() + rules.encode()).hexdigest()
    kept = cache / "tokens" / f"{source}-{key[:16]}.npz"
    if not kept.exists():
        train, held = corpus.load_source(folder, source)
        parts = {}
        for name, texts in (("train", train), ("held", held)):
            parts[name], parts[f"{name}_starts"] = corpus.encode_documents(tokenizer, texts)
            parts[f"{name}_bytes"] = np.array(sum(len(text.encode()) for text in texts))
        with atomic_open(kept) as handle:
            np.savez(handle, **parts)
    with np.load(kept) as loaded:
        return dict(loaded)


def prepare(recipe: Recipe, folder: Path, cache: Path, tokenizer: Any) -> tuple[corpus.Windows, Validation | None]:
    """The training windows, and a few held-out windows of each source (None where too little is held out)."""
    if not folder.is_dir() or not any(folder.iterdir()):
        raise DataError(
            f"{folder} is not a folder with text in it; give one file for each of {', '.join(recipe.mixture)}"
        )
    sources = {name: encoded_source(folder, name, tokenizer, cache) for name in recipe.mixture}
    train = {name: (parts["train"], parts["train_starts"]) for name, parts in sources.items()}
    windows = corpus.Windows(train, recipe.mixture, sequence=recipe.sequence, seed=recipe.seed)
    size = recipe.sequence + 1
    held = []
    for parts in sources.values():
        count = min(VALIDATION_WINDOWS, len(parts["held"]) // size)
        held.append(parts["held"][: count * size].reshape(count, size))
    together = np.concatenate(held).astype(np.int64)
    if not len(together):
        return windows, None
    tokens = sum(len(parts["held"]) for parts in sources.values())
    return windows, Validation(together, sum(int(parts["held_bytes"]) for parts in sources.values()) / tokens)


def save_hub(name: str, column: str, folder: Path) -> Path:
    """A data set of the hub as a corpus folder with the one source `hub`; fetched once. Returns the folder."""
    path = folder / "hub.train.txt"
    if not path.exists():
        text = f"\n{corpus.SEPARATOR}\n".join(corpus.hub_documents(name, column=column))
        if not text:
            raise DataError(f"{name!r} has no text in its column {column!r}")
        atomic_write(path, text)
    return folder
