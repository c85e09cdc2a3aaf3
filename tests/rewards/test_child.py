"""Whatever a reward's function does, there is one clear report, soon, and nothing is left running."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from whit.errors import ScoreError, UsageError
from whit.rewards.child import Child, Job

FUNCTIONS = """
import math, os, subprocess, sys, time
def good(prompt, answer, row): print("noise"); return len(answer) / 10
def two(answer, row): return row["completion"] == answer
def parts(prompt, answer, row): return {"skill": 0.25, "format": 0, "lenient": 0.5}
def raises(prompt, answer, row): raise ValueError("no such thing")
def hangs(prompt, answer, row): time.sleep(0 if answer == "fast" else 600)
def spins(prompt, answer, row):
    while True: pass
def exits(prompt, answer, row): sys.exit(3)
def dies(prompt, answer, row): os._exit(3)
def nan(prompt, answer, row): return math.nan
def two_point(prompt, answer, row): return 2.0
def nothing(prompt, answer, row): return None
def words(prompt, answer, row): return {"score": 1}
def forks(prompt, answer, row): os.fork(); return 1.0
def runs(prompt, answer, row): return subprocess.run(["true"]).returncode
def reads(prompt, answer, row): return float(sys.stdin.read() == "")
def bomb(prompt, answer, row):
    while True: os.fork()
def deep(answer, row):
    import json
    return json.loads(answer)
def partly(answer, row): return {"skill": None}
def listed(answer, row): return [1.0]
"""


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    path = tmp_path / "fns.py"
    path.write_text(FUNCTIONS)
    return path


def job(answer: str = "abcde") -> Job:
    return Job("r7", "q", answer, {"completion": "abcde"})


def test_numbers_come_back_in_order_and_prints_do_no_harm(functions: Path) -> None:
    child = Child(f"{functions}:good", name="good")
    assert [found.skill for found in child.ask([job("a"), job("abc"), job("")])] == [0.1, 0.3, 0.0]
    first = child._process
    child.ask([job()])
    assert child._process is first, "one process serves all questions"
    child.close()


def test_a_function_of_two_and_one_that_tells_parts(functions: Path) -> None:
    assert Child(f"{functions}:two", name="two").ask([job()])[0].skill == 1.0
    found = Child(f"{functions}:parts", name="parts").ask([job()])[0]
    assert (found.skill, found.format, found.lenient) == (0.25, False, 0.5)
    assert Child(f"{functions}:reads", name="reads").ask([job()])[0].skill == 1.0


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("raises", "it raised ValueError: no such thing (fns.py:6)"),
        ("deep", "it raised JSONDecodeError: Expecting value: line 1 column 1 (char 0) (fns.py:23)"),
        ("exits", "called exit(3) (fns.py:10)"),
        ("dies", "exit code 3"),
        ("nan", "answered nan"),
        ("two_point", "answered 2.0"),
        ("nothing", "it answered None; a reward is a number from 0 to 1"),
        ("partly", "it answered None for 'skill'; a reward is"),
        ("listed", "it answered a list; a reward is"),
        ("words", "without 'skill'"),
        ("forks", "may start no process (os.fork)"),
        ("runs", "may start no process"),
        ("bomb", "may start no process"),
    ],
)
def test_each_misdeed_is_one_report_that_names_the_row(functions: Path, name: str, told: str) -> None:
    child = Child(f"{functions}:{name}", name=name)
    with pytest.raises(ScoreError, match=r"row r7") as error:
        child.ask([job()])
    assert told in str(error.value) and f"--reward {name}" in str(error.value)
    assert child._process is None


@pytest.mark.parametrize("name", ["hangs", "spins"])
def test_one_that_never_ends_is_ended(functions: Path, name: str) -> None:
    child = Child(f"{functions}:{name}", name=name, seconds=0.5)
    child.start()
    process = child._process
    assert process is not None
    began = time.monotonic()
    with pytest.raises(ScoreError, match=r"row r7: no answer within 0\.5 s"):
        child.ask([job()])
    assert time.monotonic() - began < 10 and process.poll() is not None
    if hasattr(os, "killpg"):
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)


def test_a_name_that_is_not_there_is_told_at_the_start(functions: Path) -> None:
    with pytest.raises(UsageError, match="has no function absent"):
        Child(f"{functions}:absent", name="absent").start()
    (functions.parent / "broken.py").write_text("1 / 0")
    with pytest.raises(UsageError, match="ZeroDivisionError"):
        Child(f"{functions.parent}/broken.py:f", name="broken").start()
