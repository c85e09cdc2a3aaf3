"""Batching: every row once an epoch, the same order for the same seed, targets only where an answer is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whit.data.rows import Row, Turn
from whit.data.templates import Encoded
from whit.errors import DataError
from whit.training.batching import collate, named, order, steps_in

lengths = st.lists(st.integers(1, 400), min_size=1, max_size=300)
seeds = st.integers(0, 2**32)


def encoded(prompt: list[int], completion: list[int], id: str = "r") -> Encoded:
    return Encoded(Row(id=id, turns=(Turn("user", "?"),), completion="!"), prompt, completion)


@settings(deadline=None, max_examples=50)
@given(lengths, st.integers(1, 40), seeds, st.integers(0, 50))
def test_every_row_once_an_epoch(lengths: list[int], batch: int, seed: int, epoch: int) -> None:
    steps = order(lengths, batch, seed=seed, epoch=epoch)
    assert sorted(place for step in steps for place in step) == list(range(len(lengths)))
    assert all(len(step) <= batch for step in steps)
    assert len(steps) == -(-len(lengths) // batch)  # so that a step's number names its rows


@settings(deadline=None, max_examples=50)
@given(lengths, st.integers(1, 40), seeds, st.integers(0, 50))
def test_the_order_follows_from_the_seed_alone(lengths: list[int], batch: int, seed: int, epoch: int) -> None:
    torch.manual_seed(len(lengths))
    first = order(lengths, batch, seed=seed, epoch=epoch)
    torch.rand(3)
    assert order(lengths, batch, seed=seed, epoch=epoch) == first


def test_epochs_and_seeds_shuffle_anew() -> None:
    rows = [5] * 60
    orders = [order(rows, 8, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(one != other for at, one in enumerate(orders) for other in orders[:at])
    steps = [{frozenset(step) for step in found} for found in orders]
    assert not steps[0] & steps[1]  # other rows share a step, too


def test_rows_of_like_length_share_a_step() -> None:
    rows = [1 + (place * 37) % 200 for place in range(400)]
    padded = sum(len(step) * max(rows[place] for place in step) for step in order(rows, 8, seed=0, epoch=0))
    assert padded < 1.2 * sum(rows)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 5000), st.integers(1, 64), st.floats(0.01, 20))
def test_steps_in_counts_whole_steps(rows: int, batch: int, epochs: float) -> None:
    steps = steps_in(rows, batch, epochs)
    assert steps >= 1 and abs(steps - -(-rows // batch) * epochs) <= 1


def test_collate_asks_for_the_answers_tokens_only() -> None:
    batch = collate([encoded([11, 12, 13], [21, 22], "a"), encoded([14], [23], "b")])
    assert batch.tokens.tolist() == [[11, 12, 13, 21], [14, 0, 0, 0]]
    assert batch.at.tolist() == [[0, 2], [0, 3], [1, 0]] and batch.wanted.tolist() == [21, 22, 23]
    assert batch.rows == ("a", "b") and batch.size == 8


def test_a_row_with_every_label_masked_is_refused(encode: Callable[[int], list[Encoded]]) -> None:
    with pytest.raises(DataError, match="every label of id empty is masked"):
        collate([*encode(2), encoded([11, 12], [], "empty")])


def test_rows_without_an_id_of_their_own_are_named_by_line() -> None:
    made = "row-0123456789abcdef"
    rows = [encoded([1], [2], id) for id in (made, f"{made}-2", "row-13", "r")]
    rows = [replace(each, row=replace(each.row, line=line)) for line, each in enumerate(rows, 7)]
    assert named([made, f"{made}-2"], rows) == f"line 7 ({made}), line 8 ({made}-2)"
    assert named(["r", "row-13", "gone"], rows) == "r, row-13, gone"
