"""The vocabulary: every text comes back, digits stay apart, and all loaders split alike."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.config import SPECIAL_TOKENS
from models.prepare import TOKENIZER
from models.tokens import load_tokenizer, train_tokenizer
from whit.errors import DataError

SHIPPED = load_tokenizer(TOKENIZER)


@given(st.text())
def test_any_text_comes_back(text):
    ids = SHIPPED.encode(text, add_special_tokens=False).ids
    assert SHIPPED.decode(ids, skip_special_tokens=False) == text


def test_size_and_special_tokens():
    assert SHIPPED.get_vocab_size() == 4096
    assert [SHIPPED.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2]


def test_no_token_holds_a_digit_beside_anything():
    assert [t for t in SHIPPED.get_vocab() if len(t) > 1 and any(c.isdigit() for c in t)] == []


def test_too_little_text_is_refused():
    with pytest.raises(DataError, match="of 4096"):
        train_tokenizer(["the cat"], 4096)
