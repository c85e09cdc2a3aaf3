"""Bits per byte on held-out documents: the one figure in which models of any tokenizer can be compared.

Promises that every byte of a document is paid for, that a document begins after the end-of-text token and that each
token is given at least half a context (where there is one). Knows nothing of training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from models.config import END_OF_TEXT
from models.ngram import ORDER, KneserNey

Logits = Callable[[torch.Tensor], torch.Tensor]  # ids [1, positions] -> logits [1, positions, vocabulary]


@dataclass(frozen=True)
class Bits:
    """Total bits and bytes of the documents scored."""

    bits: float
    bytes: int

    @property
    def per_byte(self) -> float:
        return self.bits / self.bytes


@torch.no_grad()
def network_bits(logits: Logits, encode: Callable[[str], list[int]], texts: Sequence[str], *,
                 begin: int = END_OF_TEXT, context: int = 512) -> Bits:  # fmt: skip
    """Bits of `texts` under a network; long documents in windows that overlap by half."""
    total, half = 0.0, context // 2
    for text in texts:
        ids = torch.tensor([begin, *encode(text)])
        done = 1  # tokens paid for; the first is given
        while done < len(ids):
            first = max(0, done - half) if done > 1 else 0
            window = ids[first : first + context + 1]
            scores = logits(window[None, :-1])[0].float().log_softmax(dim=-1)
            paid = scores.gather(1, window[1:, None])[done - first - 1 :]
            total -= paid.sum().item()
            done = first + len(window)
    return Bits(total / math.log(2), sum(len(text.encode()) for text in texts))


def ngram_bits(model: KneserNey, encode: Callable[[str], list[int]], texts: Sequence[str]) -> Bits:
    """Bits of `texts` under a 5-gram model."""
    total = 0.0
    for text in texts:
        ids = np.array([END_OF_TEXT] * (ORDER - 1) + encode(text), dtype=np.int64)
        total -= np.log2(model.probabilities(ids)).sum()
    return Bits(float(total), sum(len(text.encode()) for text in texts))
