"""A 5-gram model with interpolated modified Kneser-Ney smoothing, over tokens: what the networks have to beat.

Chen and Goodman (1999), "An empirical study of smoothing techniques", eq. 26 to 28: three discounts for each order,
lower orders by continuation counts. Promises probabilities that sum to one. Knows nothing of text.
"""

from __future__ import annotations

import numpy as np

BITS = 12  # of a token id: five of them fit one int64
ORDER = 5


def _lookup(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """`values` at `wanted` in the sorted `keys`, 0 where absent."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)


def _grams(tokens: np.ndarray, order: int) -> np.ndarray:
    """Every run of `order` tokens as one int64, at each position where it ends."""
    wide = tokens.astype(np.int64)
    keys = np.zeros(len(wide) - order + 1, dtype=np.int64)
    for offset in range(order):
        keys = (keys << BITS) | wide[offset : len(wide) - order + 1 + offset]
    return keys


class KneserNey:
    """Counts of a token stream (ids below 4,096), and the probability of another stream's tokens."""

    def __init__(self, tokens: np.ndarray, vocabulary: int):
        if vocabulary > 1 << BITS or len(tokens) <= ORDER:
            raise ValueError(f"needs more than {ORDER} tokens and a vocabulary of at most {1 << BITS}")
        self.vocabulary = vocabulary
        self.orders = []
        keys, counts = np.unique(_grams(tokens, ORDER), return_counts=True)
        for order in range(ORDER, 0, -1):
            of = np.bincount(np.minimum(counts, 5), minlength=5)[1:5].astype(float)
            scale = of[0] / max(1.0, of[0] + 2 * of[1])
            ratio = [of[i + 1] / of[i] if of[i] else 0.0 for i in range(3)]
            discounts = np.clip([0.0, *(i + 1 - (i + 2) * scale * ratio[i] for i in range(3))], 0.0, [0, 1, 2, 3])
            taken = discounts[np.minimum(counts, 3)]
            contexts, where = np.unique(keys >> BITS, return_inverse=True)
            totals = np.bincount(where, weights=counts)
            reserved = np.bincount(where, weights=taken)
            self.orders.append((keys, counts - taken, contexts, totals, reserved))
            if order > 1:
                # Continuation counts: how many different tokens stand before each shorter run.
                keys, counts = np.unique(keys & ((1 << BITS * (order - 1)) - 1), return_counts=True)
        self.orders.reverse()

    def probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """P(token | the four before it) for each token from the fifth on, float64 [len(tokens) - 4]."""
        length = len(tokens) - ORDER + 1
        p = np.full(length, 1.0 / self.vocabulary)
        for order, (keys, kept, contexts, totals, reserved) in enumerate(self.orders, start=1):
            wanted = _grams(tokens, order)[-length:]
            total = _lookup(contexts, totals, wanted >> BITS)
            known = total > 0
            mass = np.where(known, total, 1.0)
            p = np.where(
                known, (_lookup(keys, kept, wanted) + _lookup(contexts, reserved, wanted >> BITS) * p) / mass, p
            )
        return p
