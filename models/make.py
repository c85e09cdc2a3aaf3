"""Make eeny or meeny: `python models/make.py eeny --corpus FOLDER`.

One command per model. Run again after any stop, it goes on from the last checkpoint. Tokenizer, tokens, checkpoints and
curve lie in the cache folder. Parses and calls; the work is in the modules beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from models import corpus
from models.config import RECIPES, TOKENIZER_MIXTURE, Recipe
from models.pretrain import Plan, Validation, pretrain
from models.tokens import load_tokenizer, save_tokenizer, train_tokenizer
from whit.errors import DataError, WhitError
from whit.files import atomic_open

TOKENIZER = Path(__file__).resolve().parent / "tokenizer.json"  # committed: 4,096 entries, both models
VALIDATION_WINDOWS = 8  # of each source, for the curve


def make_tokenizer(folder: Path, path: Path) -> Any:
    """The tokenizer of `path`, trained on the folder's text where it does not exist yet."""
    if not path.exists():
        texts = [t for source in TOKENIZER_MIXTURE for t in corpus.load_source(folder, source)[0]]
        save_tokenizer(train_tokenizer(texts, 4096), path)
    return load_tokenizer(path)


def encoded_source(folder: Path, source: str, tokenizer: Any, cache: Path) -> dict[str, np.ndarray]:
    """Tokens and starts of a source's train and held-out parts, kept in the cache by content."""
    path = corpus.find_source(folder, source)
    key = hashlib.sha256(path.read_bytes() + tokenizer.to_str().encode() + Path(corpus.__file__).read_bytes())
    kept = cache / "tokens" / f"{source}-{key.hexdigest()[:16]}.npz"
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


def prepare(recipe: Recipe, folder: Path, cache: Path, tokenizer: Any) -> tuple[corpus.Windows, Validation]:
    """The training windows, and a few held-out windows of each source."""
    if not folder.is_dir() or not any(folder.iterdir()):
        raise DataError(f"{folder} is not a folder with text in it; give one file for each source of {recipe.mixture}")
    sources = {name: encoded_source(folder, name, tokenizer, cache) for name in recipe.mixture}
    train = {name: (parts["train"], parts["train_starts"]) for name, parts in sources.items()}
    windows = corpus.Windows(train, recipe.mixture, sequence=recipe.sequence, seed=recipe.seed)
    size = recipe.sequence + 1
    held = []
    for parts in sources.values():
        count = min(VALIDATION_WINDOWS, len(parts["held"]) // size)
        held.append(parts["held"][: count * size].reshape(count, size))
    tokens = sum(len(parts["held"]) for parts in sources.values())
    ratio = sum(int(parts["held_bytes"]) for parts in sources.values()) / max(1, tokens)
    return windows, Validation(np.concatenate(held).astype(np.int64), ratio)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--corpus", type=Path, required=True, help="folder with one text file for each source")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "whit" / "pretrain")
    parser.add_argument("--tokens", type=float, default=15e6, help="positions to train on, all sessions together")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--micro-batch", type=int, help="sequences in one forward: about memory only")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recipe = RECIPES[arguments.model]
    if arguments.micro_batch:
        recipe = replace(recipe, micro_batch=arguments.micro_batch)
    folder = arguments.cache / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(arguments.corpus, TOKENIZER)
    windows, validation = prepare(recipe, arguments.corpus, arguments.cache, tokenizer)
    steps = max(1, round(arguments.tokens / (recipe.batch * recipe.sequence)))
    print(f"{recipe.name}: {steps} steps, {windows.per_epoch * recipe.sequence} tokens in an epoch", file=sys.stderr)
    pretrain(recipe, windows, validation, Plan(folder, steps, device=arguments.device))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except WhitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
