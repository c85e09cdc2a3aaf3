"""Why a training row may hurt: another answer to the same input, an odd form, a wrong label, an outlier.

The first cause that fits is given, with its evidence in words; where none fits the row may simply be hard. Knows
nothing of gradients: it is handed each row's pull and what the adapter answers.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from whit.data import secrets
from whit.data.checking import answer_key, by_input
from whit.data.problem import Problem
from whit.data.rows import Row, said
from whit.data.similarity import similar_sets
from whit.evaluation.scoring import Scorer

CAUSES = {
    "another-answer": "the same input, or nearly, with another answer",
    "odd-format": "an answer written otherwise than most",
    "wrong-label": "an answer that the adapter, trained on it, still does not give",
    "outlier": "a row unlike the others",
    "unclear": "no cause was found: it may be right, and hard",
}
_FORMS = frozenset({"format-case", "format-spaces", "format-punctuation", "invalid-json", "json-keys", "json-style",
                    "json-types", "rare-label", "truncated", "special-token", "empty"})  # fmt: skip
_FAR = 8.0  # times the median, above which a pull is an outlier's
_LONG = 4.0  # times the median length


@dataclass(frozen=True)
class Cause:
    """One of `CAUSES`, and the evidence."""

    kind: str
    why: str


class Causes:
    """Looks for causes among all rows that were trained on; `pulls` is each row's leverage, `problems` what a check
    of the rows found."""

    def __init__(self, rows: Sequence[Row], problems: Iterable[Problem], pulls: Mapping[str, float]) -> None:
        self._rows = {row.id: row for row in rows}
        self._others = _other_answers(rows)
        self._forms = {
            identity: problem.message for problem in problems if problem.kind in _FORMS for identity in problem.ids
        }
        self._pulls = pulls
        self._pull = statistics.median(pulls.values()) if pulls else 0.0
        self._length = statistics.median(len(said(row.turns)) for row in rows) if rows else 0.0

    def of(self, row: Row, answer: str, scorer: Scorer) -> Cause:
        """The likely cause of a row that hurts; `answer` is what the adapter gives to it."""
        if row.id in self._others:
            other = self._rows[self._others[row.id]]
            return Cause("another-answer", f"{other.id} has {_short(other.completion)} to nearly the same input")
        if row.id in self._forms:
            return Cause("odd-format", self._forms[row.id])
        if scorer.labels and not scorer.read(row.completion):
            return Cause("odd-format", f"{_short(row.completion)} is none of the {len(scorer.labels)} labels")
        pull = self._pulls.get(row.id, 0.0)
        length = len(said(row.turns))
        # Of free text there are many right answers: that the adapter gives another one says nothing.
        closed = bool(scorer.labels) or scorer.name in ("numeric", "json", "json-fields")
        if closed and scorer.read(answer) and scorer.score(answer, row).lenient < 1:
            return Cause("wrong-label", f"the adapter answers {_short(answer)}")
        if self._length and length > _LONG * self._length:
            return Cause("outlier", f"its input is {length / self._length:.0f} times as long as most")
        if self._pull > 0 and pull > _FAR * self._pull:
            return Cause("outlier", f"it pulls the numbers {pull / self._pull:.0f} times as far as most rows")
        if answer_key(row) == " ".join(answer.casefold().split()):
            return Cause("unclear", "its answer is given, but unsurely")
        return Cause("unclear", f"the adapter answers {_short(answer)}")


def _other_answers(rows: Sequence[Row]) -> dict[str, str]:
    """Ids of rows whose input stands elsewhere with another answer, each with the id of such a row."""
    found: dict[str, str] = {}
    firsts = []
    for alike in by_input(rows).values():
        firsts.append(alike)
        _pair(alike, found)
    for near in similar_sets([said(alike[0].turns) for alike in firsts]):
        _pair([row for at in near for row in firsts[at]], found)
    return found


def _pair(alike: Sequence[Row], found: dict[str, str]) -> None:
    by_answer: dict[str, list[Row]] = defaultdict(list)
    for row in alike:
        by_answer[answer_key(row)].append(row)
    if len(by_answer) < 2:
        return
    for answer, mine in by_answer.items():
        others = [row for other, rows in by_answer.items() if other != answer for row in rows]
        for row in mine:
            found.setdefault(row.id, others[0].id)


def _short(text: str) -> str:
    shown = " ".join(secrets.mask(text).split())
    return repr(shown[:40] + ("…" if len(shown) > 40 else ""))
