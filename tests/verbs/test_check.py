"""`whit check`: what it reports, as JSON and as text, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from whit.data.rows import read_rows
from whit.errors import UsageError
from whit.settings import CheckSettings
from whit.testing import write_tiny_base
from whit.verbs.check import CheckResult
from whit.verbs.check import check as check_settings


def check(data: Path, **options: Any) -> CheckResult:
    return check_settings(CheckSettings(data=data, **options))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = [{"id": f"r{i}", "text": f"{word} text", "label": "ab"[i % 2]} for i, word in enumerate(WORDS)]
    rows += [{"id": "same", "text": "alpha text", "label": "a"}, {"id": "none", "text": "", "label": None}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


WORDS = "alpha bravo charlie delta echo foxtrot golf hotel".split()  # noqa: SIM905


def test_json_is_the_contract(data: Path) -> None:
    result = check(data)
    document = json.loads(json.dumps(result.to_json()))
    assert document["rows"] == 10
    kinds = {problem["kind"]: problem for problem in document["problems"]}
    assert set(kinds) == {"duplicate", "empty"} and result.serious
    assert kinds["duplicate"]["ids"] == ["r0", "same"] and "alpha text" in kinds["duplicate"]["message"]
    assert len(document["notes"]) == 2 and "'text'" in document["notes"][0]


def test_text_names_kinds_rows_and_notes(data: Path) -> None:
    text = check(data).to_text()
    assert "10 rows" in text and "! empty" in text and "- duplicate" in text and "column 'label'" in text
    clean = data.with_name("clean.jsonl")
    check(data, fix=clean)
    assert "nothing wrong was found" in check(clean).to_text()


def test_long_reports_are_cut(data: Path) -> None:
    rows = [{"text": f"{word} word", "label": "a"} for word in WORDS for _ in range(2)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "… and 3 more" in check(data).to_text(5)


def test_fix_writes_a_copy_and_lists_changes(data: Path, tmp_path: Path) -> None:
    before = data.read_bytes()
    out = tmp_path / "out" / "clean.jsonl"
    result = check(data, fix=out)
    assert data.read_bytes() == before
    assert [row.id for row in read_rows(out)] == [f"r{i}" for i in range(8)]
    assert result.kept == 8 and len(result.changes) == 2
    assert result.to_json()["fix"]["changes"] == list(result.changes)
    assert "same: removed" in result.to_text()


def test_fix_never_overwrites_what_was_read(data: Path) -> None:
    with pytest.raises(UsageError, match="overwrite"):
        check(data, fix=data.parent / "." / data.name)
    with pytest.raises(UsageError):
        check(data, against=(data.with_name("x.jsonl"),), fix=data.with_name("x.jsonl"))


def test_fix_replaces_another_file_only_when_asked(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "clean.jsonl"
    check(data, fix=out)
    first = out.read_bytes()
    check(data, fix=out)  # the same again
    assert out.read_bytes() == first
    out.write_text("mine\n")
    with pytest.raises(UsageError, match=r"clean.jsonl is there already.*--overwrite"):
        check(data, fix=out)
    with pytest.raises(UsageError, match=r"clean.jsonl is there already.*--overwrite"):
        check(data, fix=out, influence=True, adapter="nowhere")
    assert out.read_text() == "mine\n"
    check(data, fix=out, overwrite=True)
    assert out.read_bytes() == first


def test_rows_without_an_id_are_named_by_their_lines(tmp_path: Path) -> None:
    data, held = tmp_path / "rows.jsonl", tmp_path / "held.jsonl"
    rows = [{"text": f"{word} text", "label": "ab"[i % 2]} for i, word in enumerate(WORDS)]
    rows += [rows[0], {"text": "", "label": "a"}]
    data.write_text("\n" + "".join(json.dumps(row) + "\n" for row in rows))
    held.write_text('{"id": "h", "text": "none", "label": "b"}\n' + json.dumps(rows[2]) + "\n")
    result = check(data, against=(held,), fix=tmp_path / "clean.jsonl")
    ids = {row.line: row.id for row in read_rows(data, require_completion=False)}
    named = {line: f"line {line} ({identity})" for line, identity in ids.items()}
    told = {problem["kind"]: problem for problem in json.loads(json.dumps(result.to_json()))["problems"]}
    assert told["duplicate"]["lines"] == [2, 10] and told["duplicate"]["ids"] == [ids[2], ids[10]]
    assert told["duplicate"]["message"].endswith(f": {named[2]}, {named[10]}")
    assert told["empty"]["message"] == f"no prompt: {named[11]}" and told["empty"]["lines"] == [11]
    assert told["leakage"]["message"].endswith(f": {named[4]} = line 2 ({ids[4]})") and told["leakage"]["lines"] == [4]
    assert f"{named[10]}: removed (repeats {named[2]})" in result.changes
    assert all(change.startswith("line ") for change in result.changes) and len(result.changes) == 3
    own = check(held).rows
    assert own == 2 and read_rows(held)[0].name == "h"


def test_what_fix_leaves_is_no_change(data: Path, tmp_path: Path) -> None:
    with data.open("a") as handle:
        handle.write(json.dumps({"id": "near", "text": "ALPHA text!", "label": "a"}) + "\n")
    result = check(data, fix=tmp_path / "clean.jsonl")
    assert len(result.changes) == 2 and result.left == ("1 × near-duplicate",)
    document = result.to_json()["fix"]
    assert document["left"] == ["1 × near-duplicate"] and document["changes"] == list(result.changes)
    assert "9 rows, 2 changes\n" in result.to_text() and "    left as it is: 1 × near-duplicate" in result.to_text()


def test_against_another_split(data: Path, tmp_path: Path) -> None:
    held = tmp_path / "held.jsonl"
    held.write_text('{"id": "h", "prompt": "Bravo text", "completion": "b"}\n')
    (leak,) = [p for p in check(data, against=(held,)).problems if p.kind == "leakage"]
    assert leak.ids == ("r1",) and "held.jsonl" in leak.message


def test_a_base_finds_rows_beyond_its_context(data: Path, tmp_path: Path) -> None:
    write_tiny_base(tmp_path / "base")
    with data.open("a") as handle:
        handle.write(json.dumps({"id": "long", "text": "word " * 5000, "label": "a"}) + "\n")
    problems = check(data, base=str(tmp_path / "base")).problems
    assert [p.ids for p in problems if p.kind == "too-long"] == [("long",)]
