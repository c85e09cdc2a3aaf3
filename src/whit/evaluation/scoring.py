"""How right an answer is: label, exact, numeric, JSON, or a function of the user's own.

Every score is in [0, 1] and says apart whether the *format* was kept (`valid`) and what the answer
would have scored had its format been looked through (`lenient`, never below `value`). What each
kind forgives is written in docs/proof.md. Scorers learn the closed set of labels and the keys of a
JSON answer from the rows that `make_scorer` is given: the training rows. This module knows nothing
of models, decoding or statistics.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from whit.errors import DataError, ScoreError, UsageError
from whit.evaluation import answers
from whit.evaluation.choosing import MOST_LABELS, choose
from whit.evaluation.functions import load_function

if TYPE_CHECKING:
    from whit.data.rows import Row

KINDS = ("auto", "label", "exact", "numeric", "json", "json-fields")


@dataclass(frozen=True)
class Score:
    """One answer's score.

    `value` and `lenient` are in [0, 1]; `lenient` is the score with the format looked through and is
    never below `value` (left out, it is `value`); `valid` says whether the format was kept; `fields`
    says for each field of a JSON answer whether it was right.
    """

    value: float
    valid: bool = True
    fields: Mapping[str, bool] | None = None
    lenient: float = field(default=-1.0)

    def __post_init__(self) -> None:
        if not 0.0 <= self.value <= 1.0:
            raise ScoreError(f"a score must be in [0, 1], not {self.value!r}")
        object.__setattr__(self, "lenient", max(self.value, self.lenient))
        if not self.lenient <= 1.0:
            raise ScoreError(f"a lenient score must be in [0, 1], not {self.lenient!r}")


class Scorer(Protocol):
    """Scores one answer against one row's gold answer."""

    @property
    def name(self) -> str:
        """One of `KINDS` but `auto`, or the user's `module:function`."""

    @property
    def graded(self) -> bool:
        """Whether values between 0 and 1 may occur."""

    @property
    def reason(self) -> str:
        """Why this scorer, in a sentence."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The closed set of answers, or empty."""

    @property
    def state(self) -> dict[str, Any]:
        """Plain values from which `restore_scorer` makes the same scorer again."""

    def read(self, answer: str) -> str:
        """What the scorer strictly takes the answer to be, as text; "" where it is unusable."""

    def score(self, answer: str, row: Row) -> Score:
        """Raises `ScoreError` where the row or a user's function makes scoring impossible."""


class LabelScorer:
    """Right where the whole answer is the gold label, but for case, space and outer punctuation."""

    name, graded = "label", False

    def __init__(self, labels: Sequence[str], reason: str = "asked for") -> None:
        self._reader = answers.LabelReader(labels)
        self.labels = self._reader.labels
        self.reason = reason

    @property
    def state(self) -> dict[str, Any]:
        """For `restore_scorer`."""
        return {"kind": self.name, "reason": self.reason, "labels": list(self.labels)}

    def read(self, answer: str) -> str:
        """The label that the whole answer is."""
        return self._reader.strict(answer) or ""

    def score(self, answer: str, row: Row) -> Score:
        """See the class; lenient: the label that the answer names first."""
        right = self._reader.same(answer, row.completion)
        found = self._reader.lenient(answer)
        lenient = right or (found is not None and self._reader.same(found, row.completion))
        return Score(float(right), right or self._reader.strict(answer) is not None, None, float(lenient))


class ExactScorer:
    """Right where the answer is the gold answer, character by character but for space at the ends."""

    name, graded = "exact", False
    labels: tuple[str, ...] = ()

    def __init__(self, reason: str = "asked for") -> None:
        self.reason = reason

    @property
    def state(self) -> dict[str, Any]:
        """For `restore_scorer`."""
        return {"kind": self.name, "reason": self.reason}

    def read(self, answer: str) -> str:
        """The answer without space at its ends."""
        return answer.strip()

    def score(self, answer: str, row: Row) -> Score:
        """See the class; lenient: but for case, space and punctuation, in the answer or its first line."""
        given, gold = answer.strip(), row.completion.strip()
        first = given.splitlines()[0] if given else ""
        lenient = answers.normalise(gold) in (answers.normalise(given), answers.normalise(first))
        return Score(float(given == gold), bool(given), None, float(bool(given) and lenient))


class NumericScorer:
    """Right where the number that the answer ends up at is the gold answer's number."""

    name, graded = "numeric", False
    labels: tuple[str, ...] = ()

    def __init__(self, reason: str = "asked for") -> None:
        self.reason = reason

    @property
    def state(self) -> dict[str, Any]:
        """For `restore_scorer`."""
        return {"kind": self.name, "reason": self.reason}

    def read(self, answer: str) -> str:
        """The number that the answer ends up at."""
        number = answers.final_number(answer)
        return "" if number is None else f"{number:.12g}"

    def score(self, answer: str, row: Row) -> Score:
        """See the class; valid: has a number; lenient: its first or its last number will do too."""
        gold = answers.final_number(row.completion)
        if gold is None:
            raise ScoreError(f"{row.place}: no number in its answer; mend the row or choose another --score")
        given = answers.final_number(answer)
        if given is None:
            return Score(0.0, valid=False)
        every = answers.numbers_in(answer) or [given]
        lenient = any(answers.same_number(number, gold) for number in (given, every[0], every[-1]))
        return Score(float(answers.same_number(given, gold)), True, None, float(lenient))


class JsonScorer:
    """Right where the answer is JSON and equal to the gold answer as a whole; each field apart.

    Valid is an object that parses, has every key that all training answers have and no key that none
    has. With `by_field` the value is the share of the row's fields that are right, of all fields that
    gold or answer have; a field is right where both have it and it is equal.
    """

    labels: tuple[str, ...] = ()

    def __init__(
        self, keys: Sequence[str], required: Sequence[str], *, by_field: bool = False, reason: str = "asked for"
    ) -> None:
        self.name = "json-fields" if by_field else "json"
        self.graded = by_field
        self.reason = reason
        self.keys = tuple(keys)
        self.required = frozenset(required)

    @classmethod
    def of(cls, rows: Sequence[Row], *, by_field: bool, reason: str) -> JsonScorer:
        """Knowing the keys that the rows' answers have, and those that all of them have."""
        objects = [gold for row in rows if isinstance(gold := _gold_json(row), dict)]
        keys = tuple(dict.fromkeys(key for gold in objects for key in gold))
        required = [key for key in keys if all(key in gold for gold in objects)]
        return cls(keys, required, by_field=by_field, reason=reason)

    @property
    def state(self) -> dict[str, Any]:
        """For `restore_scorer`."""
        return {
            "kind": self.name,
            "reason": self.reason,
            "keys": list(self.keys),
            "required": sorted(self.required),
        }

    def read(self, answer: str) -> str:
        """The answer, where it is JSON."""
        try:
            answers.parse_json(answer)
        except ValueError:
            return ""
        return answer.strip()

    def score(self, answer: str, row: Row) -> Score:
        """See the class; lenient: the object found anywhere in the answer, its texts normalised."""
        gold = _gold_json(row)
        try:
            given, parsed = answers.parse_json(answer), True
        except ValueError:
            given, parsed = None, False
        if not isinstance(gold, dict):
            right = float(parsed and answers.same_json(given, gold))
            return Score(right, parsed)
        keys = (*self.keys, *(key for key in gold if key not in self.keys))
        found = given if isinstance(given, dict) else None
        required = self.required & gold.keys()
        valid = found is not None and required <= found.keys() <= set(keys)
        loose = found if found is not None else answers.find_object(answer, keys)
        fields = _fields(found or {}, gold)
        lenient = _fields(answers.fold_json(loose or {}), answers.fold_json(gold))
        return Score(self._value(fields), valid, fields, self._value(lenient))

    def _value(self, fields: Mapping[str, bool]) -> float:
        if self.graded:
            return sum(fields.values()) / len(fields) if fields else 1.0
        return float(all(fields.values()))


def _fields(given: Mapping[str, Any], gold: Mapping[str, Any]) -> dict[str, bool]:
    right = {key: key in given and answers.same_json(given[key], gold[key]) for key in gold}
    return right | {key: False for key in given if key not in gold}


def _gold_json(row: Row) -> Any:
    try:
        return answers.parse_json(row.completion)
    except ValueError as error:
        raise ScoreError(
            f"{row.place}: its answer is not JSON ({error}); mend the row, or choose another --score"
        ) from None


class FunctionScorer:
    """A user's `fn(answer, row) -> float | bool` in [0, 1]; `row` is a mapping with the row's columns."""

    labels: tuple[str, ...] = ()
    graded = True

    def __init__(self, function: Callable[[str, Mapping[str, Any]], Any], name: str) -> None:
        self.name = name
        self.reason = "asked for"
        self._function = function

    @property
    def state(self) -> dict[str, Any]:
        """For `restore_scorer`; only the function's name."""
        return {"kind": "function", "reason": self.reason, "function": self.name}

    def read(self, answer: str) -> str:
        """The answer without space at its ends."""
        return answer.strip()

    def score(self, answer: str, row: Row) -> Score:
        """Raises `ScoreError` with row and function where that fails or answers with no score."""
        where = f"{row.place}: {self.name}"
        try:
            value = self._function(answer, as_mapping(row))
        except Exception as error:
            raise ScoreError(f"{where} raised {type(error).__name__}: {error}") from error
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ScoreError(f"{where} answered {value!r}; it must answer with a number or a bool") from None
        if not math.isfinite(number) or not 0.0 <= number <= 1.0:
            raise ScoreError(f"{where} answered {number}; a score must be a number from 0 to 1")
        return Score(number)


def as_mapping(row: Row) -> dict[str, Any]:
    """A row as a user's function sees it: all its columns by name, `turns` as role and content."""
    return {
        **row.extra,
        "id": row.id,
        "prompt": row.prompt,
        "completion": row.completion,
        "turns": [{"role": turn.role, "content": turn.content} for turn in row.turns],
        "group": row.group,
    }


def make_scorer(kind: str, rows: Sequence[Row], *, module_function: str | None = None) -> Scorer:
    """The scorer of that kind, knowing the labels or keys of `rows` (the training rows).

    `kind` is one of `KINDS`, or `module:function` (or `file.py:function`); `module_function` says the
    same where `kind` is "function". Raises `UsageError` for an unknown kind or function, `DataError`
    where the rows do not suit it.
    """
    if module_function is not None or ":" in kind:
        name = module_function or kind
        return FunctionScorer(load_function(name), name)
    require_known(kind)
    if not rows:
        raise DataError("no rows to learn the form of the answers from; give at least one training row")
    if kind == "auto":
        kind, reason = choose(rows)
    else:
        reason = "asked for"
    if kind == "label":
        labels = _labels(rows)
        if len(labels) < 2:
            raise DataError(
                f"all {len(rows):,} training answers are {labels[0]!r}: nothing to tell apart; "
                "give rows of at least two labels"
            )
        return LabelScorer(labels, reason)
    if kind == "numeric":
        missing = [row.name for row in rows if answers.final_number(row.completion) is None]
        if missing:
            raise DataError(f"--score numeric: no number in the answer of {_some(missing)}; mend or drop them")
        return NumericScorer(reason)
    if kind in ("json", "json-fields"):
        broken = [row.name for row in rows if not answers.is_json(row.completion)]
        if broken:
            raise DataError(f"--score {kind}: no JSON in the answer of {_some(broken)}; mend or drop them")
        return JsonScorer.of(rows, by_field=kind == "json-fields", reason=reason)
    return ExactScorer(reason)


def require_known(kind: str) -> None:
    """Raise `UsageError` where there is no scorer of that kind, or no such function; no row is needed for that."""
    if ":" in kind:
        load_function(kind)
    elif kind not in KINDS:
        raise UsageError(f"--score {kind}: unknown; choose one of {', '.join(KINDS)}, or module:function")


def restore_scorer(state: Mapping[str, Any], *, function: str | None = None) -> Scorer:
    """The scorer that `state` was taken from, as a card keeps it.

    A function is imported only where `function` names it again: a card may come from anyone, and a
    name in it must not choose what code is run. Raises `UsageError` where it is not named, `DataError`
    where the state is none.
    """
    try:
        kind, reason = str(state["kind"]), str(state.get("reason", ""))
        if kind == "function":
            if function is None:
                raise UsageError(f"scored with {state['function']!r}: say it again with --score to have it run")
            return FunctionScorer(load_function(function), function)
        if kind == "label":
            return LabelScorer([str(label) for label in state["labels"]], reason)
        if kind in ("json", "json-fields"):
            return JsonScorer(state["keys"], state["required"], by_field=kind == "json-fields", reason=reason)
        if kind not in ("exact", "numeric"):
            raise KeyError(kind)
        return ExactScorer(reason) if kind == "exact" else NumericScorer(reason)
    except (KeyError, TypeError) as error:
        raise DataError(f"not a scorer's state: {type(error).__name__} {error}") from error


def _labels(rows: Sequence[Row]) -> list[str]:
    """The distinct labels, in order of first appearance, each in its commonest spelling."""
    spelt: dict[str, Counter[str]] = {}
    for row in rows:
        text = row.completion.strip()
        spelt.setdefault(answers.fold(text), Counter())[text] += 1
    if len(spelt) > MOST_LABELS:
        raise DataError(
            f"--score label: {len(spelt):,} different answers are no closed set (at most {MOST_LABELS:,}); "
            "choose --score exact"
        )
    return [counts.most_common(1)[0][0] for counts in spelt.values()]


def _some(ids: Sequence[str]) -> str:
    shown = ", ".join(ids[:5])
    return f"{len(ids)} rows ({shown}{', …' if len(ids) > 5 else ''})" if len(ids) > 1 else f"row {shown}"
