"""Which rows are learned from, which choose, and which prove: decided before anything else is done.

Promises that a row's side follows from its content and the seed alone, whatever order the rows come in and
whatever else is added; that rows of one group, and rows that nearly repeat each other, stand on one side; and
that no split is made which could prove nothing. Knows nothing of models.

A set of rows that belong together is placed by a hash of the set's key, read as a fraction of 1. Adding rows
therefore moves no row, except one that a new row is a near-duplicate of.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from whit.data.rows import Row, content_key, said
from whit.data.similarity import SIMILARITY, Union, similar_sets
from whit.errors import DataError, UsageError
from whit.talk import several


@dataclass(frozen=True)
class Split:
    """Rows to learn from, to choose by, and to prove with, each in the order they were given."""

    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    test: tuple[Row, ...]


def split_rows(
    rows: Sequence[Row],
    *,
    validation: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    near_duplicates: bool = True,
    similarity: float = SIMILARITY,
) -> Split:
    """Split rows by content. `validation` and `test` are shares of 1, met up to chance.

    Rows with the same input, the same `group`, or (with `near_duplicates`) a Jaccard similarity of their
    inputs of at least `similarity` stand on one side. A share of 0 leaves that side empty. Where chance left
    a wanted side empty, the set nearest to it by its hash is moved there. Raises `DataError` where there is
    one row, one answer, or nothing that could be held out.
    """
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise UsageError(
            f"validation {validation:g} and test {test:g} must be shares of 1 that leave rows to learn from"
        )
    if not rows:
        raise DataError("there are no rows to split")
    if len(rows) == 1:
        raise DataError(f"{rows[0].place}: there is one row; tuning needs rows to learn from and others to prove with")
    if validation + test > 0:
        _need_answers(rows, "every row has")
    sets = _sets(rows, similarity if near_duplicates else None)
    fractions = {key: _fraction(key, seed) for key in sets}
    sides = {
        key: "test" if at < test else "validation" if at < test + validation else "train"
        for key, at in fractions.items()
    }
    wanted = [("test", 0.0)] if test > 0 else []
    wanted += [("validation", test)] if validation > 0 else []
    wanted += [("train", 1.0)]
    if len(sets) < len(wanted):
        alike = len(sets) < len(rows)
        why = " (rows of a group or that nearly repeat each other stay together)" if alike else ""
        raise DataError(
            f"0 held-out rows: the {several(len(rows), 'row')} make only "
            f"{several(len(sets), 'separate set')}{why}, too few for {' + '.join(name for name, _ in wanted)}; "
            "add rows that differ"
        )
    for name, near in wanted:
        if name not in sides.values():
            spare = [key for key, side in sides.items() if list(sides.values()).count(side) > 1]
            sides[min(spare, key=lambda key: (abs(fractions[key] - near), key))] = name
    parts: dict[str, set[int]] = defaultdict(set)
    for key, members in sets.items():
        parts[sides[key]].update(members)
    split = Split(*(tuple(rows[i] for i in sorted(parts[s])) for s in ("train", "validation", "test")))
    if validation + test > 0:
        _need_answers(split.train, "after splitting, every row to learn from has")
    return split


def hold_apart(
    rows: Sequence[Row], held: Sequence[Row], *, near_duplicates: bool = True, similarity: float = SIMILARITY
) -> tuple[tuple[Row, ...], Counter[str]]:
    """The rows that stand on no side with a row of `held`, and how many others do for which reason.

    The reasons are `repeat`, `near` and `group`, by the rule of `split_rows`.
    """
    union = _joined([*held, *rows], similarity if near_duplicates else None)
    taken = {union.root(i) for i in range(len(held))}
    inputs, groups = {content_key(row.turns) for row in held}, {row.group for row in held} - {None}
    kept: list[Row] = []
    why: Counter[str] = Counter()
    for i, row in enumerate(rows, len(held)):
        if union.root(i) not in taken:
            kept.append(row)
        else:
            why["repeat" if content_key(row.turns) in inputs else "group" if row.group in groups else "near"] += 1
    return tuple(kept), why


def _need_answers(rows: Sequence[Row], what: str) -> None:
    answers = {row.completion.strip() for row in rows}
    if len(answers) == 1:
        raise DataError(
            f"{what} the same answer {next(iter(answers))[:40]!r}; there is nothing to learn. Add rows with "
            "other answers, or name another column with --completion-column"
        )


def _fraction(key: str, seed: int) -> float:
    state = hashlib.blake2b(f"{seed}\n{key}".encode(), digest_size=8).digest()
    return int.from_bytes(state, "big") / 2.0**64


def _sets(rows: Sequence[Row], similarity: float | None) -> dict[str, list[int]]:
    """Rows that must stay together, by a key that does not depend on their order."""
    keys = [content_key(row.turns) for row in rows]
    sets: dict[str, list[int]] = {}
    for members in _joined(rows, similarity).sets():
        groups = sorted({f"group {rows[i].group}" for i in members if rows[i].group is not None})
        sets[groups[0] if groups else "text " + min(keys[i] for i in members)] = members
    return sets


def _joined(rows: Sequence[Row], similarity: float | None) -> Union:
    union = Union(len(rows))
    first: dict[tuple[str, str], int] = {}
    for i, row in enumerate(rows):
        union.join(i, first.setdefault(("text", content_key(row.turns)), i))
        if row.group is not None:
            union.join(i, first.setdefault(("group", row.group), i))
    if similarity is not None:
        distinct = [i for (kind, _), i in first.items() if kind == "text"]
        for alike in similar_sets([said(rows[i].turns) for i in distinct], similarity):
            for other in alike[1:]:
                union.join(distinct[alike[0]], distinct[other])
    return union
