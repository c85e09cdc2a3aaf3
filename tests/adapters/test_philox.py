"""Philox against Random123's published answers and against a second, scalar implementation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whit.adapters.philox import philox_blocks, philox_uniform, philox_words

# kat_vectors of Random123: philox4x32, 10 rounds: counter, key, answer
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def _words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter: str, key: str, answer: str) -> None:
    low, high = _words(key)
    counters = np.array([_words(counter)], dtype=np.uint64)
    assert philox_blocks(counters, key=high << 32 | low)[0].tolist() == _words(answer)


def test_a_stream_begins_with_the_known_block() -> None:
    assert philox_words(4, key=0, stream=(0, 0, 0)).tolist() == _words(KNOWN[0][2])


def _block(c: list[int], k: list[int]) -> list[int]:
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


word = st.integers(0, 0xFFFFFFFF)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.integers(0, (1 << 64) - 1), st.tuples(word, word, word))
def test_words_by_scalar_arithmetic(count: int, key: int, stream: tuple[int, int, int]) -> None:
    expected: list[int] = []
    for block in range(-(-count // 4)):
        expected += _block([block, *stream], [key & 0xFFFFFFFF, key >> 32])
    words = philox_words(count, key=key, stream=stream)
    assert words.dtype == np.uint32
    assert words.tolist() == expected[:count]


def test_uniform_numbers() -> None:
    numbers = philox_uniform(200_000, key=3, stream=(1, 2, 3), variance=0.5)
    assert numbers.dtype == np.float32
    assert abs(float(numbers.mean())) < 0.01
    assert float(numbers.var()) == pytest.approx(0.5, rel=0.01)
    assert float(np.abs(numbers).max()) <= 1.5**0.5
    assert not (numbers == 0).any()


def test_a_longer_stream_begins_with_the_shorter() -> None:
    long = philox_words(10, key=1, stream=(2, 3, 4))
    assert np.array_equal(philox_words(7, key=1, stream=(2, 3, 4)), long[:7])


@pytest.mark.parametrize("count", [-1, (1 << 34) + 1])
def test_impossible_lengths(count: int) -> None:
    with pytest.raises(ValueError, match="words"):
        philox_words(count, key=0, stream=(0, 0, 0))
