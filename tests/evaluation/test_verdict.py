from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whit.errors import DataError, ScoreError, UsageError
from whit.evaluation import statistics
from whit.evaluation.scoring import Score
from whit.evaluation.verdict import Comparison, Verdict, compare, decide

# From worst to best: what a change of rows in the adapter's favour may never go down.
ORDER = [Verdict.HARMED, Verdict.NOT_ENOUGH_DATA, Verdict.NO_WORSE, Verdict.HELPED]


def scores(wins: int, losses: int, both: int = 0, neither: int = 0) -> tuple[list[Score], list[Score]]:
    base = [0.0] * wins + [1.0] * losses + [1.0] * both + [0.0] * neither
    tuned = [1.0] * wins + [0.0] * losses + [1.0] * both + [0.0] * neither
    return [Score(value) for value in base], [Score(value) for value in tuned]


def verdict_of(wins: int, losses: int, rows: int) -> Verdict:
    return compare(*scores(wins, losses, rows - wins - losses)).verdict


@pytest.mark.parametrize(
    ("wins", "losses", "rows", "verdict"),
    [
        (40, 5, 200, Verdict.HELPED),
        (5, 40, 200, Verdict.HARMED),
        (5, 5, 2000, Verdict.NO_WORSE),
        (0, 0, 300, Verdict.NO_WORSE),
        (0, 0, 20, Verdict.NOT_ENOUGH_DATA),
        (20, 18, 200, Verdict.NOT_ENOUGH_DATA),
        (5, 0, 5, Verdict.NOT_ENOUGH_DATA),
        (6, 0, 6, Verdict.HELPED),
        (0, 3, 10_000, Verdict.NO_WORSE),  # a loss may be there, but far within the margin
        (5, 30, 10_000, Verdict.HARMED),  # small, but shown: a regression must be visible
    ],
)
def test_the_rule(wins: int, losses: int, rows: int, verdict: Verdict) -> None:
    assert verdict_of(wins, losses, rows) is verdict


def test_interval_and_test_must_agree() -> None:
    assert decide((0.01, 0.3), 0.06) is Verdict.NO_WORSE
    assert decide((-0.001, 0.3), 0.01) is Verdict.NO_WORSE
    assert decide((-0.3, -0.1), 0.2) is Verdict.NOT_ENOUGH_DATA
    assert decide((-0.01, 0.3), 0.9, margin=0.0) is Verdict.NOT_ENOUGH_DATA
    with pytest.raises(ValueError):
        decide((0.2, 0.1), 0.5)
    with pytest.raises(ValueError):
        decide((float("nan"), 0.1), 0.5)


counts = st.integers(1, 400).flatmap(
    lambda rows: st.tuples(st.just(rows), st.integers(0, rows)).flatmap(
        lambda two: st.tuples(st.just(two[0]), st.just(two[1]), st.integers(0, two[0] - two[1]))
    )
)


@given(counts)
@settings(max_examples=80, deadline=None)
def test_swapping_the_systems_swaps_helped_and_harmed(drawn: tuple[int, int, int]) -> None:
    rows, wins, losses = drawn
    here, there = (
        compare(*scores(wins, losses, rows - wins - losses)),
        compare(*reversed(scores(wins, losses, rows - wins - losses))),
    )
    assert (here.verdict is Verdict.HELPED) == (there.verdict is Verdict.HARMED)
    assert (here.verdict is Verdict.HARMED) == (there.verdict is Verdict.HELPED)
    assert here.p_value == there.p_value
    assert here.interval == pytest.approx((-there.interval[1], -there.interval[0]), abs=1e-8)


@given(counts)
@settings(max_examples=150, deadline=None)
def test_a_row_turned_in_the_adapters_favour_never_lowers_the_verdict(drawn: tuple[int, int, int]) -> None:
    rows, wins, losses = drawn
    before = ORDER.index(verdict_of(wins, losses, rows))
    if losses:
        assert ORDER.index(verdict_of(wins, losses - 1, rows)) >= before
        assert ORDER.index(verdict_of(wins + 1, losses - 1, rows)) >= before
    if wins + losses < rows:
        assert ORDER.index(verdict_of(wins + 1, losses, rows)) >= before


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 1.0])] * 2), min_size=1, max_size=60), st.randoms())
@settings(max_examples=40, deadline=None)
def test_the_order_of_rows_does_not_matter(pairs: list[tuple[float, float]], shuffler: random.Random) -> None:
    shuffled = list(pairs)
    shuffler.shuffle(shuffled)
    one, other = (
        compare([Score(b) for b, _ in some], [Score(t) for _, t in some], resamples=500) for some in (pairs, shuffled)
    )
    assert one.verdict == other.verdict and one.p_value == other.p_value
    assert one.interval == pytest.approx(other.interval)
    assert one.wins + one.losses + one.ties == one.rows == len(pairs)


def test_graded_scores() -> None:
    base = [Score(0.2 + 0.01 * (n % 10)) for n in range(100)]
    tuned = [Score(0.5 + 0.01 * (n % 7)) for n in range(100)]
    c = compare(base, tuned)
    assert c.graded and c.mid_p is None and c.verdict is Verdict.HELPED
    assert c.difference == pytest.approx(c.tuned - c.base)
    assert compare(base, base).verdict is Verdict.NOT_ENOUGH_DATA  # 100 rows cannot exclude 2 points
    assert compare(*scores(40, 5, 100), graded=True).verdict is Verdict.HELPED


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(DataError, match="no held-out rows"):
        compare([], [])
    with pytest.raises(ScoreError, match="same rows"):
        compare([Score(1.0)], [])
    with pytest.raises(UsageError):
        compare([Score(1.0)], [Score(1.0)], margin=-0.1)


@pytest.mark.parametrize(("wins", "losses", "rows"), [(20, 18, 200), (0, 0, 20), (7, 3, 40), (5, 0, 5), (3, 9, 60)])
def test_the_rows_that_would_settle_it_do(wins: int, losses: int, rows: int) -> None:
    c = compare(*scores(wins, losses, rows - wins - losses))
    assert c.verdict is Verdict.NOT_ENOUGH_DATA
    assert c.rows_needed is not None and c.rows_needed > rows
    # With half as many again as that (80 % power is not certainty), the same shares settle it.
    factor = 1.5 * c.rows_needed / rows
    more = round(wins * factor), round(losses * factor), round(rows * factor)
    assert verdict_of(*more) is not Verdict.NOT_ENOUGH_DATA


@pytest.mark.parametrize(
    ("wins", "losses", "rows", "comes", "said"),
    [
        (0, 0, 20, Verdict.NO_WORSE, "show that it is no worse, not that it is better"),
        (20, 18, 200, Verdict.NO_WORSE, "show that it is no worse, not that it is better"),
        (5, 0, 5, Verdict.HELPED, "show that it helped"),
        (3, 9, 60, Verdict.HARMED, "show that it harmed"),
    ],
)
def test_what_more_rows_would_show_is_named(wins: int, losses: int, rows: int, comes: Verdict, said: str) -> None:
    c = compare(*scores(wins, losses, rows - wins - losses))
    assert c.needed_for is comes and f"about {c.rows_needed:,} rows would {said}" in c.sentence()
    factor = 2 * c.rows_needed / rows
    assert verdict_of(round(wins * factor), round(losses * factor), round(rows * factor)) is comes
    plain = json.loads(json.dumps(c.to_json()))
    assert plain["needed_for"] == str(comes) and Comparison.from_json(plain) == c
    del plain["needed_for"]  # a card of before
    assert "would settle it" in Comparison.from_json(plain).sentence()


def test_format_is_told_from_skill() -> None:
    # The base knew 60 of 100 but said it in a sentence; the adapter knows the same and says it plainly.
    base = [Score(0.0, False, None, float(n < 60)) for n in range(100)]
    tuned = [Score(float(n < 60), True) for n in range(100)]
    c = compare(base, tuned)
    assert c.verdict is Verdict.HELPED and c.format_only
    assert (c.difference, c.skill_difference, c.format_difference) == (0.6, 0.0, 0.6)
    assert (c.base_valid, c.tuned_valid) == (0.0, 1.0)
    assert "60.0 of the 60.0 points are format" in c.sentence()
    some = compare([Score(0.0, False, None, float(n < 20)) for n in range(100)], [Score(1.0)] * 100)
    assert not some.format_only and "20.0 points are format only" in some.sentence()
    real = compare([Score(0.0)] * 60 + [Score(1.0)] * 40, [Score(1.0)] * 100)
    assert not real.format_only and real.format_difference == 0


@pytest.mark.parametrize(("wins", "losses", "rows"), [(40, 5, 200), (5, 40, 200), (0, 0, 300), (2, 1, 20), (1, 0, 3)])
def test_json_round_trip(wins: int, losses: int, rows: int) -> None:
    c = compare(*scores(wins, losses, rows - wins - losses))
    plain = json.loads(json.dumps(c.to_json(), allow_nan=False))
    assert Comparison.from_json(plain) == c
    promised = (
        "verdict",
        "rows",
        "base",
        "tuned",
        "difference",
        "interval",
        "p_value",
        "smallest_detectable",
    )
    assert all(name in plain for name in promised)
    assert plain["verdict"] in {"helped", "no worse", "harmed", "not enough data"}
    assert plain["sentence"].startswith(plain["verdict"].capitalize())
    assert str(rows) in plain["sentence"]
    del plain["wins"]
    with pytest.raises(DataError, match="wins"):
        Comparison.from_json(plain)


def test_exit_codes_differ() -> None:
    assert [verdict.exit_code for verdict in Verdict] == [0, 10, 11, 12]


def test_false_alarms_are_rare() -> None:
    """With no true difference, `helped` and `harmed` together come up in at most 5 of 100."""
    rng = random.Random(0)
    alarms = 0
    for _ in range(600):
        discordant = sum(rng.random() < 0.15 for _ in range(150))
        wins = sum(rng.random() < 0.5 for _ in range(discordant))
        low_high = statistics.tango_interval(wins, discordant - wins, 150)
        alarms += decide(low_high, statistics.mcnemar(wins, discordant - wins).p_value) in (
            Verdict.HELPED,
            Verdict.HARMED,
        )
    assert alarms / 600 <= 0.05
