"""The verdict: `helped`, `no worse`, `harmed` or `not enough data`, by one stated rule.

With the two-sided interval of the paired difference (tuned minus base) and the test's p-value:

    helped            the interval is wholly above 0, and p < alpha
    harmed            the interval is wholly below 0, and p < alpha
    no worse          neither, and the interval excludes a loss as large as the margin (0.02)
    not enough data   anything else, and fewer than 6 rows, which could show nothing; how many rows
                      would be needed is said with it

Interval and test must agree because they are made differently (Tango's score and an exact binomial;
bootstrap and sign flips), and each alone is wrong now and then with few rows. No verdict on no rows.
This module knows nothing of answers, models or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from whit.errors import DataError, ScoreError, UsageError
from whit.evaluation import statistics
from whit.evaluation.scoring import Score

MARGIN, ALPHA, POWER = 0.02, 0.05, 0.8


class Verdict(StrEnum):
    """What may honestly be said, and no more."""

    HELPED = "helped"
    NO_WORSE = "no worse"
    HARMED = "harmed"
    NOT_ENOUGH_DATA = "not enough data"

    @property
    def exit_code(self) -> int:
        """What `whit eval` ends with."""
        return _EXITS[self]


_EXITS = {Verdict.HELPED: 0, Verdict.NO_WORSE: 10, Verdict.HARMED: 11, Verdict.NOT_ENOUGH_DATA: 12}


def decide(interval: tuple[float, float], p_value: float, *, margin: float = MARGIN, alpha: float = ALPHA) -> Verdict:
    """The rule at the top of this file."""
    low, high = interval
    if not -1 <= low <= high <= 1 or not 0 <= p_value <= 1:
        raise ValueError(f"no interval and p-value of a difference: {interval}, {p_value}")
    if low > 0 and p_value < alpha:
        return Verdict.HELPED
    if high < 0 and p_value < alpha:
        return Verdict.HARMED
    return Verdict.NO_WORSE if low > -margin else Verdict.NOT_ENOUGH_DATA


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same rows. Scores, differences and intervals are in [0, 1] or [-1, 1], not percent.

    `smallest_detectable` is None where so few rows could show nothing. `rows_needed` is None except
    where the verdict is `not enough data`, and `needed_for`, the verdict that so many would give, too.
    `skill_*` compare lenient scores (format looked through);
    `format_difference` is what remains: difference - skill_difference. `mid_p` is None for graded scores.
    """

    verdict: Verdict
    rows: int
    base: float
    tuned: float
    difference: float
    interval: tuple[float, float]
    p_value: float
    mid_p: float | None
    smallest_detectable: float | None
    rows_needed: int | None
    wins: int
    losses: int
    ties: int
    base_interval: tuple[float, float]
    tuned_interval: tuple[float, float]
    base_valid: float
    tuned_valid: float
    base_skill: float
    tuned_skill: float
    skill_difference: float
    skill_interval: tuple[float, float]
    skill_p_value: float
    format_difference: float
    graded: bool
    margin: float = MARGIN
    alpha: float = ALPHA
    power: float = POWER
    method: str = ""
    needed_for: Verdict | None = None

    @property
    def format_only(self) -> bool:
        """Whether it helped, but the scores with format looked through do not show that it did."""
        skill = decide(self.skill_interval, self.skill_p_value, margin=self.margin, alpha=self.alpha)
        return self.verdict is Verdict.HELPED and skill is not Verdict.HELPED

    def to_json(self) -> dict[str, Any]:
        """Plain values, `format_only` and `sentence` among them; `from_json` reads them back."""
        plain = asdict(self)
        plain["verdict"] = str(self.verdict)
        plain["needed_for"] = self.needed_for and str(self.needed_for)
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}
        return {**plain, "format_only": self.format_only, "sentence": self.sentence()}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Comparison:
        """Raises `DataError` where a part is missing."""
        try:
            known = {field.name: plain[field.name] for field in fields(cls) if field.name != "needed_for"}
            for name in ("interval", "base_interval", "tuned_interval", "skill_interval"):
                known[name] = (float(known[name][0]), float(known[name][1]))
            needed_for = plain.get("needed_for")  # not in cards made before there was one
            known["needed_for"] = None if needed_for is None else Verdict(needed_for)
            return cls(**{**known, "verdict": Verdict(known["verdict"])})
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(f"not a comparison: {type(error).__name__} {error}; evaluate again") from error

    def sentence(self, tuned: str = "the adapter", base: str = "the base") -> str:
        """The verdict in plain words, with its figures."""
        return describe(self, tuned, base)


def compare(
    base: Sequence[Score],
    tuned: Sequence[Score],
    *,
    margin: float = MARGIN,
    alpha: float = ALPHA,
    power: float = POWER,
    graded: bool = False,
    seed: int = 0,
    resamples: int = statistics.RESAMPLES,
) -> Comparison:
    """Compare two systems row by row; `base[i]` and `tuned[i]` are of the same row.

    Scores that are all 0 or 1 are compared as right/wrong, unless `graded` says otherwise. Raises
    `DataError` for no rows, `ScoreError` for lists of unequal length, `UsageError` for impossible shares.
    """
    if len(base) != len(tuned):
        raise ScoreError(f"{len(base)} and {len(tuned)} scores: a comparison needs both on the same rows")
    if not base:
        raise DataError("no held-out rows, so nothing can be compared; give more rows or a larger --test")
    if not 0 <= margin < 1 or not 0 < alpha < 1 or not 0 < power < 1:
        raise UsageError(f"margin {margin}, alpha {alpha}, power {power}: each must be a share below 1")
    rows = len(base)
    draw = _Draw(alpha, seed, resamples)
    main = _paired([s.value for s in base], [s.value for s in tuned], graded, draw)
    skill = _paired([s.lenient for s in base], [s.lenient for s in tuned], graded, draw)
    detectable = statistics.smallest_detectable(rows, main.discordance, alpha=alpha, power=power)
    verdict = decide(main.interval, main.p_value, margin=margin, alpha=alpha)
    if detectable is None:
        verdict = Verdict.NOT_ENOUGH_DATA
    needed, needed_for = None, None
    if verdict is Verdict.NOT_ENOUGH_DATA:
        needed, needed_for = _rows_needed(main.difference, main.discordance, rows, margin, alpha, power)
    return Comparison(
        verdict=verdict,
        rows=rows,
        base=main.base,
        tuned=main.tuned,
        difference=main.difference,
        interval=main.interval,
        p_value=main.p_value,
        mid_p=main.mid_p,
        smallest_detectable=detectable,
        rows_needed=needed,
        wins=main.wins,
        losses=main.losses,
        ties=rows - main.wins - main.losses,
        base_interval=statistics.wilson_interval(main.base * rows, rows, alpha=alpha),
        tuned_interval=statistics.wilson_interval(main.tuned * rows, rows, alpha=alpha),
        base_valid=sum(s.valid for s in base) / rows,
        tuned_valid=sum(s.valid for s in tuned) / rows,
        base_skill=skill.base,
        tuned_skill=skill.tuned,
        skill_difference=skill.difference,
        skill_interval=skill.interval,
        skill_p_value=skill.p_value,
        format_difference=main.difference - skill.difference,
        graded=main.mid_p is None,
        margin=margin,
        alpha=alpha,
        power=power,
        method=main.method,
        needed_for=needed_for,
    )


@dataclass(frozen=True)
class _Draw:
    alpha: float
    seed: int
    resamples: int


@dataclass(frozen=True)
class _Paired:
    base: float
    tuned: float
    difference: float
    interval: tuple[float, float]
    p_value: float
    mid_p: float | None
    wins: int
    losses: int
    discordance: float
    method: str


def _paired(base: Sequence[float], tuned: Sequence[float], graded: bool, draw: _Draw) -> _Paired:
    rows = len(base)
    d = statistics.differences(base, tuned)
    wins, losses, _ = statistics.counts(d)
    means = sum(base) / rows, sum(tuned) / rows
    if graded or any(value not in (0.0, 1.0) for value in (*base, *tuned)):
        interval = statistics.bootstrap_interval(d, **asdict(draw))
        p_value = statistics.sign_flip_p(d, seed=draw.seed, resamples=draw.resamples)
        method = f"sign-flip test and BCa bootstrap interval ({draw.resamples:,} resamples, seed {draw.seed})"
        square = float((d**2).mean())
        return _Paired(*means, float(d.mean()), interval, p_value, None, wins, losses, square, method)
    interval = statistics.tango_interval(wins, losses, rows, alpha=draw.alpha)
    test = statistics.mcnemar(wins, losses)
    difference, share = (wins - losses) / rows, (wins + losses) / rows
    method = "exact McNemar test and Tango's score interval"
    return _Paired(*means, difference, interval, test.p_value, test.mid_p, wins, losses, share, method)


def _rows_needed(
    difference: float, discordance: float, rows: int, margin: float, alpha: float, power: float
) -> tuple[int, Verdict] | tuple[None, None]:
    """The fewest rows that would settle it if difference and discordance stayed as they are, and as what."""
    ways: list[tuple[int | None, Verdict]] = []
    if difference:
        shown = Verdict.HELPED if difference > 0 else Verdict.HARMED
        ways.append((statistics.rows_to_show(difference, discordance, alpha=alpha, power=power), shown))
    excluded = statistics.rows_to_exclude_loss(difference, discordance, margin, alpha=alpha, power=power)
    ways.append((excluded, Verdict.NO_WORSE))
    known = [(max(way, rows + 1), verdict) for way, verdict in ways if way is not None]
    return min(known, key=lambda way: way[0], default=(None, None))


def points(share: float, *, sign: bool = False) -> str:
    """A share or a difference of shares in points of a hundred: `+12.3`."""
    text = f"{100 * share:{'+' if sign else ''}.1f}"
    return text.replace("-", "−") if float(text) else "0.0"


def describe(c: Comparison, tuned: str, base: str) -> str:
    """`Comparison.sentence`, for systems of any name."""
    span = f"95 % interval {points(c.interval[0], sign=True)} to {points(c.interval[1], sign=True)}"
    if c.alpha != ALPHA:
        span = span.replace("95 %", f"{100 * (1 - c.alpha):g} %")
    figures = f"{points(c.base)} → {points(c.tuned)} on {c.rows:,} held-out rows ({span} points)"
    if c.verdict is Verdict.HELPED:
        text = f"Helped: {tuned} is better than {base} by {points(c.difference)} points, {figures}."
        if c.format_only:
            gain = f"{points(c.format_difference)} of the {points(c.difference)} points are format"
            text += f" But no gain in skill is shown: {gain}."
        elif c.format_difference >= 0.005:
            text += f" Of that gain, {points(c.format_difference)} points are format only."
        return text
    if c.verdict is Verdict.HARMED:
        return f"Harmed: {tuned} is worse than {base} by {points(-c.difference)} points, {figures}."
    if c.verdict is Verdict.NO_WORSE:
        loss = f"a loss of {points(c.margin)} points or more is excluded"
        return f"No worse: {tuned} is not shown to be better than {base}, but {loss}, {figures}."
    more = f"; if this went on, about {c.rows_needed:,} rows would {shows(c)}" if c.rows_needed else ""
    return f"Not enough data to tell {tuned} from {base}, {figures}{more}."


def shows(c: Comparison) -> str:
    """What `rows_needed` rows would do: it is not always to show that it helped."""
    return {
        Verdict.HELPED: "show that it helped",
        Verdict.HARMED: "show that it harmed",
        Verdict.NO_WORSE: "show that it is no worse, not that it is better",
    }.get(c.needed_for or Verdict.NOT_ENOUGH_DATA, "settle it")
