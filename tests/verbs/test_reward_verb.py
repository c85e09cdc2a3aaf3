"""`whit train --reward` and `--kind auto` by command line: the page's examples, the contract, resume, bad input."""

from __future__ import annotations

import json
import random
import re
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from commands import Commands

from whit.adapters.adapter import Adapter
from whit.verbs.ladder import Rung, choose, remarks_on

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def place(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with problems and options that make everything short."""
    folder = tmp_path_factory.mktemp("place")
    draw = random.Random(0)
    lines = []
    for number in range(60):
        one, two = draw.randrange(50), draw.randrange(50)
        words = draw.choice(["apples", "boxes", "pears", "cards", "trees", "books"])
        prompt = f"{draw.choice(['There are', 'I see', 'We have'])} {one} {words} and {two} more {number}"
        lines.append(json.dumps({"id": f"p{number}", "prompt": prompt, "completion": str(one + two)}))
    (folder / "problems.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "letters.py").write_text(
        "import os, time\n"
        "def small(answer, row): return sum(c.islower() for c in answer) / max(1, len(answer))\n"
        "def same(answer, row): return 0.5\n"
        "def hangs(answer, row): time.sleep(60)\n"
        "def exits(answer, row): raise SystemExit(3)\n"
        "def dies(answer, row): os._exit(3)\n"
        "def forks(answer, row): return float(os.fork() == 0)\n"
        "def never(answer, row): return 0.0\n"
    )
    plain = (
        f"[train]\nbase = '{base}'\ndtype = 'float32'\nepochs = 0.4\nevaluations = 2\nbatch = 4\n"
        "validation-rows = 4\nmax-tokens = 4\nshots = []\nbaselines = false\n"
    )
    (folder / "plain.toml").write_text(plain)
    (folder / "whit.toml").write_text(f"{plain}reward-seconds = 20\nsamples = 3\npopulation = 4\nsigma = 1.0\n")
    return folder


def options_for(words: list[str]) -> list[str]:
    """The words, with the file of options that holds none by reward where there is no reward."""
    return words if "--reward" in words else [*words, "--config", "plain.toml"]


def page_commands() -> list[list[str]]:
    """The commands of docs/reward.md's plain blocks."""
    blocks = re.findall(r"^```\n(.*?)^```$", (ROOT / "docs" / "reward.md").read_text("utf-8"), re.M | re.S)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines() if line.startswith("whit ")]


@pytest.mark.parametrize("words", page_commands(), ids=lambda words: words[-1])
def test_the_examples_of_the_page_work(whit: Commands, place: Path, words: list[str]) -> None:
    # A tiny random base gets no sum right: the examples' rewards are shaped, so that there is something to learn.
    shaped = [] if "auto" in words else ["--reward", "0.5*letters.py:small"]
    done = whit(*options_for([*words, *shaped]), "--json", cwd=place)
    assert done.code == 0, done.stderr
    found, folder = json.loads(done.stdout), place / words[-1]
    assert Adapter.load(folder).numbers == found["numbers"] and (folder / "report.html").is_file()
    assert not (folder / "state").exists()
    if "auto" in words:
        ladder = found["ladder"]
        assert sum(rung["kept"] for rung in ladder) == 1 and len(ladder) >= 4
        sizes = [rung["payload_bytes"] for rung in ladder]
        assert sizes == sorted(sizes) and {rung["share"] for rung in ladder} == {0.25, 0.5, 1.0}
        assert next(rung for rung in ladder if rung["kept"])["numbers"] == found["numbers"]
        assert "The ladder of sizes" in (folder / "report.html").read_text()
    else:
        lines = [json.loads(line) for line in (folder / "rewards.jsonl").read_text().splitlines()]
        assert len(lines) == found["steps"] and found["reward"].endswith(
            "0.1 format" if "form" in words[-1] else "letters.py:small"
        )
        assert all(0 <= line["skill"] <= 1 and 0 <= line["flat"] <= 1 for line in lines)
        assert "What was rewarded" in (folder / "report.html").read_text()


def test_killed_and_resumed_it_ends_the_same(whit: Commands, place: Path, tmp_path: Path) -> None:
    words = ["train", "problems.jsonl", "--reward", "letters.py:small", "--numbers", "13", "--epochs", "0.6"]
    words += ["--evaluations", "5"]
    assert whit(*words, "--out", tmp_path / "whole", cwd=place).code == 0
    running = whit.start(*words, "--out", tmp_path / "cut", cwd=place)
    state = tmp_path / "cut" / "state" / "seed-0-run.safetensors"
    until = time.monotonic() + 600
    while not state.exists() and time.monotonic() < until:
        time.sleep(0.005)
    running.send(signal.SIGKILL)
    running.wait()
    if state.exists():  # else it was quicker than the kill
        refused = whit(*words, "--out", tmp_path / "cut", cwd=place)
        assert refused.code == 2 and "--resume" in refused.error
    again = whit(*words, "--out", tmp_path / "cut", "--resume", cwd=place)
    assert again.code == 0, again.stderr
    assert Adapter.load(tmp_path / "cut").to_bytes() == Adapter.load(tmp_path / "whole").to_bytes()


def test_a_reward_that_raises_says_where_and_how_to_go_on(whit: Commands, place: Path, tmp_path: Path) -> None:
    function = tmp_path / "breaks.py"
    good = "def small(answer, row): return sum(c.islower() for c in answer) / max(1, len(answer))\n"
    # Answers of the validation rows come one by one; of a step's, the 31st breaks.
    function.write_text(good + "calls = []\ndef breaks(answer, row):\n    calls.append(1)\n"
                        "    if len(calls) > 30: raise KeyError('hue')\n    return small(answer, row)\n")  # fmt: skip
    words = ["train", "problems.jsonl", "--reward", f"{function}:breaks", "--numbers", "13", "--out", tmp_path / "out"]
    done = whit(*words, cwd=place)
    assert done.code == 7 and "raised KeyError: 'hue' (breaks.py:5)" in done.error, done.stderr
    assert "go on with the same command and --resume" in done.error
    function.write_text(good + "breaks = small\n")
    again = whit(*words, "--resume", cwd=place)
    assert again.code == 0, again.stderr


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--reward", "letters.py:same", "--numbers", "13"], 6, "0.5 for every answer"),
        (["--reward", "letters.py:hangs", "--reward-seconds", "0.5", "--numbers", "13"], 7, "no answer within 0.5 s"),
        (["--reward", "letters.py:exits", "--numbers", "13"], 7, "called exit(3)"),
        (["--reward", "letters.py:dies", "--numbers", "13"], 7, "its process ended (exit code 3)"),
        (["--reward", "letters.py:forks", "--numbers", "13"], 7, "may start no process"),
        (["--reward", "letters.py:never", "--numbers", "13"], 6, "start from a supervised adapter (--warm-start)"),
        (["--reward", "letters.py:small", "--numbers", "999999"], 2, "not reachable with rank 2"),
        (["--reward", "letters.py:small", "--numbers", "13", "--warm-start", "nowhere"], 5, "no adapter there"),
        (["--reward", "letters.py:absent"], 2, "has no function absent"),
        (["--reward", "numerik"], 2, "did you mean numeric"),
        (["--reward", "numeric", "--optimizer", "natural"], 2, "choose grpo"),
        (["--reward", "numeric", "--optimizer", "es", "--kind", "lora"], 2, "vector adapters"),
        (["--reward", "numeric", "--optimizer", "es", "--numbers", "13", "--population", "3"], 2, "even number"),
        (["--optimizer", "es"], 2, "needs a --reward"),
        (["--kind", "auto", "--rank", "2"], 2, "--rank"),
    ],
)
def test_bad_input(whit: Commands, place: Path, tmp_path: Path, words: list[str], code: int, told: str) -> None:
    done = whit("train", "problems.jsonl", *options_for(words), "--out", tmp_path / "out", cwd=place)
    assert done.code == code and told in done.error, done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--reward", "nosuch"], "--reward nosuch: unknown"),
        (["--reward", "regex:(("], "not a regular expression"),
        (["--reward", "json:no.json"], "cannot be read as a JSON schema"),
        (["--reward", "mypkg.score:fn"], "mypkg.score: no such module"),
        (["--reward", "numeric", "--score", "nosuch"], "nosuch"),
        (["--kind", "auto", "--reward", "nosuch"], "--reward nosuch: unknown"),
        (["--reward", "numeric", "--optimizer", "es", "--kind", "lora"], "vector adapters"),
        (["--reward", "numeric", "--optimizer", "es", "--population", "3"], "even number"),
        (["--reward", "numeric", "--optimizer", "es", "--kl", "0.1"], "grpo alone has a KL term"),
        (["--reward", "numeric", "--kind", "sparse"], "say how many with --numbers"),
        (["--reward", "numeric", "--warm-start", "nowhere"], "no adapter there"),
        (["--kind", "sparse"], "say how many with --numbers"),
        (["--kind", "xs", "--numbers", "13"], "with --kind xs use --rank"),
        (["--kind", "lora", "--alpha", "-1"], "must be above 0"),
    ],
)
def test_what_needs_no_base_is_told_before_it_is_loaded(
    whit: Commands, place: Path, tmp_path: Path, words: list[str], told: str
) -> None:
    words = [*options_for(words), "--base", "no-such-base"]
    done = whit("train", "problems.jsonl", *words, "--out", tmp_path / "out", cwd=place)
    assert done.code in (2, 5) and told in done.error, done.stderr


def test_what_never_succeeds_is_said_after_the_first_look(whit: Commands, place: Path, tmp_path: Path) -> None:
    done = whit("train", "problems.jsonl", "--reward", "letters.py:never", "--reward", "letters.py:small", "--numbers",
                "13", "--out", tmp_path / "out", cwd=place)  # fmt: skip
    assert done.code == 0, done.stderr
    said = done.stderr.index("the base gets none of 4 validation rows right")
    assert said < done.stderr.index("training: best") and "easier rows, more --numbers" in done.stderr[said:]
    # Answers that the limit cut off are counted, and the user is told.
    assert "% of the answers were cut off at 4 tokens; raise --max-tokens" in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / "rewards.jsonl").read_text().splitlines()]
    assert all(line["length"] <= 4 for line in lines) and any(line["cut"] > 0.5 for line in lines)


def test_a_generator_that_is_not_there(whit: Commands, place: Path, tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    for name, told in (
        ("chain_sm", "nearest: chain_sum"),
        ("zzzzqq", "there are"),
        ("chain_sum,max_term=2", "max_terms"),
    ):
        done = whit("train", "--reward", f"gym:{name}", "--numbers", "13", "--out", tmp_path / "out", cwd=place)
        assert done.code == 2 and told in done.error, done.stderr


@pytest.mark.parametrize("kind", [["--numbers", "13"], ["--kind", "xs"], ["--kind", "lora", "--rank", "2"]])
def test_a_warm_start_begins_where_the_adapter_stands(
    whit: Commands, place: Path, tmp_path: Path, kind: list[str]
) -> None:
    words = ["train", "problems.jsonl", *kind, "--learning-rate", "0.05"]
    first = whit(*words, "--reward", "letters.py:small", "--out", tmp_path / "first", cwd=place)
    assert first.code == 0, first.stderr
    # At a rate of next to nothing it ends where it began: at the first adapter, which is not the bare base.
    still = [*words[:-1], "1e-12", "--reward", "letters.py:small", "--warm-start", tmp_path / "first"]
    done = whit(*still, "--out", tmp_path / "still", cwd=place)
    assert done.code == 0, done.stderr
    one, other = Adapter.load(tmp_path / "first"), Adapter.load(tmp_path / "still")
    if one.lora is not None and other.lora is not None:
        assert all((one.lora.B[name] == other.lora.B[name]).all() for name in one.lora.B)
        assert any(part.any() for part in one.lora.B.values())
    else:
        assert one.vector is not None and one.vector.any() and one.to_bytes() == other.to_bytes()
    other_size = ["train", "problems.jsonl", "--reward", "letters.py:small", "--kind", "xs", "--rank", "3"]
    done = whit(*other_size, "--warm-start", tmp_path / "first", "--out", tmp_path / "not", cwd=place)
    assert done.code == 2 and "--warm-start" in done.error and "the same --kind" in done.error, done.stderr


def test_no_data_and_no_generator(whit: Commands, place: Path) -> None:
    for words in (["train"], ["train", "--reward", "numeric"], ["train", "--kind", "auto"]):
        done = whit(*options_for(words), cwd=place)
        assert done.code == 2 and "Missing argument 'DATA'" in done.error


def test_a_gym_makes_its_own_rows(whit: Commands, place: Path, tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    words = ["train", "--reward", "gym:chain_sum,max_terms=2,max_digits=2", "--reward", "letters.py:small"]
    done = whit(*words, "--numbers", "13", "--limit", "60", "--out", tmp_path / "gym", "--json", cwd=place)
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["rows"] > 5 and (tmp_path / "gym" / "chain_sum.jsonl").is_file()


def rung(name: str, payload: int, right: int, of: int = 100) -> Rung:
    from whit.evaluation.scoring import Score

    nothing: Any = None
    scores = [Score(float(place < right)) for place in range(of)]
    return Rung(name, nothing, payload // 2, payload, 1.0, nothing, {}, scores, 1.0)


def test_the_smallest_that_is_not_separably_worse() -> None:
    rungs = [rung("a", 26, 40), rung("b", 104, 78), rung("c", 420, 80), rung("d", 900, 60)]
    best, kept = choose(rungs)
    assert (best.name, kept.name) == ("c", "b")
    said = " ".join(remarks_on(rungs, best, kept))
    assert "smallest that is not separably worse" in said and "over-fit" in said and "Separably worse" in said
    assert choose([rung("a", 26, 80), rung("b", 104, 80)])[1].name == "a"
