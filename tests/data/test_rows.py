"""Reading rows: shapes, columns, ids, and what is wrong with them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whit.data.rows import Row, Turn, content_key, read, read_rows
from whit.errors import DataError


def write(folder: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def failure(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_rows(path, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_prompt_and_completion(tmp_path: Path) -> None:
    path = write(
        tmp_path, {"id": "a", "prompt": "hi", "completion": "ho", "note": 3}, {"prompt": "x", "completion": "y"}
    )
    first, second = read_rows(path)
    assert first == Row("a", (Turn("user", "hi"),), "ho", None, {"note": 3}, 1, str(path))
    assert first.prompt == "hi" and first.extra["note"] == 3
    assert second.id.startswith("row-") and second.line == 2
    assert "line 1" in first.place and "a" in first.place
    assert len({first, second}) == 2


def test_messages(tmp_path: Path) -> None:
    said = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": [{"type": "text", "text": "tw"}, {"type": "text", "text": "o?"}]},
        {"role": "assistant", "content": "2"},
    ]
    (row,) = read_rows(write(tmp_path, {"messages": said}))
    assert [turn.role for turn in row.turns] == ["system", "user", "assistant", "user"]
    assert row.prompt == "two?" and row.completion == "2"
    share = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    (row,) = read_rows(write(tmp_path, share))
    assert row.turns == (Turn("user", "q"),) and row.completion == "a"
    trl = {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}
    (row,) = read_rows(write(tmp_path, trl))
    assert row.turns == (Turn("user", "q"),) and row.completion == "a"


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "list of turns"),
        ("hi", "a text"),
        (None, "null"),
        ([3], "turn 1"),
        ([{"role": "wizard", "content": "x"}], "'wizard'"),
        ([{"role": "user", "content": {"a": 1}}], "an object"),
        ([{"role": "user", "content": [{"type": "image"}]}], "text"),
        ([{"role": "user", "content": "x"}], "must be the assistant's"),
    ],
)
def test_messages_that_are_none(tmp_path: Path, messages: Any, says: str) -> None:
    message = failure(write(tmp_path, {"messages": messages}))
    assert "line 1" in message and says in message


@pytest.mark.parametrize(
    ("row", "prompt", "completion", "noted"),
    [
        ({"input": "p", "output": "c"}, "p", "c", 2),
        ({"text": "p", "label": "c"}, "p", "c", 2),
        ({"question": "p", "answer": "c"}, "p", "c", 2),
        ({"Prompt": "p", "Completion": "c"}, "p", "c", 2),
        ({"instruction": "do", "input": "p", "output": "c"}, "do\n\np", "c", 3),
        ({"instruction": "do", "input": "", "output": "c"}, "do", "c", 3),
        ({"instruction": "p", "response": "c"}, "p", "c", 2),
        ({"prompt": "p", "completion": "c", "answer": "other"}, "p", "c", 0),
        ({"text": "p", "label": 3}, "p", "3", 2),
        ({"text": "p", "label": False}, "p", "false", 2),
        ({"text": "p", "label": {"a": ["ü"]}}, "p", '{"a": ["ü"]}', 2),
    ],
)
def test_common_names_are_found_and_reported(
    tmp_path: Path, row: dict[str, Any], prompt: str, completion: str, noted: int
) -> None:
    reading = read(write(tmp_path, row))
    assert (reading.rows[0].prompt, reading.rows[0].completion) == (prompt, completion)
    assert len(reading.notes) == noted


def test_columns_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, {"body": "p", "kind": "c", "text": "no", "thread": 7, "id": 4})
    (row,) = read_rows(path, prompt_column="body", completion_column="kind", group_column="thread")
    assert (row.prompt, row.completion, row.group, row.id) == ("p", "c", "7", "4")
    assert dict(row.extra) == {"text": "no"}
    (row,) = read_rows(path, prompt_column="body", require_completion=False)
    assert row.completion == ""


def test_system_column(tmp_path: Path) -> None:
    (row,) = read_rows(write(tmp_path, {"system": "s", "prompt": "p", "completion": "c"}))
    assert row.turns == (Turn("system", "s"), Turn("user", "p"))


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    path = write(tmp_path, {"body": "p", "kind": "c"})
    message = failure(path, prompt_column="boddy", completion_column="kind")
    assert "did you mean 'body'" in message and "body, kind" in message
    assert "no group column 'g'" in failure(path, prompt_column="body", completion_column="kind", group_column="g")
    message = failure(path)
    assert "--prompt-column" in message and "body, kind" in message
    assert "--completion-column" in failure(path, prompt_column="body")
    assert "same column" in failure(path, prompt_column="body", completion_column="body")
    later = write(tmp_path, {"prompt": "p", "completion": "c"}, {"prompt": "p", "completio": "c"})
    message = failure(later)
    assert "line 2" in message and "did you mean 'completio'" in message


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": ["p"], "completion": "c"}, "a list"),
        ({"prompt": {"p": 1}, "completion": "c"}, "an object"),
        ({"prompt": None, "completion": "c"}, "null"),
        ({"prompt": "p", "completion": None}, "null"),
        ({"prompt": "p", "completion": " "}, "answer is empty"),
        ({"prompt": "", "completion": "c"}, "prompt is empty"),
        ({"prompt": "p\0", "completion": "c"}, "NUL"),
        ({"prompt": "p", "completion": "\ud83d"}, "surrogate"),
        ({"prompt": "p", "completion": "c", "id": ["x"]}, "id"),
        ({"prompt": "p", "completion": "c", "id": "x" * 201}, "200"),
        ({"prompt": "p", "completion": "c", "id": "a\nb"}, "printable"),
    ],
)
def test_values_of_a_wrong_type(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    message = failure(write(tmp_path, {"prompt": "a", "completion": "b"}, row))
    assert "line 2" in message and says in message


def test_without_completion_what_is_absent_is_empty(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": "p"}, {"prompt": None, "completion": "c"}, {"prompt": "q", "completion": None})
    rows = read_rows(path, require_completion=False)
    assert [row.prompt for row in rows] == ["p", "", "q"]
    talk = write(tmp_path, {"messages": [{"role": "user", "content": "q"}]})
    assert read_rows(talk, require_completion=False)[0].turns == (Turn("user", "q"),)


def test_ids_twice(tmp_path: Path) -> None:
    rows = [{"id": i, "prompt": "p", "completion": "c"} for i in (1, 2, 1, 3, 3)]
    message = failure(write(tmp_path, *rows))
    assert "'1'" in message and "lines 1, 3" in message and "1 other" in message


def test_header_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion\n")
    assert "no rows" in failure(path)


def test_limit_reads_the_first_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\nnot json\n')
    assert [row.prompt for row in read_rows(path, limit=2)] == ["a", "c"]


def test_ids_from_content_do_not_depend_on_order(tmp_path: Path) -> None:
    rows = [{"prompt": p, "completion": c} for p in "abcab" for c in "xy"]
    before = sorted((row.id, row.prompt, row.completion) for row in read_rows(write(tmp_path, *rows)))
    random.Random(1).shuffle(rows)
    after = sorted((row.id, row.prompt, row.completion) for row in read_rows(write(tmp_path, *rows)))
    assert before == after and len({identity for identity, _, _ in before}) == len(rows)


def test_an_own_id_is_never_given_to_another_row(tmp_path: Path) -> None:
    plain = {"prompt": "p", "completion": "c"}
    made = read_rows(write(tmp_path, plain))[0].id
    rows = read_rows(write(tmp_path, plain, {**plain, "id": made}, plain))
    assert len({row.id for row in rows}) == 3


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text(max_size=20)), max_size=4))
def test_content_key_ignores_case_and_spacing_only(turns: list[tuple[str, str]]) -> None:
    said = [Turn(role, text) for role, text in turns]
    spaced = [Turn(turn.role, f"  {turn.content.upper().lower()}\n") for turn in said]
    lowered = [Turn(turn.role, turn.content.upper().lower()) for turn in said]
    assert content_key(spaced) == content_key(lowered)
    assert content_key([*said, Turn("user", "more")]) != content_key(said)


def test_the_shared_tasks_are_read(shared_data: Path) -> None:
    rows = read_rows(shared_data / "tasks" / "sst2" / "dev.jsonl")
    assert len(rows) == 872 and {row.completion for row in rows} == {"positive", "negative"}
