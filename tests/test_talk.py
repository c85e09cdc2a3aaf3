"""Talk goes to stderr; clock and size as people read them."""

from __future__ import annotations

import pytest

from whit.talk import Talk, clock, several, size


def test_everything_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    talk = Talk()
    talk.say("hello")
    with talk.task("Loading x"):
        pass
    talk.progress("asking", 0, 4, 10.0, every=0)
    talk.progress("training", 1, 4, 10.0, "loss 1.0", every=0)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "hello",
        "Loading x …",
        "asking 0/4  10 s gone",
        "training 1/4  loss 1.0  10 s gone, 30 s left",
    ]


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    talk = Talk(quiet=True)
    talk.say("hello")
    talk.progress("training", 1, 4, 1.0, every=0)
    with talk.task("x"):
        pass
    assert capsys.readouterr() == ("", "")


def test_progress_is_sparing_but_always_tells_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    talk = Talk()
    for step in range(1, 101):
        talk.progress("training", step, 100, float(step), every=1000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 2 and lines[-1].startswith("training 100/100")


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (3600, "1 h 00 min"), (3720, "1 h 02 min")],
)
def test_clock(seconds: float, told: str) -> None:
    assert clock(seconds) == told


@pytest.mark.parametrize(
    ("count", "told"), [(63, "63 bytes"), (1680, "1.7 kB"), (4_880_000, "4.9 MB"), (1_500_000_000, "1.5 GB")]
)
def test_size(count: float, told: str) -> None:
    assert size(count) == told


def test_one_is_one() -> None:
    assert [several(count, "row") for count in (0, 1, 2, 2000)] == ["0 rows", "1 row", "2 rows", "2,000 rows"]
