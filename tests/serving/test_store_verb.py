"""`whit store` as people and scripts meet it: every action, its JSON, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whit.adapters.compact import pack, to_text
from whit.adapters.vector import tiny_spec
from whit.cli import build
from whit.errors import AdapterError, StorageError, UsageError


def text_form(number: float) -> str:
    vector = np.full(13, number, np.float32)
    return to_text(
        pack(tiny_spec(range(14), 13), vector, number_type="bfloat16", base="0" * 16, basis="1" * 16, layers=2)
    )


@pytest.fixture
def whit(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`whit("list")`: the JSON of `whit store list`, by ann, on one store."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, as_json: bool = True) -> Any:
        capsys.readouterr()
        rest = ["--json"] if as_json else []
        assert build().main(["store", *words, "--by", "ann", *rest], standalone_mode=False) == 0
        out = capsys.readouterr().out
        return json.loads(out) if as_json else out

    return run


def test_a_life_of_an_adapter(whit: Callable[..., Any], tmp_path: Path) -> None:
    first = whit("add", "team/alice", text_form(1), "--label", "prod")
    assert first == {"contract": 1, "action": "add", "name": "team/alice", "version": 1, "kind": "tiny", "bytes": 64}
    assert whit("add", "team/alice", text_form(2))["version"] == 2
    listed = whit("list")["adapters"]
    assert [(each["name"], each["version"], each["versions"], each["labels"]) for each in listed] == [
        ("team/alice", 2, 2, {"prod": 1})
    ]
    shown = whit("show", "team/alice@prod")
    assert shown["version"] == 1 and shown["versions"] == [1, 2] and shown["numbers"] == 13 and shown["card"] is None
    assert {(each["by"], each["what"], each["version"]) for each in shown["history"]} == {
        ("ann", "add", 1), ("ann", "add", 2), ("ann", "label", 1),
    }  # fmt: skip
    assert whit("label", "team/alice@2", "prod")["version"] == 2
    assert whit("rollback", "team/alice", "--label", "prod")["version"] == 1
    assert whit("rollback", "team/alice")["version"] == 1
    assert whit("label", "team/alice", "prod", "--remove")["version"] is None
    assert whit("export", "all.jsonl")["versions"] == 2
    assert whit("import", "all.jsonl", "--store", "copy.db") | {"contract": 1} == {
        "contract": 1, "action": "import", "added": 2, "there": 0,
    }  # fmt: skip
    assert whit("rm", "team/alice@2")["removed"] == 1 and whit("rm", "team/alice")["removed"] == 1
    assert whit("list")["adapters"] == [] and len(whit("list", "--store", "copy.db")["adapters"]) == 1
    assert (tmp_path / "whit.db").is_file()


def test_what_people_read(whit: Callable[..., Any]) -> None:
    assert whit("add", "alice", text_form(1), as_json=False) == "alice@1: tiny, 64 bytes\n"
    assert whit("list", as_json=False).startswith("alice  @1  tiny   64 bytes")
    assert "ann: add @1" in whit("show", "alice", as_json=False)


def test_tokens_are_shown_once(whit: Callable[..., Any], tmp_path: Path) -> None:
    secret = whit("token", "ci", "--use", "team/*", "--rate", "60")["token"]
    assert secret.startswith("whit_") and len(secret) > 40
    (listed,) = whit("token")["tokens"]
    assert (listed["name"], listed["use"], listed["change"], listed["rate"]) == ("ci", ["team/*"], [], 60.0)
    assert all(secret.encode() not in path.read_bytes() for path in tmp_path.iterdir())
    whit("token", "ci", "--remove")
    assert whit("token")["tokens"] == []


def test_what_cannot_be_is_refused(whit: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no store at"):
        whit("list")
    with pytest.raises(UsageError, match="NAME ADAPTER"):
        whit("add", "alice")
    with pytest.raises(UsageError, match="no name"):
        whit("add", "../alice", text_form(1))
    with pytest.raises(AdapterError):
        whit("add", "alice", str(tmp_path))
    whit("add", "alice", text_form(1))
    with pytest.raises(UsageError, match="no adapter bob"):
        whit("show", "bob")
    with pytest.raises(UsageError, match="takes a name or a version"):
        whit("rm", "alice@prod")
