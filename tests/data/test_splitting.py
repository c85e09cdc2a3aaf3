"""Splits: by content, stable, with what belongs together on one side."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whit.data.rows import Row, Turn, read_rows
from whit.data.similarity import jaccard, pieces
from whit.data.splitting import Split, hold_apart, split_rows
from whit.errors import DataError, UsageError


def row(text: str, answer: str = "", group: str | None = None, id: str | None = None) -> Row:
    return Row(id or text, (Turn("user", text),), answer or str(len(text) % 2), group)


def sentences(count: int, seed: int = 0) -> list[Row]:
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(400)]
    return [row(" ".join(draw.choices(words, k=8)), draw.choice("xy"), id=f"{seed}-{i}") for i in range(count)]


def sides(split: Split) -> dict[str, str]:
    return {r.id: side for side in ("train", "validation", "test") for r in getattr(split, side)}


def test_shares_are_met_and_every_row_is_somewhere() -> None:
    rows = sentences(3000)
    split = split_rows(rows, validation=0.1, test=0.2)
    assert len(sides(split)) == 3000
    # Three standard deviations of a binomial are 66 and 49 rows.
    assert abs(len(split.test) - 600) < 66 and abs(len(split.validation) - 300) < 49
    order = {r.id: i for i, r in enumerate(rows)}
    assert [order[r.id] for r in split.train] == sorted(order[r.id] for r in split.train)


def test_sides_do_not_depend_on_order_or_on_ids() -> None:
    rows = sentences(300)
    before = sides(split_rows(rows))
    shuffled = random.Random(3).sample(rows, len(rows))
    assert sides(split_rows(shuffled)) == before
    renamed = [replace(r, id=f"new-{r.id}") for r in rows]
    assert sides(split_rows(renamed)) == {f"new-{i}": side for i, side in before.items()}


def test_sides_do_not_depend_on_what_is_added() -> None:
    rows = sentences(300)
    before = sides(split_rows(rows))
    after = sides(split_rows([*sentences(500, seed=1), *rows]))
    assert all(after[identity] == side for identity, side in before.items())


def test_another_seed_is_another_split() -> None:
    rows = sentences(300)
    assert sides(split_rows(rows, seed=0)) != sides(split_rows(rows, seed=1))
    assert sides(split_rows(rows, seed=1)) == sides(split_rows(rows, seed=1))


def test_groups_stay_together() -> None:
    rows = [replace(r, group=f"g{i % 40}") for i, r in enumerate(sentences(400))]
    where = sides(split_rows(rows))
    for group in {r.group for r in rows}:
        assert len({where[r.id] for r in rows if r.group == group}) == 1


def test_near_duplicates_stay_together() -> None:
    rows = sentences(200)
    changed = [row(r.prompt[:-1] + "!", r.completion, id=f"again-{r.id}") for r in rows]
    where = sides(split_rows([*rows, *changed]))
    assert all(where[r.id] == where[f"again-{r.id}"] for r in rows)
    apart = sides(split_rows([*rows, *changed], near_duplicates=False))
    assert any(apart[r.id] != apart[f"again-{r.id}"] for r in rows)


def test_same_input_stays_together_whatever_its_answer_and_case() -> None:
    rows = sentences(100)
    again = [row(r.prompt.upper(), "other", id=f"again-{r.id}") for r in rows]
    where = sides(split_rows([*rows, *again], near_duplicates=False))
    assert all(where[r.id] == where[f"again-{r.id}"] for r in rows)


texts = st.text("abcd ", min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(texts, st.sampled_from([None, "g", "h"])), min_size=6, max_size=25), st.integers(0, 9))
def test_any_rows_are_split_without_leaks_or_not_at_all(drawn: list[tuple[str, str | None]], seed: int) -> None:
    rows = [row(text, answer=str(i), group=group, id=str(i)) for i, (text, group) in enumerate(drawn)]
    try:
        split = split_rows(rows, seed=seed)
    except DataError as error:
        assert "held-out" in str(error) or "same answer" in str(error)
        return
    where = sides(split)
    assert len(where) == len(rows) and split.train and split.validation and split.test
    for a in rows:
        for b in rows:
            if where[a.id] != where[b.id]:
                assert a.prompt.split() != b.prompt.split()
                assert a.group is None or a.group != b.group
    assert sides(split_rows(random.Random(seed).sample(rows, len(rows)), seed=seed)) == where


def test_near_duplicates_are_not_split_across_sides_by_exact_similarity() -> None:
    draw = random.Random(5)
    rows = [r for base in sentences(60) for r in (base, row(base.prompt + draw.choice("?! "), "x", id=base.id + "b"))]
    split = split_rows(rows)
    held = [pieces(r.prompt) for r in split.test]
    assert all(jaccard(pieces(r.prompt), other) < 0.8 for r in split.train for other in held)


def test_guards() -> None:
    with pytest.raises(DataError, match="no rows"):
        split_rows([])
    with pytest.raises(DataError, match="one row"):
        split_rows(sentences(1))
    with pytest.raises(DataError, match=r"same answer 'x'"):
        split_rows([replace(r, completion="x") for r in sentences(30)])
    with pytest.raises(DataError, match="0 held-out rows"):
        split_rows([replace(r, group="all") for r in sentences(30)])
    with pytest.raises(DataError, match="0 held-out rows"):
        split_rows([row("the same text as always", str(i), id=str(i)) for i in range(30)])
    with pytest.raises(UsageError):
        split_rows(sentences(30), validation=0.5, test=0.5)
    with pytest.raises(UsageError):
        split_rows(sentences(30), test=-0.1)


@pytest.mark.parametrize("seed", range(30))
def test_few_rows_still_give_every_side_something(seed: int) -> None:
    rows = [
        row(text, str(i), id=str(i))
        for i, text in enumerate(["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"])
    ]
    split = split_rows(rows, validation=0.01, test=0.01, seed=seed)
    assert split.train and split.validation and split.test
    assert not split_rows(rows, validation=0, seed=seed).validation


def test_a_share_of_nothing_is_nothing() -> None:
    split = split_rows(sentences(50), validation=0, test=0)
    assert len(split.train) == 50 and not split.test and not split.validation


@pytest.mark.slow
def test_fifteen_thousand_rows_take_seconds(shared_data: Path) -> None:
    rows = read_rows(shared_data / "tasks" / "clinc150" / "train.jsonl")
    assert len(rows) == 15_100
    started = time.process_time()
    split_rows(rows)
    assert time.process_time() - started < 8


def test_held_out_rows_keep_their_like_away() -> None:
    rows = [row("the first question is about paris"), row("quite another matter", group="g"), row("and a third one")]
    rows += [row("THE first question is about paris"), row("the first question is about paris, yes")]
    held = [row("The first question: is about Paris", id="h"), row("of its own", group="g", id="i")]
    kept, why = hold_apart(rows, held)
    assert [r.id for r in kept] == ["and a third one"]
    assert why == {"near": 3, "group": 1}
    kept, why = hold_apart(rows, [rows[0]], near_duplicates=False)
    assert [r.id for r in kept] == [rows[1].id, rows[2].id, rows[4].id] and why == {"repeat": 2}
    assert hold_apart(rows, []) == (tuple(rows), {})
