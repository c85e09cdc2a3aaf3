"""Bits per byte, against counting by hand; the 5-gram model, against a plain one and as a distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.ngram import KneserNey
from models.score import network_bits, ngram_bits


def test_a_uniform_network_pays_log2_of_the_vocabulary_for_each_token():
    def logits(ids):
        return torch.zeros(*ids.shape, 256)

    bits = network_bits(logits, lambda text: list(text.encode()), ["abc" * 700, "é"], context=64)
    assert bits.bytes == 2102 and bits.per_byte == pytest.approx(8.0)


def test_each_token_is_paid_for_once_whatever_the_windows():
    torch.manual_seed(0)
    table = torch.randn(256, 256)

    def bigram(ids):  # needs one token of context, so that every windowing must agree
        return table[ids]

    text = "the cat sat on the mat " * 40
    whole = network_bits(bigram, lambda t: list(t.encode()), [text], context=10_000)
    assert network_bits(bigram, lambda t: list(t.encode()), [text], context=32).bits == pytest.approx(whole.bits)


def test_kneser_ney_sums_to_one_for_seen_and_unseen_contexts():
    rng = np.random.default_rng(0)
    model = KneserNey(rng.integers(0, 20, 3000), 20)
    for context in ([1, 2, 3, 4], [0, 0, 0, 0], rng.integers(0, 20, 4).tolist()):
        assert sum(model.probabilities(np.array([*context, w]))[0] for w in range(20)) == pytest.approx(1.0)


def test_kneser_ney_learns_and_beats_chance():
    stream = np.array([0, 1, 2, 3, 4, 5, 6, 7] * 200)
    assert -np.log2(KneserNey(stream, 8).probabilities(stream)).mean() < 0.1


def test_kneser_ney_of_a_rare_word_counts_its_contexts_not_its_mentions():
    # "san francisco": 9 follows only 8, however often; unseen after 5, a word of many contexts is likelier.
    stream = np.array([8, 9] * 300 + [w for c in range(1, 7) for w in (c, 7)] * 10)
    p9, p7 = (KneserNey(stream, 10).probabilities(np.array([0, 0, 0, 0, w]))[0] for w in (9, 7))
    assert p7 > p9


def test_ngram_bits_count_all_bytes():
    model = KneserNey(np.arange(400) % 7, 8)
    bits = ngram_bits(model, lambda text: [ord(c) % 7 for c in text], ["abcdef", "gh"])
    assert bits.bytes == 8 and bits.bits > 0 and math.isfinite(bits.bits)
