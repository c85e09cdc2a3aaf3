"""Killed or interrupted at any moment, a run resumed ends in the same bits; a full disk or NaN loses nothing."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Commands, flags

from whit.adapters.adapter import Adapter
from whit.errors import UsageError
from whit.testing import write_rows

pytestmark = pytest.mark.timeout(900)

# Steps of rows in which something may happen: 21 steps, 5 evaluations and as many checkpoints.
RUNS: dict[str, dict[str, Any]] = {
    "xs": {"kind": "xs", "batch": 4, "epochs": 1.0, "evaluations": 5, "learning_rate": 0.02, "seeds": 2},
    "lora": {"kind": "lora", "batch": 4, "epochs": 1.0, "evaluations": 5, "dropout": 0.3, "accumulate": 2, "rank": 4},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", 120)


@pytest.fixture(scope="module")
def command(base: Path, data: Path) -> Callable[..., list[str]]:
    def of(kind: str, out: Path, /, **more: Any) -> list[str]:
        settings = {"base": base, "dtype": "float32", "baselines": False, **RUNS[kind], **more, "out": out}
        return ["train", str(data), *flags(settings)]

    return of


class Ended:
    """What a run left, less what depends on the clock."""

    def __init__(self, folder: Path) -> None:
        names = ("adapter.whit", "adapter_model.safetensors", "adapter_config.json", "held-out.jsonl", "seen.txt")
        self.files = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
        card = json.loads((folder / "card.json").read_text())
        for key in ("created", "cost"):
            card.pop(key)
        self.card = card
        page = (folder / "report.html").read_text()
        # The learning curve and the figures as drawn; times and dates are not part of the result.
        self.curve = re.findall(r"<(?:path|polyline|circle|text)[^>]*>", page)
        self.left = sorted(item.name for item in folder.iterdir())


def assert_same(folder: Path, whole: Ended) -> None:
    ended = Ended(folder)
    assert ended.files == whole.files
    assert ended.card == whole.card
    assert ended.curve == whole.curve
    assert ended.left == whole.left and "state" not in ended.left


@pytest.fixture(scope="module")
def whole(
    whit: Commands, command: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Ended, float]]:
    """What an uninterrupted run leaves, and how many seconds it takes."""
    found: dict[str, tuple[Ended, float]] = {}

    def of(kind: str) -> tuple[Ended, float]:
        if kind not in found:
            folder = tmp_path_factory.mktemp("whole") / "out"
            began = time.monotonic()
            ended = whit(*command(kind, folder))
            assert ended.code == 0, ended.stderr
            found[kind] = Ended(folder), time.monotonic() - began
        return found[kind]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["xs", "lora"])
def test_killed_at_random_moments(
    whit: Commands, command: Callable[..., list[str]], whole: Callable[[str], tuple[Ended, float]], tmp_path: Path,
    kind: str,
) -> None:  # fmt: skip
    expected, seconds = whole(kind)
    moments = random.Random(time.time_ns())
    folder = tmp_path / "out"
    for _ in range(4):
        running = whit.start(*command(kind, folder, resume=True))
        time.sleep(moments.uniform(0.1, 0.9) * seconds)
        running.send(signal.SIGKILL)
        if running.wait().code == 0:  # it was quicker this time
            assert_same(folder, expected)
            shutil.rmtree(folder)
    ended = whit(*command(kind, folder, resume=True))
    assert ended.code == 0, ended.stderr
    assert_same(folder, expected)


@pytest.mark.parametrize("kind", ["xs", "lora"])
def test_killed_while_writing_a_checkpoint(
    whit: Commands, command: Callable[..., list[str]], whole: Callable[[str], tuple[Ended, float]], tmp_path: Path,
    kind: str,
) -> None:  # fmt: skip
    folder = tmp_path / "out"
    killed = whit(*command(kind, folder), fault="killed_while_writing_second_checkpoint")
    assert killed.code == -signal.SIGKILL
    left = sorted(item.name for item in (folder / "state").iterdir())
    assert len(left) == 2 and left[0].endswith(".partial") and left[1] == "seed-0-run.safetensors"
    assert not (folder / "adapter.whit").exists() and not (folder / "card.json").exists()
    ended = whit(*command(kind, folder, resume=True))
    assert ended.code == 0, ended.stderr
    assert_same(folder, whole(kind)[0])


@pytest.mark.parametrize(
    ("kind", "how", "code"), [("xs", signal.SIGINT, 130), ("lora", signal.SIGINT, 130), ("lora", signal.SIGTERM, 143)]
)
def test_interrupted_from_the_keyboard_or_terminated(
    whit: Commands, command: Callable[..., list[str]], whole: Callable[[str], tuple[Ended, float]], tmp_path: Path,
    kind: str, how: int, code: int,
) -> None:  # fmt: skip
    folder = tmp_path / "out"
    running = whit.start(*command(kind, folder))
    state = folder / "state" / "seed-0-run.safetensors"
    while not state.exists():
        time.sleep(0.005)
    time.sleep(random.Random(time.time_ns()).uniform(0, 0.2))
    running.send(how)
    stopped = running.wait()
    if stopped.code != 0:  # on a fast machine it may have ended just before
        assert stopped.code == code
        if "stopped at step" in stopped.stderr:
            assert "--resume" in stopped.error
        else:
            assert "Traceback" not in stopped.stderr
        again = whit(*command(kind, folder))
        assert again.code == 2 and "--resume" in again.error and str(folder / "state") in again.error
        ended = whit(*command(kind, folder, resume=True))
        assert ended.code == 0, ended.stderr
    assert_same(folder, whole(kind)[0])


def test_a_full_disk_while_saving_loses_nothing(
    whit: Commands, command: Callable[..., list[str]], whole: Callable[[str], tuple[Ended, float]], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    full = whit(*command("xs", folder), fault="full_disk_at_second_checkpoint")
    assert full.code == 8
    assert "disk is full; free some space and run the same command again" in full.error
    assert [item.name for item in (folder / "state").iterdir()] == ["seed-0-run.safetensors"]
    ended = whit(*command("xs", folder, resume=True))
    assert ended.code == 0, ended.stderr
    assert (
        re.search(r"^seed 0: goes on from step [1-9]\d* of 23$", ended.stderr, re.M)
        and "seed 1: goes" not in ended.stderr
    )
    assert "to train what is left, then" in ended.stderr and "to train 2 seeds, then" in full.stderr
    assert_same(folder, whole("xs")[0])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 256 kB; needs the right to mount."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    done = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=256k", "none", str(place)], capture_output=True, check=False
    )
    if not done or done.returncode != 0:
        pytest.skip("no right to mount a small disk here")
    yield place
    subprocess.run(["umount", str(place)], check=False)


def test_a_disk_that_is_really_full(
    whit: Commands, command: Callable[..., list[str]], whole: Callable[[str], tuple[Ended, float]], small_disk: Path
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * (250 << 10))
    full = whit(*command("lora", small_disk / "out"))
    assert full.code == 8 and "disk is full" in full.error
    state = small_disk / "out" / "state"
    assert not state.exists() or not [item.name for item in state.iterdir() if item.suffix == ".partial"]
    ballast.unlink()
    # Now there is room for one checkpoint at a time; what was saved is gone on with.
    ended = whit(*command("lora", small_disk / "out", resume=True))
    if ended.code == 8:  # the report may still be too large for it
        pytest.skip("the disk is too small for the report")
    assert ended.code == 0, ended.stderr
    assert_same(small_disk / "out", whole("lora")[0])


def test_nan_stops_with_the_row_and_keeps_the_last_good_state(
    whit: Commands, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    found = whit(*command("xs", folder, validation=0.1, seed=3), fault="nan_in_row_13")
    if found.code == 0:
        pytest.fail("row-13 is not among the rows to learn from; choose another seed")
    assert found.code == 6 and "nan" in found.error and "row-13" in found.error
    assert "row-12" not in found.error and (folder / "state" / "seed-3-run.safetensors").is_file()


@pytest.mark.parametrize(
    "change",
    [{"learning_rate": 0.03}, {"batch": 5}, {"seed": 1}, {"kind": "tiny"}, {"limit": 100}, {"dtype": "bfloat16"}],
)
def test_a_checkpoint_of_other_settings_is_refused(
    whit: Commands, command: Callable[..., list[str]], tmp_path: Path, interrupted: Path, change: dict[str, Any]
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(interrupted, folder)
    if "seed" in change:  # another seed's file would simply not be looked at
        (folder / "state" / "seed-0-run.safetensors").rename(folder / "state" / "seed-1-run.safetensors")
    refused = whit(*command("xs", folder, resume=True, **change))
    assert refused.code == 6 and "other settings, rows or base" in refused.error
    assert (folder / "state").is_dir()


@pytest.fixture(scope="module")
def interrupted(whit: Commands, command: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an interrupted run's checkpoint."""
    folder = tmp_path_factory.mktemp("interrupted") / "out"
    assert whit(*command("xs", folder), fault="full_disk_at_second_checkpoint").code == 8
    return folder


def test_other_rows_are_refused_but_their_place_may_change(
    whit: Commands, command: Callable[..., list[str]], whole: Callable[[str], tuple[Ended, float]],
    data: Path, interrupted: Path, tmp_path: Path,
) -> None:  # fmt: skip
    folder = tmp_path / "out"
    shutil.copytree(interrupted, folder)
    arguments = command("xs", folder, resume=True)
    elsewhere = tmp_path / "elsewhere" / "rows.jsonl"
    elsewhere.parent.mkdir()
    shutil.copy(data, elsewhere)
    changed = tmp_path / "changed.jsonl"
    changed.write_text(data.read_text().replace('"completion": "cash"', '"completion": "coin"', 1))
    refused = whit("train", changed, *arguments[2:])
    assert refused.code == 6 and "other settings, rows or base" in refused.error
    ended = whit("train", os.path.relpath(elsewhere, tmp_path), *arguments[2:], cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    assert Ended(folder).files == whole("xs")[0].files


def test_another_kind_in_the_same_folder_replaces_the_first(
    trained: Callable[[str], Any], options: Callable[[str], dict[str, Any]], rows: Path, tmp_path: Path
) -> None:
    import whit as api

    folder = tmp_path / "out"
    for kind in ("xs", "lora", "tiny"):
        made = api.train(rows, out=folder, baselines=False, limit=40, overwrite=True, **options(kind))
        assert Adapter.load(folder).kind == kind == json.loads((folder / "card.json").read_text())["kind"]
        assert Adapter.load(folder).numbers == made.adapter.numbers


def test_the_folder_must_be_a_folder_of_its_own(rows: Path, tmp_path: Path) -> None:
    import whit as api

    with pytest.raises(UsageError, match="is the data; name another folder"):
        api.train(rows, out=rows, base="nowhere")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is a file; name a folder"):
        api.train(rows, out=tmp_path / "file", base="nowhere")
    assert (tmp_path / "file").read_text() == "mine"
    for name in ("n\x01", "two\nlines", "two\u2028lines", "\x9b31m"):
        with pytest.raises(UsageError, match="has control characters in it") as told:
            api.train(rows, out=tmp_path / name, base="nowhere")
        assert str(told.value).isprintable()
    assert [item.name for item in tmp_path.iterdir()] == ["file"]
