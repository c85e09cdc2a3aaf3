"""What the report says in words: the headline, what else is to be known, and what is not known.

Sentences are made from the comparisons alone, by fixed rules, so that the same figures always read the
same. Knows nothing of HTML.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import exp
from typing import TYPE_CHECKING

from whit.evaluation.card import Card
from whit.evaluation.verdict import Comparison, Verdict, decide, points, shows

if TYPE_CHECKING:
    from whit.evaluation.report import Report

_FEW = 5  # held-out rows of a label, below which nothing is said of it


def headline(c: Comparison) -> str:
    """The verdict in one plain sentence."""
    unit = "of 100 points" if c.graded else "% right"
    tuned = f"{points(c.tuned)}\u00a0{unit}"
    if c.verdict is Verdict.HELPED and c.format_only:
        return f"It helped, but only in form: {tuned} instead of {points(c.base)}."
    if c.verdict is Verdict.HELPED:
        return f"It helped: {tuned} instead of {points(c.base)}."
    if c.verdict is Verdict.HARMED:
        return f"It harmed: {tuned} instead of {points(c.base)}."
    if c.verdict is Verdict.NO_WORSE:
        return "No worse than the base, and not shown to be better."
    return "Not enough data to tell."


def lead(c: Comparison) -> list[str]:
    """How sure that is."""
    low, high = (points(bound, sign=True) for bound in c.interval)
    more = f"{points(abs(c.difference))} points {'more' if c.difference >= 0 else 'less'}"
    if c.graded:
        first = f"On {c.rows:,} rows that training never saw, the adapter scored {more} than the base"
    else:
        right = f"{round(c.tuned * c.rows):,} and the base {round(c.base * c.rows):,}"
        first = f"Of {c.rows:,} rows that training never saw, the adapter got {right}: {more}"
    said = [f"{first}, with a 95 % interval from {low} to {high}."]
    if c.verdict in (Verdict.HELPED, Verdict.HARMED):
        said.append(f"Were the two equally good, a difference this large would come up by chance {_odds(c.p_value)}.")
    elif c.verdict is Verdict.NO_WORSE:
        said.append(
            f"A loss of {points(c.margin)} points or more is excluded; a gain is not shown (p = {c.p_value:.2g})."
        )
    else:
        if c.interval[0] > 0 or c.interval[1] < 0:
            looks = "better" if c.difference > 0 else "worse"
            said.append(f"It looks {looks}, but the test does not confirm it (p = {c.p_value:.2g}).")
    if c.rows_needed:
        said.append(
            f"If the next rows were like these, about {c.rows_needed:,} held-out rows would {shows(c)}; "
            f"here are {c.rows:,}."
        )
    return said


def _odds(p: float) -> str:
    if p < 1e-6:
        return "less than once in a million times"
    return f"about once in {round(1 / p):,} times" if p < 0.5 else "most of the time"


def callouts(report: Report, against: Mapping[str, Comparison]) -> list[str]:
    """What must be seen beside the headline: format, a smaller tool that does as well, a null adapter."""
    c, said = report.result, []
    if c.format_only:
        said.append(
            f"Of the gain of {points(c.difference)} points, {points(c.format_difference)} are format only: "
            "with the format looked through, no gain is shown. A stricter parser or a better prompt may do "
            "the same without tuning."
        )
    elif c.verdict is Verdict.HELPED and c.format_difference >= 0.005:
        said.append(
            f"Of the gain of {points(c.difference)} points, {points(c.format_difference)} are format only and "
            f"{points(c.skill_difference)} are skill."
        )
    for system in report.others:
        other = against[system.name]
        if other.verdict is Verdict.HARMED and system.role in ("small", "few-shot", "constant"):
            said.append(
                f"{system.name} is better than the adapter, by {points(-other.difference)} points, and needs no "
                "tuning of a model. Use it, unless the adapter is wanted for something else."
            )
        elif system.role == "small" and other.verdict is not Verdict.HELPED:
            said.append(
                f"{system.name} scores {points(other.base)}, and the adapter is not shown to be better than "
                "that. It is smaller and faster than any language model."
            )
        elif system.role == "teacher":
            less = f"is below its teacher by {points(-other.difference)} points"
            equal = f"is not shown to be worse than its teacher ({points(other.difference)} points)"
            said.append(
                f"The adapter {less if other.verdict is Verdict.HARMED else equal}; that has {system.note}, "
                f"the adapter {report.card.numbers:,}."
            )
        elif system.role == "constant" and other.verdict is not Verdict.HELPED:
            said.append(
                f"{system.name.capitalize()} scores {points(other.base)}, and the adapter is not shown to be better "
                "than that: what was gained may be no more than form and that answer."
            )
        elif system.role == "null" and other.verdict is not Verdict.HELPED and c.verdict is Verdict.HELPED:
            said.append("A random adapter of the same shape does as well: the gain may not come from what was trained.")
    return said


def doubts(report: Report, against: Mapping[str, Comparison]) -> list[str]:
    """What could not be concluded."""
    c, said = report.result, []
    if c.smallest_detectable is None:
        said.append(f"{c.rows} held-out rows are too few to show any effect, however large.")
    else:
        said.append(
            f"Differences below {points(c.smallest_detectable)} points: {c.rows:,} rows find one of that size four "
            "times in five, and smaller ones less often."
        )
    for system in report.others:
        other = against[system.name]
        if other.verdict not in (Verdict.HELPED, Verdict.HARMED):
            low, high = (points(bound, sign=True) for bound in other.interval)
            said.append(
                f"Whether the adapter is better than {system.name}: the difference is "
                f"{points(other.difference, sign=True)} points, with an interval from {low} to {high}."
            )
    skill = decide(c.skill_interval, c.skill_p_value, margin=c.margin, alpha=c.alpha)
    if c.verdict is Verdict.HELPED and skill is not Verdict.HELPED:
        said.append("Whether the adapter knows more than the base, beyond how to put it.")
    rare = [label for label, many in Counter(row.completion.strip() for row in report.rows).items() if many < _FEW]
    if report.card.scorer.get("kind") == "label" and rare:
        said.append(
            f"Anything of single labels that are rare here: {len(rare):,} have fewer than {_FEW} held-out rows."
        )
    if len(report.card.seeds) < 2:
        said.append("How much another run would differ: this was one run with one seed (try --seeds 3).")
    if report.card.forgetting is None:
        said.append("What the adapter does to other abilities: loss on plain text was not measured.")
    said.append("How it does on rows unlike these: the held-out rows come from the same data as the training rows.")
    return [*said, *report.remarks]


def glance(card: Card) -> list[tuple[str, str]]:
    """The few figures that people ask for first."""
    found = [("numbers trained", f"{card.numbers:,}")]
    if card.file_bytes:
        found.append(("size of the adapter", _bytes(card.file_bytes)))
    if card.cost:
        found.append(("time to train", _time(card.cost.seconds)))
    found.append(("rows to train on", f"{card.data.train:,}"))
    found.append(("rows held out", f"{card.data.test:,}"))
    return found


def _bytes(many: int) -> str:
    for unit, size in (("MB", 1_000_000), ("kB", 1_000)):
        if many >= size:
            return f"{many / size:.1f} {unit}"
    return f"{many} bytes"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3_600:.1f} h"


def facts(card: Card) -> list[tuple[str, str]]:
    """What is needed to do it again."""
    share = f" of {card.base_parameters:,} ({card.numbers / card.base_parameters:.2g})" if card.base_parameters else ""
    found = [
        ("adapter", f"{card.kind}, {card.numbers:,} numbers{share}"),
        ("base", card.base),
        ("base's fingerprint", card.base_fingerprint),
        ("basis's fingerprint", card.basis),
        ("data", f"{card.data.name}, {card.data.rows:,} rows"),
        ("data's sha256", card.data.sha256),
        ("split", f"{card.data.train:,} train, {card.data.validation:,} validation, {card.data.test:,} held out; "
                  f"seed {card.data.split_seed}"),
        ("scored as", " – ".join(str(card.scorer[key]) for key in ("kind", "reason") if card.scorer.get(key))),
        ("compared by", card.result.method if card.result else ""),
        ("seeds", ", ".join(map(str, card.seeds))),
        ("instruction", card.instruction),
        ("settings", ", ".join(f"{name} {value}" for name, value in card.settings.items())),
        ("versions", ", ".join(f"{name} {version}" for name, version in card.versions.items())),
    ]  # fmt: skip
    if card.cost:
        threads = f", {card.cost.threads} threads" if card.cost.threads else ""
        found.append(("training", f"{card.cost.steps:,} steps, {card.cost.tokens:,} tokens in "
                                  f"{card.cost.seconds:,.1f} s on {card.cost.device}{threads}"))  # fmt: skip
    if card.created:
        found.append(("made", card.created))
    return [(name, value) for name, value in found if value]


def perplexity_change(before: float, after: float) -> float:
    """The relative change of perplexity that two losses in nats per token mean; 0.05 is 5 % worse."""
    return exp(min(after - before, 50.0)) - 1
