"""Against scipy, statsmodels, published examples, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whit.evaluation import statistics as s


@given(st.integers(0, 400), st.integers(0, 400))
@settings(max_examples=60, deadline=None)
def test_mcnemar_is_statsmodels_exact_test(wins: int, losses: int) -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    expected = mcnemar([[5, wins], [losses, 7]], exact=True).pvalue if wins + losses else 1.0
    assert s.mcnemar(wins, losses).p_value == pytest.approx(expected, rel=1e-9)


def test_mid_p_against_fagerlands_example() -> None:
    # Fagerland et al. (2013), airway hyper-responsiveness: 1 and 7 discordant; exact 0.070, mid-p 0.039.
    test = s.mcnemar(1, 7)
    assert (round(test.p_value, 3), round(test.mid_p, 3)) == (0.070, 0.039)


def test_mcnemar_does_not_overflow() -> None:
    test = s.mcnemar(500_000, 500_900)
    assert 0 < test.mid_p < test.p_value < 1
    assert s.mcnemar(0, 100_000).p_value == 0.0 and s.mcnemar(3, 3) == s.McNemar(1.0, pytest.approx(1.0))


@pytest.mark.parametrize(
    ("wins", "losses", "rows", "alpha", "low", "high"),
    [
        (1, 7, 21, 0.05, -0.517, -0.026),  # Bentur et al. 2009, in Fagerland et al. (2013)
        (28, 25, 618, 0.10, -0.0148, 0.0247),  # R: PropCIs::scoreci.mp(25, 28, 618, 0.90)
        (0, 1, 44, 0.05, -0.118, 0.059),  # Tango (1998)'s crossover trial
    ],
)
def test_tango_against_published_intervals(
    wins: int, losses: int, rows: int, alpha: float, low: float, high: float
) -> None:
    digits = 4 if alpha == 0.10 else 3
    got = s.tango_interval(wins, losses, rows, alpha=alpha)
    assert tuple(round(bound, digits) for bound in got) == (low, high)


@given(st.integers(1, 300), st.data())
@settings(max_examples=100)
def test_tango_is_symmetric_and_holds_the_estimate(rows: int, data: st.DataObject) -> None:
    wins = data.draw(st.integers(0, rows))
    losses = data.draw(st.integers(0, rows - wins))
    low, high = s.tango_interval(wins, losses, rows)
    assert -1 <= low <= (wins - losses) / rows <= high <= 1
    assert s.tango_interval(losses, wins, rows) == pytest.approx((-high, -low), abs=1e-8)
    # At no difference the statistic is McNemar's without correction, so the two agree on which side 0 is.
    if wins + losses:
        z = (wins - losses) / math.sqrt(wins + losses)
        assert (low > 1e-9) == (z > s.z_of(0.05) + 1e-7) or abs(low) < 1e-6


def test_with_nothing_discordant_tango_says_how_little_is_known() -> None:
    z2 = s.z_of(0.05) ** 2
    assert s.tango_interval(0, 0, 50) == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)), abs=1e-8)
    assert s.tango_interval(1, 0, 1)[1] == 1.0
    with pytest.raises(ValueError):
        s.tango_interval(0, 0, 0)


@pytest.mark.parametrize(("gain", "loss", "rows"), [(0.1, 0.05, 100), (0.02, 0.0, 60), (0.3, 0.2, 40)])
def test_tango_covers(gain: float, loss: float, rows: int) -> None:
    draws = np.random.default_rng(1).multinomial(rows, [gain, loss, 1 - gain - loss], size=2_000)
    kinds, many = np.unique(draws[:, :2], axis=0, return_counts=True)
    hit = 0
    for (wins, losses), times in zip(kinds, many, strict=True):
        low, high = s.tango_interval(int(wins), int(losses), rows)
        hit += int(times) * (low <= gain - loss <= high)
    assert hit / 2_000 >= 0.93


@given(st.integers(1, 500), st.data())
def test_wilson_is_statsmodels(rows: int, data: st.DataObject) -> None:
    from statsmodels.stats.proportion import proportion_confint

    right = data.draw(st.integers(0, rows))
    assert s.wilson_interval(right, rows) == pytest.approx(proportion_confint(right, rows, method="wilson"), abs=1e-12)


def test_bootstrap_is_scipys_bca_on_the_same_rows() -> None:
    from scipy.stats import bootstrap

    d = np.random.default_rng(3).beta(2, 5, 120) - 0.25
    padded = np.concatenate([d, [1.0, -1.0]])
    expected = bootstrap((padded,), np.mean, n_resamples=10_000, method="BCa", rng=np.random.default_rng(5))
    got = s.bootstrap_interval(d, seed=4)
    assert got == pytest.approx(tuple(expected.confidence_interval), abs=0.002)


def test_bootstrap_is_corrected_for_skew() -> None:
    from scipy.stats import bootstrap

    rng = np.random.default_rng(0)
    d = np.concatenate([rng.uniform(0.8, 1, 6), rng.uniform(0, 0.1, 60)])
    padded = (np.concatenate([d, [1.0, -1.0]]),)
    bca, plain = (
        bootstrap(padded, np.mean, n_resamples=50_000, method=method, rng=np.random.default_rng(1))
        for method in ("BCa", "percentile")
    )
    low, high = s.bootstrap_interval(d, resamples=50_000)
    assert (low, high) == pytest.approx(tuple(bca.confidence_interval), abs=0.002)
    assert low - plain.confidence_interval.low > 0.002 and high - plain.confidence_interval.high > 0.004


def test_bootstrap_is_seeded_and_blind_to_order() -> None:
    d = np.random.default_rng(0).uniform(-1, 1, 200)
    assert s.bootstrap_interval(d, seed=1) == s.bootstrap_interval(d[::-1], seed=1)
    assert s.bootstrap_interval(d, seed=1) != s.bootstrap_interval(d, seed=2)


def test_rows_that_all_tie_do_not_give_certainty() -> None:
    low, high = s.bootstrap_interval(np.zeros(100))
    assert low < -0.015 and high > 0.015


def test_both_ways_to_resample_agree() -> None:
    d = np.random.default_rng(0).choice([-0.5, 0.0, 0.25, 1.0], 400)
    few = s.bootstrap_interval(d)
    many = s.bootstrap_interval(d + np.random.default_rng(1).uniform(-1e-7, 1e-7, 400))
    assert few == pytest.approx(many, abs=0.006)
    p_few, p_many = s.sign_flip_p(d / 4), s.sign_flip_p(d / 4 + np.linspace(-1e-9, 1e-9, 400))
    assert p_few == pytest.approx(p_many, abs=0.02)


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_bootstrap_covers_graded_scores(shift: float) -> None:
    rng, hit, rounds = np.random.default_rng(2), 0, 300
    for _ in range(rounds):
        d = (rng.random(80) < 0.5) * (rng.beta(0.6, 0.6, 80) * 2 - 1) * (1 - shift) + shift
        low, high = s.bootstrap_interval(np.round(d, 1), resamples=1_000)
        hit += low <= shift <= high
    assert hit / rounds >= 0.92


def test_sign_flips_are_exact_where_few_rows_differ() -> None:
    assert s.sign_flip_p(np.zeros(5)) == 1.0
    assert s.sign_flip_p(np.array([0.5, 0.5, 0.5, 0.0])) == pytest.approx(2 / 8)
    # For differences of one size it is the exact McNemar test.
    d = np.array([1.0] * 8 + [-1.0] * 2 + [0.0] * 30)
    assert s.sign_flip_p(d) == pytest.approx(s.mcnemar(8, 2).p_value)


def test_sign_flips_agree_with_scipy() -> None:
    from scipy.stats import permutation_test

    d = np.random.default_rng(7).normal(0.1, 0.4, 60)
    expected = permutation_test(
        (d, np.zeros(60)), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=9_999,
        rng=np.random.default_rng(1),
    ).pvalue  # fmt: skip
    assert s.sign_flip_p(d) == pytest.approx(expected, abs=0.015)


def test_under_no_difference_p_is_uniform_enough() -> None:
    rng = np.random.default_rng(11)
    p = [s.sign_flip_p(rng.normal(0, 1, 30), seed=n, resamples=500) for n in range(400)]
    assert np.mean(np.array(p) < 0.05) < 0.08


def test_counts_ignore_rounding() -> None:
    d = s.differences([0.3, 0.0, 1.0, 0.5], [0.1 + 0.2, 1.0, 0.0, 0.75])
    assert s.counts(d) == (2, 1, 1)


# --- power ----------------------------------------------------------------------------------


def test_rows_against_connors_formula_by_simulation() -> None:
    effect, discordance = 0.08, 0.2
    rows = s.rows_to_show(effect, discordance)
    gain, loss = (discordance + effect) / 2, (discordance - effect) / 2
    draws = np.random.default_rng(0).multinomial(rows, [gain, loss, 1 - discordance], size=3_000)
    found = np.mean([s.mcnemar(int(w), int(l)).p_value < 0.05 for w, l in draws[:, :2]])  # noqa: E741
    assert 0.74 <= found <= 0.86  # the exact test is a little conservative


@given(st.integers(6, 20_000), st.floats(0, 1))
@settings(max_examples=100)
def test_smallest_detectable_turns_rows_round(rows: int, discordance: float) -> None:
    effect = s.smallest_detectable(rows, discordance)
    assert effect is not None and 6 / rows <= effect <= 1
    assert s.rows_to_show(min(1.0, effect * 1.001), discordance) <= rows
    if effect > 6 / rows + 1e-9 and effect > 2 / rows:
        assert s.rows_to_show(effect * 0.99, discordance) > rows


@given(st.integers(6, 5_000), st.floats(0, 1))
@settings(max_examples=60)
def test_more_rows_show_smaller_effects(rows: int, discordance: float) -> None:
    one, other = s.smallest_detectable(rows, discordance), s.smallest_detectable(2 * rows, discordance)
    assert one is not None and other is not None and other <= one + 1e-9


def test_few_rows_show_nothing() -> None:
    assert s.smallest_detectable(5, 0.5) is None
    assert s.mcnemar(5, 0).p_value > 0.05 > s.mcnemar(6, 0).p_value


def test_rows_to_exclude_a_loss_by_simulation() -> None:
    discordance, margin = 0.1, 0.05
    rows = s.rows_to_exclude_loss(0.0, discordance, margin)
    assert rows is not None
    draws = np.random.default_rng(0).multinomial(rows, [0.05, 0.05, 0.9], size=1_000)
    excluded = np.mean([s.tango_interval(int(w), int(l), rows)[0] > -margin for w, l in draws[:, :2]])  # noqa: E741
    assert 0.72 <= excluded <= 0.88
    assert s.rows_to_exclude_loss(-0.05, 0.1, 0.05) is None
    silent = s.rows_to_exclude_loss(0.0, 0.0, 0.02)
    assert silent is not None and s.tango_interval(0, 0, silent + 1)[0] > -0.02 > s.tango_interval(0, 0, silent - 1)[0]
