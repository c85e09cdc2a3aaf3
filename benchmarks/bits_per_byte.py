"""Bits per byte on held-out books and dialogues: bases against a 5-gram Kneser-Ney model of the same corpus.

    python benchmarks/bits_per_byte.py --corpus FOLDER eeny meeny smollm2

The 5-gram is over the models' own tokens and sees every training document once. Each source counts alike in the mean.
Bases that saw the held-out books (SmolLM2 may have: they are on the web) are at an advantage here.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from models import corpus
from models.config import RECIPES
from models.ngram import KneserNey
from models.prepare import TOKENIZER, encoded_source
from models.score import Bits, network_bits, ngram_bits
from models.tokens import load_tokenizer
from whit.bases import load_base


def held_texts(folder: Path, sources: list[str], limit: int) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for source in sources:
        size, found[source] = 0, []
        for text in corpus.load_source(folder, source)[1]:
            if size < limit:
                found[source].append(text)
                size += len(text.encode())
    return found


def row(name: str, bits: dict[str, Bits], seconds: float) -> dict[str, object]:
    values = {source: round(b.per_byte, 4) for source, b in bits.items()}
    return {"model": name, **values, "mean": round(float(np.mean(list(values.values()))), 4), "seconds": round(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bases", nargs="*", default=["eeny"])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--mixture", choices=sorted(RECIPES), default="eeny", help="whose sources are used")
    parser.add_argument("--bytes", type=int, default=100_000, help="held-out bytes of each source")
    parser.add_argument("--no-ngram", action="store_true")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "whit" / "pretrain")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sources = list(RECIPES[arguments.mixture].mixture)
    held = held_texts(arguments.corpus, sources, arguments.bytes)
    print(json.dumps({"held out": {source: sum(len(t.encode()) for t in texts) for source, texts in held.items()}}))
    for name in arguments.bases:
        started = time.monotonic()
        base = load_base(name, dtype="float32")
        # SmolLM2 was trained with documents that begin after its end-of-text token, as ours were.
        begin = base.tokenizer.convert_tokens_to_ids("<|endoftext|>")
        bits = {
            source: network_bits(lambda ids, model=base.model: model(ids).logits, base.encode, texts, begin=begin)
            for source, texts in held.items()
        }
        print(json.dumps(row(base.name, bits, time.monotonic() - started)), flush=True)
    if not arguments.no_ngram:
        started = time.monotonic()
        tokenizer = load_tokenizer(TOKENIZER)
        train = [encoded_source(arguments.corpus, s, tokenizer, arguments.cache)["train"] for s in sources]
        model = KneserNey(np.concatenate(train), tokenizer.get_vocab_size())
        bits = {
            source: ngram_bits(model, lambda text: tokenizer.encode(text, add_special_tokens=False).ids, texts)
            for source, texts in held.items()
        }
        print(json.dumps(row("5-gram Kneser-Ney", bits, time.monotonic() - started)))


if __name__ == "__main__":
    main()
