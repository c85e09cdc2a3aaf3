"""Options that would do nothing are refused, wherever they come from, and those that do something are not."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from commands import Commands

import whit as package
from whit.errors import UsageError
from whit.settings import BakeSettings, CheckSettings, SweepSettings, TrainSettings
from whit.verbs.grid import read_grid
from whit.verbs.needs import NEEDS, fitted, require_needs


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--samples", "3"], "--samples does nothing without --reward"),
        (["--format-weight", "2"], "--format-weight does nothing without --reward"),
        (["--warm-start", "nosuch"], "--warm-start does nothing without --reward"),
        (["--sigma", "0.2", "--kind", "auto"], "--sigma does nothing without --reward"),
        (["--learn-basis"], "--learn-basis does nothing without --per"),
        (
            ["--kind", "xs", "--groups", "3"],
            "--groups does nothing with --kind xs: leave it out, or choose --kind tiny",
        ),
        (["--kind", "lora", "--groups", "3"], "--groups does nothing with --kind lora"),
        (["--kind", "xs", "--alpha", "8"], "--alpha does nothing with --kind xs: leave it out, or choose --kind lora"),
        (["--kind", "xs", "--dropout", "0.3"], "--dropout does nothing with --kind xs"),
        (["--numbers", "13", "--alpha", "8"], "--alpha does nothing with --kind tiny"),
        (["--per", "prompt", "--dropout", "0.3"], "--dropout does nothing with --kind tiny"),
    ],
)
def test_training_options_that_would_do_nothing(
    whit: Commands, base: Path, rows: Path, tmp_path: Path, flags: list[str], said: str
) -> None:
    ended = whit("train", rows, "--base", base, *flags, cwd=tmp_path)
    assert ended.code == 2 and said in ended.error, ended.stderr
    assert "Loading" not in ended.stderr and not any(tmp_path.iterdir())


def test_a_file_of_options_and_python_are_held_to_the_same(
    whit: Commands, base: Path, rows: Path, tmp_path: Path
) -> None:
    (tmp_path / "whit.toml").write_text("[train]\nsamples = 3\n[check]\nshare = 0.2\n")
    ended = whit("train", rows, "--base", base, cwd=tmp_path)
    assert ended.code == 2 and "--samples does nothing without --reward" in ended.error
    ended = whit("check", rows, cwd=tmp_path)
    assert ended.code == 2 and "--share does nothing without --influence" in ended.error
    with pytest.raises(UsageError, match="--samples does nothing without --reward"):
        package.train(rows, base=str(base), out=tmp_path / "out", samples=3)


def test_the_default_said_aloud_is_not_refused(whit: Commands, rows: Path) -> None:
    assert whit("check", rows, "--share", "0.1", "--retrain").code == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--share", "0.2"], "--share"), (["--no-retrain"], "--no-retrain"), (["--adapter", "x"], "--adapter")],
)
def test_check_without_influence(whit: Commands, rows: Path, flags: list[str], said: str) -> None:
    ended = whit("check", rows, *flags)
    assert ended.code == 2 and f"{said} does nothing without --influence" in ended.error


def test_bake_without_a_teacher(whit: Commands, base: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "guide.md").write_text("Answer in one word.")
    for name, value in (("model", "x"), ("key", "NAME"), ("timeout", "3")):
        ended = whit("bake", "guide.md", rows, "--base", base, f"--teacher-{name}", value, cwd=tmp_path)
        assert ended.code == 2 and f"--teacher-{name} does nothing without --teacher-url" in ended.error
        assert "Loading" not in ended.stderr


def test_a_kind_that_the_base_chose_is_known_in_the_end(whit: Commands, base: Path, rows: Path, tmp_path: Path) -> None:
    from whit.bases import load_base
    from whit.verbs.train import shape_of

    loaded = load_base(str(base))  # a small base: lora
    assert shape_of(TrainSettings(data=rows, alpha=8.0, dropout=0.1), loaded)[2] == "lora"
    with pytest.raises(UsageError, match="--alpha does nothing with --kind xs"):
        shape_of(TrainSettings(data=rows, alpha=8.0, kind="xs"), loaded)


@pytest.mark.parametrize(
    "settings",
    [
        TrainSettings(data=Path("x"), reward=("exact",), samples=3, format_weight=0.1, warm_start="a", population=8),
        TrainSettings(data=Path("x"), kind="auto", alpha=8.0, dropout=0.1),
        TrainSettings(data=Path("x"), per="user", learn_basis=True, groups=2),
        TrainSettings(data=Path("x"), groups=2),
        TrainSettings(data=Path("x"), kind="lora", alpha=8.0),
        BakeSettings(guide=Path("x"), inputs=Path("y"), teacher_url="http://localhost/v1", teacher_model="m"),
        CheckSettings(data=Path("x"), influence=True, adapter="a", share=0.2, retrain=False),
    ],
)
def test_options_that_do_something(settings: Any) -> None:
    require_needs(settings)


def test_the_table_names_options_that_there_are() -> None:
    for settings, needs in NEEDS.items():
        known = {part.name for part in fields(settings)}
        assert {name for need in needs for name in need.options} <= known


def test_a_rung_of_the_ladder_leaves_out_what_other_kinds_have() -> None:
    given = TrainSettings(data=Path("x"), kind="xs", alpha=8.0, dropout=0.1, samples=3, epochs=2.0)
    assert fitted(given) == TrainSettings(data=Path("x"), kind="xs", samples=3, epochs=2.0)


def test_a_sweep_shares_an_option_among_the_kinds_that_have_it(tmp_path: Path) -> None:
    grid = tmp_path / "grid.toml"
    start = f'data = "{tmp_path / "rows.jsonl"}"\n'
    grid.write_text(start + '[train]\nalpha = 8\n[grid]\nkind = ["xs", "lora"]\n')
    assert [each.settings.alpha for each in read_grid(SweepSettings(grid=grid))] == [None, 8.0]
    for said, text in {
        "--alpha does nothing with --kind xs": '[grid]\nkind = ["xs"]\nalpha = [8.0, 16.0]\n',
        "--samples does nothing without --reward": "[train]\nsamples = 3\n[grid]\nrank = [1, 2]\n",
    }.items():
        grid.write_text(start + text)
        with pytest.raises(UsageError, match=said):
            read_grid(SweepSettings(grid=grid))
