"""Cleaned copies on disk read back as the rows they were written from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whit.data.fixing import fix_rows, write_rows
from whit.data.problem import Problem
from whit.data.rows import Row, Turn, read_rows
from whit.errors import DataError

words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20).filter(
    lambda text: bool(text.strip())
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(words, words, words | st.none()), min_size=1, max_size=5))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, str, str | None]]) -> None:
    rows = []
    for i, (prompt, answer, system) in enumerate(drawn):
        turns = (Turn("user", prompt),) if system is None else (Turn("system", system), Turn("user", prompt))
        rows.append(Row(f"r{i}", turns, answer, None, {"note": [i]}))
    path = tmp_path_factory.mktemp("out") / "rows.jsonl"
    for same in ([r for r in rows if len(r.turns) == 1], [r for r in rows if len(r.turns) == 2]):
        if same:
            write_rows(path, same)
            again = read_rows(path)
            assert [replace(r, line=None, source=None, extra=dict(r.extra)) for r in again] == same


def test_shapes_that_differ_are_written_as_one(tmp_path: Path) -> None:
    rows = [
        Row("a", (Turn("user", "q"),), "x"),
        Row("b", (Turn("user", "q"), Turn("assistant", "r"), Turn("user", "s")), "y"),
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    again = read_rows(tmp_path / "rows.jsonl")
    assert [(r.id, r.turns, r.completion) for r in again] == [(r.id, r.turns, r.completion) for r in rows]


def test_groups_are_kept(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [Row("a", (Turn("user", "q"),), "x", "g")])
    assert read_rows(tmp_path / "rows.jsonl", group_column="group")[0].group == "g"


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    rows = [Row("a", (Turn("user", ""),), "x")]
    kept, changes, left = fix_rows(rows, [Problem("empty", ("a",), "no prompt: a")])
    assert kept == [] and changes == ["a: removed (empty)"] and left == []
    with pytest.raises(DataError, match="no row is left"):
        write_rows(tmp_path / "rows.jsonl", kept)


def test_what_is_left_alone_is_said() -> None:
    rows = [Row("a", (Turn("user", "q"),), "x"), Row("b", (Turn("user", "r"),), "y")]
    kept, changes, left = fix_rows(rows, [Problem("imbalance", ("a",), "…"), Problem("rare-label", ("b",), "…")])
    assert kept == rows and changes == [] and left == ["1 × imbalance", "1 × rare-label"]
