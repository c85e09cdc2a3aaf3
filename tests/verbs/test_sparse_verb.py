"""`--kind sparse` through every command: trained, killed and resumed, shown, run, judged, exported."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from commands import Commands

from whit.adapters.adapter import Adapter

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def words(base: Path, rows: Path) -> list[object]:
    """The command without its --out."""
    found: list[object] = ["train", rows, "--base", base, "--dtype", "float32", "--kind", "sparse", "--numbers", "40"]
    found += ["--instruction", "card or cash?", "--batch", "8", "--epochs", "2", "--evaluations", "4"]
    return [*found, "--learning-rate", "0.1", "--no-baselines"]


@pytest.fixture(scope="module")
def made(whit: Commands, words: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sparse") / "made"
    done = whit(*words, "--out", folder, "--json")
    assert done.code == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["kind"], found["numbers"]) == ("sparse", 40)
    assert found["payload_bytes"] == Adapter.load(folder).payload_bytes < 40 * 2 + 40 * 4
    assert not (folder / "state").exists()
    return folder


def test_killed_and_resumed_it_ends_the_same(whit: Commands, words: list[object], made: Path, tmp_path: Path) -> None:
    running = whit.start(*words, "--out", tmp_path / "cut")
    state = tmp_path / "cut" / "state"
    until = time.monotonic() + 600
    while not list(state.glob("*.safetensors")) and time.monotonic() < until:
        time.sleep(0.005)
    assert list(state.glob("places-*.whit")), "which weights were chosen is kept"
    running.send(signal.SIGKILL)
    running.wait()
    again = whit(*words, "--out", tmp_path / "cut", "--resume")
    assert again.code == 0, again.stderr
    assert (tmp_path / "cut" / "adapter.whit").read_bytes() == (made / "adapter.whit").read_bytes()


def test_it_is_shown_run_and_judged(whit: Commands, made: Path, rows: Path, tmp_path: Path) -> None:
    shown = whit("show", made, "--json")
    about = json.loads(shown.stdout)
    assert about["kind"] == "sparse" and about["modules"] >= 1 and about["text"].startswith("whit1_")
    assert "sparse adapter of 40 numbers" in whit("show", made).stdout
    adapted = whit("run", made, "stolen card 7")
    as_text = whit("run", about["text"], "stolen card 7", "--base", about["card"]["base"], "--instruction",
                   "card or cash?", "--dtype", "float32")  # fmt: skip
    assert adapted.code == 0 and as_text.stdout == adapted.stdout, as_text.stderr
    fresh = tmp_path / "fresh.jsonl"
    lines = [json.loads(line) for line in rows.read_text().splitlines()][:20]
    fresh.write_text("".join(json.dumps({**line, "prompt": f"{line['prompt']} now"}) + "\n" for line in lines))
    judged = whit("eval", made, fresh, "--json")
    assert judged.code in (0, 1, 9, 10) or "verdict" in json.loads(judged.stdout), judged.stderr


@pytest.mark.parametrize("to", ["lora", "peft", "merged", "gguf-lora"])
def test_exports_compute_the_same(whit: Commands, made: Path, tmp_path: Path, to: str) -> None:
    if to == "gguf-lora":
        pytest.importorskip("gguf")
    done = whit("export", made, tmp_path / "out", "--to", to, "--json")
    assert done.code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["checked"] and found["largest_difference"] <= found["tolerance"] < found["effect"]


def test_where_it_cannot_go_it_says_so(whit: Commands, made: Path, words: list[object], tmp_path: Path) -> None:
    done = whit("bundle", made, tmp_path / "page")
    assert done.code == 2 and "export --to lora" in done.error
    for more, told in (
        (["--rank", "2"], "without --rank"),
        (["--numbers", "99999999"], "these modules have"),
    ):
        done = whit(*words, *more, "--out", tmp_path / "out")
        assert done.code == 2 and told in done.error, done.stderr
    without = [word for at, word in enumerate(words) if word != "--numbers" and words[at - 1] != "--numbers"]
    done = whit(*without, "--out", tmp_path / "out")
    assert done.code == 2 and "say how many with --numbers" in done.error


def test_by_reward(whit: Commands, words: list[object], tmp_path: Path) -> None:
    (tmp_path / "letters.py").write_text(
        "def small(answer, row): return sum(c.islower() for c in answer) / max(1, len(answer))\n"
    )
    rewarded = ["--reward", "letters.py:small", "--epochs", "0.3", "--evaluations", "2", "--samples", "4"]
    rewarded += ["--max-tokens", "4", "--reward-seconds", "30", "--population", "4", "--sigma", "1", "--numbers", "12"]
    for optimizer in ("grpo", "es"):
        out = tmp_path / optimizer
        done = whit(*words, *rewarded, "--optimizer", optimizer, "--out", out, "--json", cwd=tmp_path)
        assert done.code == 0, done.stderr
        assert json.loads(done.stdout)["kind"] == "sparse" and Adapter.load(out).numbers == 12
    # A warm start moves the same weights, and only an adapter with as many can be one.
    warm = [*words, *rewarded, "--warm-start"]
    done = whit(*warm, tmp_path / "grpo", "--out", tmp_path / "warm", cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert Adapter.load(tmp_path / "warm").sparse == Adapter.load(tmp_path / "grpo").sparse
    done = whit(*warm, tmp_path / "grpo", "--numbers", "13", "--out", tmp_path / "not", cwd=tmp_path)
    assert done.code == 2 and "no sparse adapter of 13 numbers" in done.error
