"""`whit.toml`, and settings from Python values: the same names and limits as the command line's."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whit.configuration import hold, read_config
from whit.errors import UsageError
from whit.settings import EvalSettings, ExportSettings, RunSettings, TrainSettings, as_plain


def read(folder: Path, text: str, settings: type = TrainSettings, command: str = "train") -> dict[str, Any]:
    (folder / "whit.toml").write_text(text, encoding="utf-8")
    return read_config(command, settings, None, folder, ("train", "eval", "run"))


def test_no_file_states_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_config("train", TrainSettings, None, tmp_path / "elsewhere") == {}


def test_keys_are_spelt_either_way_and_other_commands_tables_are_left_alone(tmp_path: Path) -> None:
    found = read(tmp_path, "[train]\nlearning-rate = 1\nvalidation_rows = 5\n[eval]\nlimit = 3\n")
    assert found == {"learning_rate": 1.0, "validation_rows": 5}
    assert isinstance(found["learning_rate"], float)
    assert read(tmp_path, "[eval]\nlimit = 3\n", EvalSettings, "eval") == {"limit": 3}


def test_paths_stand_beside_the_file(tmp_path: Path) -> None:
    assert read(tmp_path, '[train]\nout = "made"\ntest-data = "/else/where.jsonl"\n') == {
        "out": tmp_path / "made",
        "test_data": Path("/else/where.jsonl"),
    }


def test_several_values_may_be_one(tmp_path: Path) -> None:
    assert read(tmp_path, "[train]\nshots = 3\n") == {"shots": (3,)}
    assert read(tmp_path, '[train]\ntargets = ["q_proj", "v_proj"]\n') == {"targets": ("q_proj", "v_proj")}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[train]\nlearning-rat = 1\n", "did you mean learning-rate?"),
        ("[train]\nzzz = 1\n", "[train] has no option 'zzz'"),
        ("[train]\ndata = 'x'\n", "[train] has no option 'data'"),
        ("[trian]\nbatch = 1\n", "no command for [trian]; did you mean train?"),
        ("batch = 1\n", "no command for [batch]"),
        ("train = 3\n", "[train] must be a table"),
        ("[train]\nbatch = 0\n", "from 1 to any size"),
        ("[train]\nrank = 65\n", "from 1 to 64"),
        ("[train]\nbatch = 1.5\n", "must be a whole number"),
        ("[train]\nbatch = true\n", "must be a whole number"),
        ("[train]\nbaselines = 1\n", "must be true or false"),
        ("[train]\nkind = 'huge'\n", "must be one of xs, tiny, lora"),
        ("[train]\nshots = [1, 'two']\n", "must be a whole number"),
        ("[train\n", "not TOML"),
    ],
)
def test_what_cannot_be_is_told_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert told in str(caught.value) and str(tmp_path / "whit.toml") in str(caught.value)


def test_files_that_are_no_text_of_options(tmp_path: Path) -> None:
    path = tmp_path / "whit.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not TOML"):
        read_config("train", TrainSettings, path, tmp_path)
    path.write_bytes(b"#" * (2 << 20))
    with pytest.raises(UsageError, match="too large"):
        read_config("train", TrainSettings, path, tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_config("train", TrainSettings, tmp_path / "absent.toml", tmp_path)


# -- from Python


def test_python_values_become_settings() -> None:
    held = hold(TrainSettings, {"data": "rows.jsonl", "shots": [1], "epochs": 2, "out": Path("o"), "limit": None})
    assert held == TrainSettings(data=Path("rows.jsonl"), shots=(1,), epochs=2.0, out=Path("o"))


@pytest.mark.parametrize(
    ("settings", "given_", "told"),
    [
        (RunSettings, {"adapter": "a", "max_token": 3}, "did you mean max_tokens?"),
        (RunSettings, {"adapter": "a", "temperature": 11}, "from 0.0 to 10.0"),
        (ExportSettings, {"adapter": "a", "out": "o", "to": "zip"}, "must be one of peft"),
        (TrainSettings, {"data": "d", "seeds": "2"}, "must be a whole number"),
    ],
)
def test_python_values_are_held_to_the_same_limits(settings: type, given_: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match="(?s)" + told.replace("?", r"\?")):
        hold(settings, given_)


@given(
    batch=st.integers(1, 1000), rate=st.floats(1e-6, 1.0), kind=st.sampled_from(["xs", "tiny", "lora"]),
    shots=st.lists(st.integers(1, 9), max_size=4), resume=st.booleans(),
)  # fmt: skip
def test_settings_survive_being_plain_values(
    batch: int, rate: float, kind: str, shots: list[int], resume: bool
) -> None:
    settings = TrainSettings(
        data=Path("d"), batch=batch, learning_rate=rate, kind=kind, shots=tuple(shots), resume=resume
    )
    assert hold(TrainSettings, as_plain(settings)) == settings


def test_defaults_are_within_their_own_limits() -> None:
    for settings in (TrainSettings, EvalSettings, RunSettings, ExportSettings):
        stated = {part.name: part.default for part in fields(settings) if part.default not in (None, ())}
        needed = {part.name: "x" for part in fields(settings) if part.metadata["positional"]}
        hold(settings, {**stated, **needed})
