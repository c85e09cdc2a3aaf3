"""The kinds of reward: exact, numeric, label, json, regex, gym and the user's own function.

Each is a `Term`: scores for many answers at once, with the format apart from the skill (`whit.evaluation.scoring`).
Whatever may run for ever on a strange answer runs in a child process. Knows nothing of weights or of training.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from whit.errors import DataError, ScoreError, UsageError
from whit.evaluation import answers
from whit.evaluation.scoring import JsonScorer, NumericScorer, Score, Scorer, as_mapping, make_scorer
from whit.rewards.child import SECONDS, Child, Job
from whit.rewards.schema import load_schema, matches

if TYPE_CHECKING:
    from whit.data.rows import Row

# What only math-verify reads, in an answer that is not right as a plain number.
_FORMULA = re.compile(r"[\\^√π]")
PLAIN = ("exact", "numeric", "label", "json", "json-fields")
_MATHS = re.compile(r"\\|\^|√|π|[a-zA-Z]\s*[=+*/]|\bsqrt\b|\bpi\b")


class Term(Protocol):
    """One part of a reward."""

    @property
    def name(self) -> str:
        """As the user wrote it."""

    @property
    def scorer(self) -> Scorer:
        """The same judgement of one answer, for validation and the proof."""

    def scores(self, answers: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        """A score for each answer to its row. Raises `ScoreError`."""

    def close(self) -> None:
        """End what it started."""


class PlainTerm:
    """A scorer of `whit.evaluation` as a reward."""

    def __init__(self, name: str, scorer: Scorer, *, schema: Mapping[str, Any] | None = None) -> None:
        self.name, self._schema = name, schema
        self.scorer: Scorer = scorer if schema is None else TermScorer(self, graded=scorer.graded)
        self._inner = scorer

    def scores(self, answers: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        """See `Term`."""
        found = [self._inner.score(answer, row) for answer, row in zip(answers, rows, strict=True)]
        if self._schema is None:
            return found
        return [replace(score, valid=_fits(answer, self._schema)) for answer, score in zip(answers, found, strict=True)]

    def close(self) -> None:
        """Nothing was started."""


class NumericTerm:
    """The number that an answer ends up at; math-verify where gold or answer is more than a number."""

    def __init__(self, name: str, rows: Sequence[Row], *, seconds: float) -> None:
        self.name = name
        self._plain = NumericScorer()
        self._child: Child | None = None
        hard = [row for row in rows if needs_maths(row.completion)]
        there = find_spec("math_verify") is not None
        if hard and not there:
            raise UsageError(
                f"--reward numeric: the answer {hard[0].completion[:60]!r} of {hard[0].place} is more than a number; "
                "comparing such needs math-verify: pip install 'math-verify[antlr4_13_2]'"
            )
        if there:
            self._child = Child("whit.rewards.functions:mathematics", name=name, seconds=seconds, config={})
        # Where all gold answers are numbers, a card can keep the plain scorer: it differs on LaTeX answers alone.
        self.scorer: Scorer = TermScorer(self, graded=False, state=None if hard else self._plain.state)

    def scores(self, answers: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        """See `Term`."""
        found: list[Score] = []
        asked: list[tuple[int, Job]] = []
        for place, (answer, row) in enumerate(zip(answers, rows, strict=True)):
            hard = needs_maths(row.completion)
            score = Score(0.0, valid=False) if hard else self._plain.score(answer, row)
            if self._child is not None and (hard or (score.value == 0 and _FORMULA.search(answer) is not None)):
                asked.append((place, _job(answer, row)))
            found.append(score)
        if asked and self._child is not None:
            results = self._child.ask([job for _, job in asked])
            for (place, _), result in zip(asked, results, strict=True):
                before = found[place]
                lenient = max(before.lenient, result.lenient)
                found[place] = Score(result.skill, before.valid or result.format, None, lenient)
        return found

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.close()


class ChildTerm:
    """A function that runs in a child process: the user's own, a pattern, or a gym's scorer."""

    def __init__(self, name: str, child: Child, *, graded: bool = True) -> None:
        self.name, self._child = name, child
        self.scorer: Scorer = TermScorer(self, graded=graded)

    def scores(self, answers: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        """See `Term`."""
        found = self._child.ask([_job(answer, row) for answer, row in zip(answers, rows, strict=True)])
        return [Score(each.skill, each.format, None, each.lenient) for each in found]

    def close(self) -> None:
        """End the child."""
        self._child.close()


class TermScorer:
    """A term as a `whit.evaluation` scorer."""

    labels: tuple[str, ...] = ()
    reason = "the reward"

    def __init__(self, term: Term, *, graded: bool, state: Mapping[str, Any] | None = None) -> None:
        self._term, self.graded, self._state = term, graded, state

    @property
    def name(self) -> str:
        """As the user wrote the reward."""
        return self._term.name

    @property
    def state(self) -> dict[str, Any]:
        """Only the name: what it runs is said again by whoever wants it run."""
        if self._state is not None:
            return dict(self._state)
        return {"kind": "function", "reason": self.reason, "function": self._term.name}

    def read(self, answer: str) -> str:
        """The answer without space at its ends."""
        return answer.strip()

    def score(self, answer: str, row: Row) -> Score:
        """Raises `ScoreError`."""
        return self._term.scores([answer], [row])[0]


def named_scorer(name: str, rows: Sequence[Row]) -> Scorer:
    """What `--score` names: a kind of `whit.evaluation`, or a pattern, a schema or a gym's scorer as in a reward."""
    if name.startswith(("regex:", "gym:", "json:", "json-fields:")):
        return make_term(name, rows).scorer
    return make_scorer(name, rows)


def make_term(name: str, rows: Sequence[Row], *, seconds: float = SECONDS) -> Term:
    """The term that `name` spells, knowing the labels or keys of `rows` (the training rows).

    Raises `UsageError` for an unknown one and `DataError` where the rows do not suit it.
    """
    kind, colon, rest = name.partition(":")
    if not colon:
        if kind not in PLAIN:
            known = (*PLAIN, "regex:PATTERN", "json:SCHEMA.json", "gym:NAME", "module:function")
            near = difflib.get_close_matches(kind, PLAIN, n=1)
            meant = f"did you mean {near[0]}? There are " if near else "there are "
            raise UsageError(f"--reward {name}: unknown; {meant}{', '.join(known)}")
        if kind == "numeric":
            missing = [row.place for row in rows if not row.completion.strip()]
            if missing:
                raise DataError(f"--reward numeric: {missing[0]} has no answer to compare with")
            return NumericTerm(name, rows, seconds=seconds)
        return PlainTerm(name, _named(kind, rows))
    if kind in ("json", "json-fields"):
        scorer = make_scorer(kind, rows)
        assert isinstance(scorer, JsonScorer)
        return PlainTerm(name, scorer, schema=load_schema(Path(rest)))
    if kind == "regex":
        try:
            re.compile(rest)
        except re.error as error:
            raise UsageError(f"--reward {name}: not a regular expression ({error})") from error
        child = Child("whit.rewards.functions:pattern", name=name, seconds=seconds, config={"pattern": rest})
        return ChildTerm(name, child, graded=False)
    if kind == "gym":
        return _gym(name, rest, rows, seconds)
    child = Child(name, name=name, seconds=seconds)
    child.start()
    return ChildTerm(name, child)


def _gym(name: str, rest: str, rows: Sequence[Row], seconds: float) -> Term:
    from whit.rewards.gym import parse_name

    generator, options = parse_name(rest)
    without = [row.place for row in rows if not isinstance(row.extra.get("gym"), dict)]
    if without:
        raise DataError(
            f"--reward {name}: {without[0]} does not say which entry of the generator it is; "
            f"leave the data out to have rows generated: whit train --reward {name}"
        )
    config = {"name": generator, "options": options}
    child = Child("whit.rewards.functions:gym", name=name, seconds=max(seconds, 10.0), config=config)
    return ChildTerm(name, child)


def _named(kind: str, rows: Sequence[Row]) -> Scorer:
    try:
        return make_scorer(kind, rows)
    except (DataError, ScoreError) as error:
        raise DataError(str(error).replace("--score", "--reward")) from error


def needs_maths(text: str) -> bool:
    """Whether a gold answer is more than a number in words: LaTeX, powers, roots, letters in sums; or no number."""
    # What comes before the marker is the way to the answer (GSM8K writes one).
    stated = text[text.rfind("####") + 4 :] if "####" in text else text
    return bool(_MATHS.search(stated)) or answers.final_number(stated) is None


def _fits(answer: str, schema: Mapping[str, Any]) -> bool:
    try:
        return matches(answers.parse_json(answer), schema)
    except ValueError:
        return False


def _job(answer: str, row: Row) -> Job:
    return Job(row.name, row.prompt, answer, as_mapping(row))
