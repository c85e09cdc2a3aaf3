"""Bad input on the command line: one clear error on stderr, the exit code of its cause, never a traceback."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from commands import Commands

import whit as api
from whit.errors import UsageError
from whit.evaluation.scoring import KINDS
from whit.settings import ChatSettings, EvalSettings, RunSettings
from whit.testing import write_tiny_base
from whit.verbs import common


def _attacks() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "attacks" / "commands" / "run.py"
    spec = importlib.util.spec_from_file_location("attacks_on_commands", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["attacks_on_commands"] = module
    spec.loader.exec_module(module)
    return module


ATTACKS = _attacks()


@pytest.mark.parametrize("name", sorted(ATTACKS.ATTACKS))
def test_every_attack_is_held_off(whit: Commands, tmp_path: Path, name: str) -> None:
    code, prepare = ATTACKS.ATTACKS[name]
    arguments = prepare(tmp_path)
    began = time.monotonic()
    ended = whit(*arguments, cwd=tmp_path)
    assert ATTACKS.judge(code, ended.code, ended.stderr, time.monotonic() - began) == ""
    assert not (tmp_path / "mark").exists() and ended.stdout == ""
    assert "the secret" not in ended.stderr


def lines(*rows: Any) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def pairs(count: int, **more: Any) -> list[dict[str, Any]]:
    words = "alpha bravo charlie delta echo foxtrot golf hotel india juliett kilo lima".split()  # noqa: SIM905
    return [
        {"prompt": f"{word} {word[::-1]}", "completion": "ab"[n % 2], **more} for n, word in enumerate(words[:count])
    ]


DATA: dict[str, tuple[str | bytes | None, str]] = {
    "missing": (None, "rows.jsonl"),
    "empty": ("", "rows.jsonl"),
    "blank": ("\n\n  \n", "rows.jsonl"),
    "binary": (bytes(range(256)) * 40, "rows.jsonl"),
    "not JSON": (lines(pairs(1)[0], "{oops"), "line 2"),
    "not an object": (lines(pairs(1)[0], "3"), "line 2"),
    "no such columns": (lines({"a": "x", "b": "y"}), "a, b"),
    "no answer": (lines(*pairs(3), {"prompt": "x", "completion": ""}), "line 4"),
    "one row": (lines(*pairs(1)), "one row"),
    "one answer": (lines(*[{**row, "completion": "a"} for row in pairs(12)]), "same answer"),
    "too few": (lines(*pairs(2)), "held-out rows"),
}


@pytest.mark.parametrize("name", DATA)
def test_rows_that_cannot_be_used(whit: Commands, base: Path, tmp_path: Path, name: str) -> None:
    content, said = DATA[name]
    if content is not None:
        (tmp_path / "rows.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    ended = whit("train", "rows.jsonl", "--base", base, "--out", "out", cwd=tmp_path)
    assert ended.code == 3 and said in ended.error, ended.stderr
    assert not (tmp_path / "out").exists() and "Loading" not in ended.stderr  # told before anything slow


def test_columns_that_are_not_there_name_those_that_are(whit: Commands, base: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(lines(*pairs(12)))
    ended = whit("train", "rows.jsonl", "--base", base, "--completion-column", "label", cwd=tmp_path)
    assert ended.code == 3 and "'label'" in ended.error and "completion" in ended.error and "prompt" in ended.error


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--test", "0"], 3, "0 held-out rows"),
        (["--validation", "0"], 3, "0 validation rows"),
        (["--test", "0.7", "--validation", "0.5"], 2, "leave rows to learn from"),
        (["--kind", "xl"], 2, "xl"),
        (["--nonsense"], 2, "--nonsense"),
        (["--batch", "0"], 2, "--batch"),
        (["--learning-rate", "nan"], 2, "--learning-rate"),
        (["--learning-rate", "-1"], 2, "--learning-rate"),
        (["--epochs", "inf"], 2, "--epochs"),
        (["--numbers", "13", "--kind", "xs"], 2, "--rank"),
        (["--kind", "lora", "--optimizer", "natural"], 2, "use adam for lora"),
        (["--kind", "lora", "--alpha", "-2"], 2, "alpha"),
        (["--kind", "tiny", "--groups", "99"], 2, "--groups 99: more than the 14 modules"),
        (["--max-tokens", "99999"], 2, "reads 160 tokens"),
        (["--shots", "0"], 2, "--shots"),
        (["--shots", "-1"], 2, "--shots"),
        (["--targets", "nothing_of_this_name"], 2, "nothing_of_this_name"),
        (["--score", "numeric"], 3, "numeric"),
        (["--score", "no.module:f"], 2, "no.module"),
        (["--test-data", "nowhere.jsonl"], 3, "nowhere.jsonl"),
        (["--config", "nowhere.toml"], 2, "nowhere.toml"),
    ],
)
def test_options_that_cannot_be(
    whit: Commands, base: Path, tmp_path: Path, flags: list[str], code: int, said: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(lines(*pairs(12)))
    ended = whit("train", "rows.jsonl", "--base", base, *flags, cwd=tmp_path)
    assert ended.code == code and said in ended.error, ended.stderr
    assert not (tmp_path / "rows").exists()


@pytest.mark.parametrize(
    "flags", [["--score", "nosuch"], ["--score", "no.module:f"], ["--learning-rate", "-1"], ["--learning-rate", "0"]]
)
def test_cheap_mistakes_are_told_before_a_base_is_loaded(
    whit: Commands, base: Path, rows: Path, trained: Callable[[str], Any], tmp_path: Path, flags: list[str]
) -> None:
    ended = whit("train", rows, "--base", base, *flags, cwd=tmp_path)
    said = "no.module" if ":" in flags[1] else flags[0]
    assert ended.code == 2 and said in ended.error and "Loading" not in ended.stderr
    if flags[0] == "--score":
        ended = whit("eval", trained("xs").folder, rows, "--limit", "5", *flags, cwd=tmp_path)
        assert ended.code != 0 and "Loading" not in ended.stderr
        (tmp_path / "grid.toml").write_text(f'data = "{rows}"\n[train]\nscore = "{flags[1]}"\n[grid]\nrank = [1, 2]\n')
        ended = whit("sweep", "grid.toml", cwd=tmp_path)
        assert ended.code == 2 and "Loading" not in ended.stderr


def test_the_help_names_every_scorer(whit: Commands) -> None:
    shown = "".join(whit("train", "--help").stdout.split())  # a line may end after a hyphen
    assert all(kind in shown for kind in KINDS)


def test_a_file_of_options_with_a_typo_names_the_right_one(whit: Commands, base: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(lines(*pairs(12)))
    (tmp_path / "whit.toml").write_text("[train]\nepochz = 3\n")
    ended = whit("train", "rows.jsonl", "--base", base, cwd=tmp_path)
    assert ended.code == 2 and "did you mean epochs?" in ended.error


def test_a_row_longer_than_the_context_is_named(whit: Commands, base: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(lines(*pairs(12), {"id": "long", "prompt": "x " * 500, "completion": "a"}))
    ended = whit("train", "rows.jsonl", "--base", base, cwd=tmp_path)
    assert ended.code == 3 and "context" in ended.error and "long" in ended.error


def test_a_prompt_longer_than_the_context(whit: Commands, trained: Callable[[str], Any], tmp_path: Path) -> None:
    ended = whit("run", trained("xs").folder, "word " * 2000, "--dtype", "float32")
    assert (ended.code == 3 and "160" in ended.error) or "159" in ended.error
    (tmp_path / "later.jsonl").write_text(lines({"id": "long", "prompt": "x " * 500, "completion": "card"}))
    judged = whit("eval", trained("xs").folder, tmp_path / "later.jsonl", "--dtype", "float32")
    assert judged.code == 3 and "long" in judged.error


def _bases(folder: Path, kind: str) -> str:
    made = write_tiny_base(folder / "base", layers=1, hidden=32, heads=2, kv_heads=1, ffn=32)
    config = json.loads((made / "config.json").read_text())
    weights = made / "model.safetensors"
    if kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "unknown architecture":
        (made / "config.json").write_text(
            json.dumps({**config, "model_type": "mamba", "architectures": ["MambaForCausalLM"]})
        )
    elif kind == "not a base":
        shutil.rmtree(made)
        made.mkdir()
        (made / "notes.txt").write_text("nothing")
    elif kind == "no GGUF":
        (folder / "model.gguf").write_bytes(b"GGUX" + bytes(100))
        return "model.gguf"
    elif kind == "truncated GGUF":
        (folder / "model.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + b"\x01" + bytes(7) + b"\xff" * 8)
        return "model.gguf"
    else:
        return "no-base-of-this-name"
    return "./base"


@pytest.mark.parametrize(
    "kind", ["truncated", "unknown architecture", "not a base", "no GGUF", "truncated GGUF", "unknown name"]
)
def test_bases_that_are_none(whit: Commands, tmp_path: Path, kind: str) -> None:
    (tmp_path / "rows.jsonl").write_text(lines(*pairs(12)))
    name = _bases(tmp_path, kind)
    ended = whit("train", "rows.jsonl", "--base", name, cwd=tmp_path)
    assert ended.code == 4 and name.removeprefix("./") in ended.error, ended.stderr
    assert not (tmp_path / "rows").exists()


@pytest.mark.parametrize("keep", [0, 10, 60, -1])
def test_an_adapter_that_was_cut(whit: Commands, trained: Callable[[str], Any], tmp_path: Path, keep: int) -> None:
    whole = (trained("xs").folder / "adapter.whit").read_bytes()
    (tmp_path / "a.whit").write_bytes(whole[:keep])
    ended = whit("run", "a.whit", "hello", cwd=tmp_path)
    assert ended.code == 5 and "a.whit" in ended.error


@pytest.mark.parametrize("command", ["run", "eval", "show", "compare", "export"])
def test_adapters_that_are_not_there(whit: Commands, rows: Path, tmp_path: Path, command: str) -> None:
    more = {"run": ["hello"], "eval": [rows], "export": ["out"]}.get(command, [])
    for name in ("nowhere", str(tmp_path)):
        ended = whit(command, name, *more, cwd=tmp_path)
        assert ended.code == 5 and name in ended.error, ended.stderr


def test_an_adapter_of_another_base(whit: Commands, trained: Callable[[str], Any], tmp_path: Path) -> None:
    other = write_tiny_base(tmp_path / "other", seed=5)
    ended = whit("run", trained("xs").folder, "hello", "--base", other)
    assert ended.code == 5 and "was made for the base" in ended.error and "card names" in ended.error


def test_nothing_to_answer(whit: Commands, trained: Callable[[str], Any]) -> None:
    silent = whit("run", trained("xs").folder, stdin="")
    assert silent.code == 0 and silent.stdout == "" and "Traceback" not in silent.stderr


def test_a_place_that_cannot_be_written(whit: Commands, base: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    ended = whit("train", rows, "--base", base, "--out", "file/out", "--epochs", "0.1", cwd=tmp_path)
    assert ended.code == 8 and "file" in ended.error
    assert "loss" not in ended.stderr  # told before training, not after


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_are_refused_from_python_too(value: float, tmp_path: Path) -> None:
    for settings in (RunSettings("a", temperature=value), ChatSettings("a", top_p=value)):
        with pytest.raises(UsageError, match="must be a finite number"):
            common.require_finite(settings)
    common.require_finite(EvalSettings("a", tmp_path))
    with pytest.raises(UsageError):
        api.train(tmp_path / "rows.jsonl", epochs=value)
