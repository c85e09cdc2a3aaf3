"""`whit run` in a pipe: lines are answered as they come, a line each; one that cannot be does not stop the others."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pytest
from commands import Commands

from whit.errors import DataError
from whit.settings import RunSettings
from whit.talk import Talk
from whit.verbs import lines
from whit.verbs import run as verb
from whit.verbs.lines import TOGETHER, batches
from whit.verbs.run import Stream, run


@pytest.fixture
def pipe() -> Iterator[tuple[IO[str], int]]:
    """What is read from, as standard input is, and where to write."""
    read, write = os.pipe()
    with os.fdopen(read, encoding="utf-8") as source:
        yield source, write
        with contextlib.suppress(OSError):
            os.close(write)


def settings(base: Path, **more: Any) -> RunSettings:
    return RunSettings(adapter=str(base), dtype="float32", max_tokens=4, **more)


def test_lines_are_handed_on_as_they_come(pipe: tuple[IO[str], int]) -> None:
    source, write = pipe
    found = batches(source)
    os.write(write, b"one\ntwo\r\nthr")
    assert next(found) == ["one", "two"]  # though the pipe is open, and a third line has begun
    os.write(write, b"ee\n\n")
    assert next(found) == ["three", ""]
    many = [f"{at} é" for at in range(2 * TOGETHER + 1)]
    os.write(write, "\n".join(many).encode())  # no end of line behind the last
    os.close(write)
    some = list(found)
    assert max(map(len, some)) <= TOGETHER and [line for each in some for line in each] == many


def test_bytes_that_are_no_text_are_told_with_their_line(pipe: tuple[IO[str], int]) -> None:
    source, write = pipe
    os.write(write, b"fine\n\xff\n")
    os.close(write)
    with pytest.raises(DataError, match="standard input, line 2: not utf-8"):
        list(batches(source))


def test_a_line_is_answered_before_the_next_is_written(base: Path, pipe: tuple[IO[str], int]) -> None:
    source, write = pipe
    pieces = Stream(settings(base), batches(source), Talk(quiet=True)).pieces()
    for asked in ("how do I pay?", "is my card lost?"):
        os.write(write, f"{asked}\n".encode())
        assert next(pieces) == run(settings(base, prompt=asked)).answers[0]
    os.close(write)
    assert list(pieces) == []


def test_draws_do_not_depend_on_how_lines_come(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [f"what is {at}?" for at in range(5)]
    warm = settings(base, temperature=3.0, seed=1)
    together = run(warm, lines=asked).answers
    monkeypatch.setattr(lines, "TOGETHER", 2)
    assert run(warm, lines=asked).answers == together
    assert len(set(together)) > 1


def test_a_line_too_long_is_named_and_the_others_are_answered(whit: Commands, base: Path) -> None:
    said = whit("run", base, "--max-tokens", 4, "--dtype", "float32", stdin=f"one\n{'long ' * 400}\nthree\n")
    assert said.code == DataError.exit_code and "line 2: the prompt has" in said.stderr
    first, second, third = said.stdout.splitlines()
    assert (first, second, third) == (
        *run(settings(base, prompt="one")).answers,
        "",
        *run(settings(base, prompt="three")).answers,
    )
    found = run(settings(base), lines=["one", "long " * 400])
    document = found.to_json()["answers"]
    assert document[0] == {"prompt": "one", "answer": first}
    assert document[1]["answer"] is None and "at most" in document[1]["error"] and found.exit_code == said.code
    with pytest.raises(DataError, match="at most"):
        run(settings(base, prompt="long " * 400))


def test_a_line_in_is_a_line_out(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def answering(*given: Any) -> Iterator[Any]:
        def answer(prompts: Sequence[str], number: int) -> list[str]:
            return [f"{prompt}:\nyes\r\n\\no" for prompt in prompts]

        yield answer

    monkeypatch.setattr(verb, "_answering", answering)
    asked = settings(Path("any"))
    assert list(Stream(asked, [["a", "b"]], Talk(quiet=True)).pieces()) == [
        "a:\\nyes\\r\\n\\no",
        "b:\\nyes\\r\\n\\no",
    ]
    assert Stream(asked, [["a"]], Talk(quiet=True)).to_json()["answers"][0]["answer"] == "a:\nyes\r\n\\no"
    assert run(settings(Path("any"), prompt="a")).to_text() == "a:\nyes\r\n\\no"
