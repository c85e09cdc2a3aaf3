"""What a user or another run left in the folder is not replaced unasked; the same command may be run again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import whit as api
from whit.errors import UsageError
from whit.evaluation.card import load_card
from whit.settings import SweepSettings, TrainSettings
from whit.testing import write_rows
from whit.verbs.folders import require_own_readme, require_replaceable
from whit.verbs.sweep import sweep

Given = dict[str, Any]


@pytest.fixture(scope="module")
def given(rows: Path, options: Callable[[str], Given]) -> Given:
    return {**options("xs"), "data": rows, "baselines": False, "shots": (), "limit": 40, "evaluations": 1}


@pytest.fixture(scope="module")
def made(given: Given, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter."""
    return Path(api.train(**given, out=tmp_path_factory.mktemp("folders") / "out").folder)


def content(folder: Path) -> dict[str, bytes]:
    return {item.name: item.read_bytes() for item in folder.iterdir()}


def test_a_readme_of_the_users_is_never_replaced(given: Given, made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    for text in ("# My project\n", "---\nlibrary_name: peft\n---\n", "---\ntitle: x\n---\n\nlibrary_name: whit\n", ""):
        (folder / "README.md").write_text(text)
        for more in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(UsageError, match=r"README.md is yours.* --out"):
                api.train(**{**given, "base": "nowhere"}, out=folder, **more)
        assert content(folder) == {"README.md": text.encode()}
    require_own_readme(made)


def test_the_same_command_may_be_run_again(given: Given, made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(made, folder)
    again = api.train(**given, out=folder)
    same = ("adapter.whit", "held-out.jsonl", "seen.txt")
    assert {name: content(folder)[name] for name in same} == {name: content(made)[name] for name in same}
    assert again.card.run == load_card(made / "card.json").run != ""
    assert "overwrite" not in again.card.settings


@pytest.mark.parametrize("change", [{"rank": 3}, {"limit": 41}, {"seed": 1}, {"base": "nowhere"}, {"batch": None}])
def test_another_run_replaces_it_only_when_asked(given: Given, made: Path, change: Given) -> None:
    before = content(made)
    with pytest.raises(UsageError, match=r"holds the adapter of another run .* --out, .*--overwrite"):
        api.train(**{**given, **change}, out=made)
    assert content(made) == before


def test_what_is_asked_for_is_replaced(given: Given, made: Path, tmp_path: Path) -> None:
    for more in ("overwrite", "resume"):
        folder = tmp_path / more
        shutil.copytree(made, folder)
        found = api.train(**{**given, "rank": 3, more: True}, out=folder)
        assert load_card(folder / "card.json").run == found.card.run != load_card(made / "card.json").run


@pytest.mark.parametrize("name", ["adapter.whit", "adapter_config.json", "report.html", "held-out.jsonl", "card.json"])
def test_files_that_no_run_left_are_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    settings = TrainSettings(data=Path("rows.jsonl"))
    require_replaceable(tmp_path, settings, "key")
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match=rf"has a {name} .*--overwrite"):
        require_replaceable(tmp_path, settings, "key")
    require_replaceable(tmp_path, replace(settings, overwrite=True), "key")


def test_a_sweep_does_not_replace_what_train_made(made: Path, given: Given, tmp_path: Path) -> None:
    grid = tmp_path / "grid.toml"
    data = write_rows(tmp_path / "rows.jsonl", 40)
    grid.write_text(f'data = "{data}"\n[train]\nbase = "{given["base"]}"\n[grid]\nrank = [1, 2]\n')
    with pytest.raises(UsageError, match="holds an adapter that no sweep made"):
        sweep(SweepSettings(grid=grid, out=made))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    with pytest.raises(UsageError, match="is yours"):
        sweep(SweepSettings(grid=grid, out=tmp_path / "mine"))
