"""`report.html`: one page that says what was found, how sure it is, and how to find it again.

Self-contained: no script, no request, style and figures in the page, and a content policy that forbids
the rest. Everything that comes from rows, answers or cards is escaped by the template and shortened.
`Report` is built from plain values; this module knows nothing of models or of training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.errors import DataError
from whit.evaluation import answers, figures, findings, statistics
from whit.evaluation.card import Card
from whit.evaluation.scoring import Score
from whit.evaluation.verdict import Comparison, compare, points
from whit.files import atomic_write

if TYPE_CHECKING:
    from whit.data.rows import Row

ROLES = ("base", "few-shot", "null", "small", "constant", "teacher", "adapter")

_EXAMPLES = 6  # of wins, of losses and of rows that are still wrong
_LONGEST_PROMPT, _LONGEST_ANSWER = 420, 240
_LARGEST_MATRIX = 12  # labels; beyond, the commonest confusions are listed instead
_LISTED = 12
_FIELDS = 30


@dataclass(frozen=True)
class System:
    """One way to answer the held-out rows; `scores` and `answers` are aligned with the report's rows.

    `role` is one of `ROLES` (`small` is the TF-IDF baseline, `constant` the same answer to all).
    `readings` are what the scorer took the answers to be (`Scorer.read`), needed for the confusion of labels.
    `seconds` is for all rows.
    """

    name: str
    role: str
    scores: Sequence[Score]
    answers: Sequence[str]
    readings: Sequence[str] = ()
    note: str = ""
    seconds: float | None = None

    @property
    def score(self) -> float:
        """Mean score, in [0, 1]."""
        return sum(score.value for score in self.scores) / len(self.scores)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the mean score."""
        return statistics.wilson_interval(self.score * len(self.scores), len(self.scores))

    @property
    def valid(self) -> float:
        """Share of answers that keep the format."""
        return sum(score.valid for score in self.scores) / len(self.scores)

    @property
    def skill(self) -> float:
        """Mean score with the format looked through."""
        return sum(score.lenient for score in self.scores) / len(self.scores)


@dataclass(frozen=True)
class Point:
    """One point of the learning curve: training loss (nats per token) and validation score in [0, 1]."""

    step: int
    loss: float | None = None
    score: float | None = None


@dataclass(frozen=True)
class Extra:
    """A section of its own: words, and figures as `whit.evaluation.figures` makes them, each with its title."""

    title: str
    words: str
    plots: Sequence[tuple[str, dict[str, Any]]] = ()


@dataclass(frozen=True)
class Report:
    """All that the page shows. `others` are shown between base and adapter, in their order.

    `card.result` is the headline: it must compare `base` with `tuned` on `rows`. `best_step` is the step
    whose state was kept. `remarks` are sentences to add to what could not be concluded.
    """

    card: Card
    rows: Sequence[Row]
    base: System
    tuned: System
    others: Sequence[System] = ()
    curve: Sequence[Point] = ()
    best_step: int | None = None
    remarks: Sequence[str] = ()
    extras: Sequence[Extra] = ()

    def __post_init__(self) -> None:
        if self.card.result is None or not self.rows:
            raise DataError("a report needs a held-out result; evaluate the adapter first")
        for system in self.systems:
            if not len(system.scores) == len(system.answers) == len(self.rows):
                raise DataError(f"the system {system.name!r} is not scored on the report's rows")
            if system.role not in ROLES:
                raise DataError(f"the system {system.name!r} has no known role: {system.role!r}")

    @property
    def systems(self) -> tuple[System, ...]:
        """Base, others, adapter."""
        return (self.base, *self.others, self.tuned)

    @property
    def result(self) -> Comparison:
        """The headline comparison."""
        assert self.card.result is not None
        return self.card.result


def render(report: Report) -> str:
    """The page. Takes well under a second for thousands of rows."""
    return str(_template().render(_view(report)))


@cache
def _template() -> Any:
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        finalize=lambda value: (
            figures.clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
        ),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"points": points, "number": figures.number}
    environment.globals["signed"] = lambda share: points(share, sign=True)
    return environment.get_template("report.html.jinja")


def save_report(report: Report, path: str | Path) -> None:
    """Write the page, whole or not at all."""
    atomic_write(path, render(report))


def _view(report: Report) -> dict[str, Any]:
    against = {system.name: compare(system.scores, report.tuned.scores) for system in report.others}
    return {
        "report": report,
        "card": report.card,
        "result": report.result,
        "headline": findings.headline(report.result),
        "lead": findings.lead(report.result),
        "callouts": findings.callouts(report, against),
        "doubts": findings.doubts(report, against),
        "against": against,
        "bars": [figures.bar(system, reference=report.base.score) for system in report.systems],
        "outcome": figures.outcome(*_outcome(report)),
        "loss_curve": _curve(report, "loss"),
        "score_curve": _curve(report, "score"),
        "labels": _labels(report),
        "fields": _fields(report),
        "examples_by": _examples(report),
        "perplexity": _perplexity(report.card),
        "facts": findings.facts(report.card),
        "glance": findings.glance(report.card),
    }


def _outcome(report: Report) -> tuple[int, int, int, int]:
    """Wins, ties that are right (or above half), other ties, losses."""
    pairs = [(b.value, t.value) for b, t in zip(report.base.scores, report.tuned.scores, strict=True)]
    wins, losses = report.result.wins, report.result.losses
    right = sum(b == t and t >= 0.5 for b, t in pairs)
    return wins, right, max(0, len(pairs) - wins - losses - right), losses


def _curve(report: Report, name: str) -> Any:
    found = [(point.step, value) for point in report.curve if (value := getattr(point, name)) is not None]
    return figures.curve(found, best=report.best_step, percent=name == "score") if len(found) > 1 else None


def _labels(report: Report) -> dict[str, Any] | None:
    """What was taken for what: a matrix where labels are few, else the commonest confusions."""
    if report.card.scorer.get("kind") != "label" or len(report.tuned.readings) != len(report.rows):
        return None
    known = {answers.fold(str(label)): str(label) for label in report.card.scorer.get("labels", ())}
    gold = [known.get(answers.fold(row.completion), row.completion.strip()) for row in report.rows]
    # A right answer counts as its gold label, however it is spelt.
    given = [
        wanted if score.value == 1 else reading
        for wanted, reading, score in zip(gold, report.tuned.readings, report.tuned.scores, strict=True)
    ]
    pairs = Counter(zip(gold, given, strict=True))
    many = Counter(gold)
    labels = sorted(set(gold) | {label for label in given if label}, key=lambda label: (-many[label], label))
    if len(labels) <= _LARGEST_MATRIX:
        columns = [*labels, ""] if any(not label for label in given) else labels
        matrix = [
            {"label": label, "rows": many[label], "cells": [
                {"count": pairs[label, column], "share": pairs[label, column] / max(1, many[label]),
                 "right": label == column}
                for column in columns
            ]}
            for label in labels
        ]  # fmt: skip
        return {"columns": columns, "matrix": matrix, "confusions": [], "worst": []}
    wrong = [(pair, count) for pair, count in pairs.most_common() if pair[0] != pair[1]][:_LISTED]
    right = {label: pairs[label, label] / many[label] for label in many if many[label] >= 3}
    base = Counter(label for label, score in zip(gold, report.base.scores, strict=True) if score.value == 1)
    worst = [
        {"label": label, "rows": many[label], "base": base[label] / many[label], "tuned": right[label]}
        for label in sorted(right, key=lambda label: (right[label], label))[:_LISTED]
    ]
    return {"columns": [], "matrix": [], "confusions": wrong, "worst": worst}


def _fields(report: Report) -> dict[str, Any] | None:
    """For each field of a JSON answer: rows that have it, share right by base and by adapter."""
    rows: Counter[str] = Counter()
    right: dict[str, Counter[str]] = {"base": Counter(), "tuned": Counter()}
    for base, tuned in zip(report.base.scores, report.tuned.scores, strict=True):
        for which, score in (("base", base), ("tuned", tuned)):
            right[which].update(name for name, good in (score.fields or {}).items() if good)
        rows.update({*(base.fields or {}), *(tuned.fields or {})})
    if not rows:
        return None
    listed = [
        {"name": name, "rows": many, "base": right["base"][name] / many, "tuned": right["tuned"][name] / many}
        for name, many in rows.most_common(_FIELDS)
    ]
    return {"listed": listed, "more": len(rows) - len(listed)}


def _examples(report: Report) -> dict[str, Any]:
    groups: dict[str, list[dict[str, Any]]] = {"wins": [], "losses": [], "wrong": []}
    for n, (row, base, tuned) in enumerate(zip(report.rows, report.base.scores, report.tuned.scores, strict=True)):
        if abs(tuned.value - base.value) > 1e-12:
            group = "wins" if tuned.value > base.value else "losses"
        elif tuned.value < 0.5:
            group = "wrong"
        else:
            continue
        example = {
            "id": row.id,
            "prompt": figures.shorten(row.prompt, _LONGEST_PROMPT),
            "gold": figures.shorten(row.completion.strip(), _LONGEST_ANSWER),
            "base": figures.shorten(report.base.answers[n].strip(), _LONGEST_ANSWER),
            "tuned": figures.shorten(report.tuned.answers[n].strip(), _LONGEST_ANSWER),
            "base_score": base.value,
            "tuned_score": tuned.value,
        }
        groups[group].append(example)
    return {name: {"shown": _spread(found, _EXAMPLES), "many": len(found)} for name, found in groups.items()}


def _spread(found: Sequence[Any], most: int) -> list[Any]:
    """Evenly spaced, so that the page shows the whole set and not its beginning."""
    if len(found) <= most:
        return list(found)
    return [found[n * len(found) // most] for n in range(most)]


def _perplexity(card: Card) -> float:
    return findings.perplexity_change(card.forgetting.before, card.forgetting.after) if card.forgetting else 0.0
