"""Paired statistics: two systems on the same rows.

Right/wrong scores: exact McNemar test and Tango's score interval of the difference. Graded scores:
sign-flip permutation test and a BCa bootstrap interval. Also intervals of one accuracy, the smallest
effect that so many rows could have shown, and the rows that an effect needs. Differences are tuned
minus base; *wins* are rows where tuned scores higher. Everything random is seeded. This module knows
nothing of answers, models or verdicts, and imports numpy and scipy only when called.

    McNemar Q (1947), Psychometrika 12:153; mid-p: Fagerland et al. (2013), BMC Med Res Methodol 13:91
    Tango T (1998), Statistics in Medicine 17:891        Wilson EB (1927), JASA 22:209
    Agresti A, Min Y (2005), Statistics in Medicine 24:729   Efron B (1987), JASA 82:171
    Connor RJ (1987), Biometrics 43:207                  Phipson B, Smyth GK (2010), SAGMB 9:39
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

RESAMPLES = 10_000
_NEAR = 1e-12  # differences of scores nearer to zero than this are rounding, not wins
_CELLS = 4_000_000  # numbers held at once while resampling: 32 MB


@dataclass(frozen=True)
class McNemar:
    """Two-sided p-values of no difference: exact, and the less conservative mid-p."""

    p_value: float
    mid_p: float


def z_of(alpha: float) -> float:
    """The standard normal quantile that leaves alpha / 2 above it: 1.96 for 0.05."""
    return NormalDist().inv_cdf(1 - alpha / 2)


def mcnemar(wins: int, losses: int) -> McNemar:
    """Exact two-sided McNemar test: under no difference, wins are Binomial(wins + losses, 1/2)."""
    from scipy.special import bdtr, gammaln

    discordant = wins + losses
    if discordant == 0:
        return McNemar(1.0, 1.0)
    fewer = min(wins, losses)
    below = float(bdtr(fewer, discordant, 0.5))
    logs = gammaln(discordant + 1) - gammaln(fewer + 1) - gammaln(discordant - fewer + 1)
    at = math.exp(float(logs) - discordant * math.log(2))
    return McNemar(min(1.0, 2 * below), min(1.0, 2 * below - at))


def tango_interval(wins: int, losses: int, rows: int, *, alpha: float = 0.05) -> tuple[float, float]:
    """Tango's score interval of the paired difference (wins - losses) / rows.

    Never collapses (with no discordant row it still says how little is known) and keeps its coverage
    where Wald's interval does not. Solved by bisection to 1e-10.
    """
    if rows <= 0 or wins < 0 or losses < 0 or wins + losses > rows:
        raise ValueError(f"impossible counts: {wins} wins and {losses} losses of {rows} rows")
    z = z_of(alpha)
    at = (wins - losses) / rows
    # The statistic falls as delta grows, so each bound is the one crossing on its side.
    low = -1.0 if losses == rows else _bisect(lambda d: _tango_z(wins, losses, rows, d) - z, -1.0, at)
    high = 1.0 if wins == rows else _bisect(lambda d: _tango_z(wins, losses, rows, d) + z, at, 1.0)
    return low, high


def _tango_z(b: int, c: int, n: int, delta: float) -> float:
    """Tango's equation (2.8): q21 is the likelihood's estimate of the losses' share, given delta."""
    A = 2 * n
    B = -b - c + (2 * n - b + c) * delta
    C = -c * delta * (1 - delta)
    q21 = (math.sqrt(max(0.0, B * B - 4 * A * C)) - B) / (2 * A)
    variance = n * (2 * q21 + delta * (1 - delta))
    distance = b - c - n * delta
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _bisect(f: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses zero between `low` and `high`."""
    while high - low > 1e-10:
        middle = (low + high) / 2
        if f(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def wilson_interval(right: float, rows: int, *, alpha: float = 0.05) -> tuple[float, float]:
    """Wilson's score interval of right / rows; `right` may be a sum of graded scores.

    For graded scores it is wider than need be: of all scores in [0, 1] with one mean, right/wrong
    ones vary most.
    """
    if rows <= 0:
        raise ValueError("no rows")
    z2, p = z_of(alpha) ** 2, right / rows
    centre = p + z2 / (2 * rows)
    half = math.sqrt(z2 * (p * (1 - p) + z2 / (4 * rows)) / rows)
    low, high = ((centre + sign * half) / (1 + z2 / rows) for sign in (-1, 1))
    return (0.0 if right <= 0 else max(0.0, low)), (1.0 if right >= rows else min(1.0, high))


def differences(base: Sequence[float], tuned: Sequence[float]) -> Floats:
    """tuned - base for each row, with rounding noise made zero; shape (rows,)."""
    import numpy as np

    d = np.asarray(tuned, dtype=np.float64) - np.asarray(base, dtype=np.float64)
    d[np.abs(d) < _NEAR] = 0.0
    return d


def counts(d: Floats) -> tuple[int, int, int]:
    """(wins, losses, ties) of the differences."""
    wins, losses = int((d > 0).sum()), int((d < 0).sum())
    return wins, losses, len(d) - wins - losses


def bootstrap_interval(
    d: Floats, *, alpha: float = 0.05, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """BCa bootstrap interval (Efron 1987) of the mean of d, for differences in [-1, 1].

    One unseen win and one unseen loss of full size are added to the rows before resampling, in the
    manner of Agresti and Min's adjusted interval: without them, rows that all tie give an interval of
    no width, which would claim certainty that nobody has. They widen it by about 2.8 / rows where
    nothing differs, and hardly where much does.
    """
    import numpy as np

    d = np.concatenate([np.asarray(d, dtype=np.float64), [1.0, -1.0]])
    # Sorted, so that the same rows in another order give the same interval.
    means = np.sort(_resampled_means(np.sort(d), np.random.default_rng(seed), resamples))
    normal = NormalDist()
    at = d.mean()
    below = (float((means < at).sum()) + 0.5 * float((means == at).sum())) / resamples
    z0 = normal.inv_cdf(min(max(below, 1 / resamples), 1 - 1 / resamples))
    # The jackknife means of a mean are its deviations, scaled: their skewness is the acceleration.
    deviations = d - at
    a = float((deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5))
    bounds = []
    for q in (alpha / 2, 1 - alpha / 2):
        z = z0 + normal.inv_cdf(q)
        share = normal.cdf(z0 + z / (1 - a * z))
        bounds.append(float(np.quantile(means, min(max(share, 0.0), 1.0))))
    return max(-1.0, bounds[0]), min(1.0, bounds[1])


def _resampled_means(d: Floats, rng: Any, resamples: int) -> Floats:
    import numpy as np

    values, many = np.unique(d, return_counts=True)
    if len(values) * 4 <= len(d):  # few distinct values: how often each is drawn is multinomial
        drawn = rng.multinomial(len(d), many / len(d), size=resamples)
        return np.asarray(drawn @ values / len(d), dtype=np.float64)
    means = np.empty(resamples)
    step = max(1, _CELLS // len(d))
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        means[start:stop] = d[rng.integers(0, len(d), size=(stop - start, len(d)))].mean(axis=1)
    return means


def sign_flip_p(d: Floats, *, seed: int = 0, resamples: int = RESAMPLES) -> float:
    """Two-sided p-value of mean 0 by flipping each difference's sign.

    Exact (all flips) where few rows differ; else by `resamples` random flips, with the observed one
    counted in (Phipson and Smyth 2010), so that it is never 0.
    """
    import numpy as np

    size = np.sort(np.abs(d[d != 0]))
    if len(size) == 0:
        return 1.0
    observed = abs(float(d.sum())) - 1e-9 * float(size.sum())
    if 2 ** len(size) <= resamples:
        patterns = np.arange(2 ** len(size))[:, None] >> np.arange(len(size)) & 1
        sums = (2.0 * patterns - 1.0) @ size
        return float((np.abs(sums) >= observed).mean())
    rng = np.random.default_rng(seed)
    values, many = np.unique(size, return_counts=True)
    if len(values) * 4 <= len(size):
        ups = rng.binomial(many, 0.5, size=(resamples, len(values)))
        extreme = int((np.abs((2 * ups - many) @ values) >= observed).sum())
    else:
        extreme, step = 0, max(1, _CELLS // len(size))
        for start in range(0, resamples, step):
            rows = min(step, resamples - start)
            bits = np.unpackbits(rng.integers(0, 256, (rows, -(-len(size) // 8)), dtype=np.uint8), axis=1)
            sums = (2.0 * bits[:, : len(size)] - 1.0) @ size
            extreme += int((np.abs(sums) >= observed).sum())
    return (extreme + 1) / (resamples + 1)


# --- what so many rows can show -------------------------------------------------------------


def rows_to_show(effect: float, discordance: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """Rows for McNemar's test to find `effect` with that power (Connor 1987).

    `discordance` is the share of rows on which the two systems' scores differ (never less than the
    effect itself). For graded scores it is the mean square of the differences, which plays its part.
    """
    effect = abs(effect)
    if not 0 < effect <= 1:
        raise ValueError(f"an effect is in (0, 1], not {effect}")
    psi = min(1.0, max(discordance, effect))
    z_alpha, z_beta = z_of(alpha), NormalDist().inv_cdf(power)
    root = z_alpha * math.sqrt(psi) + z_beta * math.sqrt(max(0.0, psi - effect**2))
    return max(math.ceil(root**2 / effect**2 - 1e-9), _least_rows(alpha))


def smallest_detectable(rows: int, discordance: float, *, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """The smallest difference that so many rows would show with that power; None where none could.

    `rows_to_show` turned round. Below `_least_rows` even a win on every row proves nothing.
    """
    if rows < _least_rows(alpha):
        return None

    def missing(effect: float) -> float:
        return rows_to_show(effect, discordance, alpha=alpha, power=power) - rows - 0.5

    effect = _bisect(missing, 1 / (100 * rows), 1.0)
    # And no effect can be seen that is fewer wins than the exact test needs.
    return min(1.0, max(effect, _least_rows(alpha) / rows))


def rows_to_exclude_loss(
    difference: float, discordance: float, margin: float, *, alpha: float = 0.05, power: float = 0.8
) -> int | None:
    """Rows for the interval to exclude a loss of `margin`, with that power; None where it never would.

    Lachenbruch and Lynch (1998), for the paired design: the variance of one row's difference is
    discordance - difference².
    """
    room = difference + margin
    if room <= 0:
        return None
    z = z_of(alpha) + NormalDist().inv_cdf(power)
    variance = max(discordance - difference**2, 0.0)
    # With no variance left, Tango's own width decides: z² / (n + z²) must be within the room.
    z2 = z_of(alpha) ** 2
    return max(math.ceil(z * z * variance / room**2), math.ceil(z2 * (1 - margin) / margin) if margin else 1)


def _least_rows(alpha: float) -> int:
    """The fewest discordant rows that can make an exact McNemar test significant: 6 for 0.05."""
    return math.floor(1 - math.log2(alpha)) + 1
