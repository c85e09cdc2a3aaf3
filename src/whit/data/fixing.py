"""A cleaned copy of a data set, and a list of every change.

Promises that what can be mended without guessing is mended or removed, that each change is told with the
row's id, and that a second check of the copy finds none of it again. Near-duplicates, rare labels, keys that
vary and imbalance are a person's to judge and are left alone. Knows nothing of models.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from whit.data import secrets
from whit.data.checking import answer_key, by_input
from whit.data.consistency import Answers, variants
from whit.data.problem import Problem
from whit.data.rows import Row, Turn
from whit.errors import DataError, UsageError
from whit.files import atomic_write

_REMOVED = {
    "empty": "empty",
    "truncated": "cut off",
    "too-long": "beyond the context",
    "invalid-json": "its answer does not parse",
    "leakage": "it stands in another split",
}
_LEFT = (
    "near-duplicate", "rare-label", "json-keys", "json-types", "imbalance", "special-token", "one-class", "one-row",
)  # fmt: skip


def fix_rows(rows: Sequence[Row], problems: Sequence[Problem]) -> tuple[list[Row], list[str], list[str]]:
    """The rows without the problems that can be mended, one line for each change, and one for each kind left alone.

    Rows are removed where they are empty, cut off, too long, unparsable or leaked; secrets are masked;
    spaces, case and JSON style are made as in most rows; of rows that repeat, the first is kept; of answers that
    conflict, the one that more than half of the rows have, and all of them where there is none.
    """
    kinds: dict[str, list[str]] = defaultdict(list)
    for problem in problems:
        for identity in problem.ids:
            kinds[identity].append(problem.kind)
    changes: list[str] = []
    kept = []
    for row in rows:
        reason = next((why for kind, why in _REMOVED.items() if kind in kinds[row.id]), None)
        if reason:
            changes.append(f"{row.name}: removed ({reason})")
        else:
            kept.append(row)
    kept = [_masked(row, changes) if {"email", "card", "key"} & set(kinds[row.id]) else row for row in kept]
    kept = _stripped(kept, changes)
    kept = _same_forms(kept, changes)
    kept = _tidied(kept, changes)
    kept = _decided(kept, changes)
    kept = _once(kept, changes)
    left = Counter(problem.kind for problem in problems if problem.kind in _LEFT)
    return kept, changes, [f"{count:,} × {kind}" for kind, count in left.items()]


def write_rows(path: str | Path, rows: Sequence[Row], *, overwrite: bool = True) -> None:
    """Write rows as JSON lines that `read_rows` reads back as they are. Raises `StorageError`.

    Without `overwrite` a file with anything else in it is not replaced, but a `UsageError`.
    """
    if not rows:
        raise DataError(f"{path}: no row is left to write")
    text = _lines(rows)
    if not overwrite and Path(path).exists() and not _holds(Path(path), text):
        raise UsageError(f"{path} is there already, with other content; name another file, or add --overwrite")
    atomic_write(path, text)


def _holds(path: Path, text: str) -> bool:
    content = text.encode()
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


def _lines(rows: Sequence[Row]) -> str:
    plain = all(len(row.turns) == 1 and row.turns[0].role == "user" for row in rows)
    return "".join(json.dumps(_record(row, plain), ensure_ascii=False) + "\n" for row in rows)


def _record(row: Row, plain: bool) -> dict[str, object]:
    said: dict[str, object]
    if plain:
        said = {"prompt": row.turns[0].content, "completion": row.completion}
    else:
        turns = [*row.turns, Turn("assistant", row.completion)]
        said = {"messages": [{"role": turn.role, "content": turn.content} for turn in turns]}
    group = {} if row.group is None else {"group": row.group}
    taken = {"id", "group", "instruction", "system", *said}
    extra = {key: value for key, value in row.extra.items() if key not in taken}
    return {"id": row.id, **said, **group, **extra}


def _masked(row: Row, changes: list[str]) -> Row:
    turns = tuple(Turn(turn.role, secrets.mask(turn.content)) for turn in row.turns)
    changes.append(f"{row.name}: masked an address, card number or key")
    return replace(row, turns=turns, completion=secrets.mask(row.completion))


def _stripped(rows: Sequence[Row], changes: list[str]) -> list[Row]:
    done = []
    for row in rows:
        turns = tuple(Turn(turn.role, turn.content.strip()) for turn in row.turns)
        if turns != row.turns or row.completion != row.completion.strip():
            changes.append(f"{row.name}: spaces before or after the text removed")
            row = replace(row, turns=turns, completion=row.completion.strip())
        done.append(row)
    return done


def _same_forms(rows: Sequence[Row], changes: list[str]) -> list[Row]:
    answers = Answers(tuple(rows))
    by_id = {row.id: row for row in rows}
    for name, texts in answers.label_sets().items():
        better = variants(list(texts.values()))
        for identity, form in texts.items():
            if form not in better:
                continue
            row, best = by_id[identity], better[form]
            if name:
                value = json.loads(row.completion)
                value[name] = best
                separators = answers.style(row) or answers.separators or (", ", ": ")
                by_id[identity] = replace(row, completion=answers.write(value, separators))
            else:
                by_id[identity] = replace(row, completion=best)
            changes.append(f"{row.name}: {form!r} → {best!r}")
    return list(by_id.values())


def _tidied(rows: Sequence[Row], changes: list[str]) -> list[Row]:
    answers = Answers(tuple(rows))
    if not answers.are_json or answers.separators is None:
        return list(rows)
    done = []
    for row in rows:
        if row.id in answers.objects and answers.tidy(row) != row.completion:
            changes.append(f"{row.name}: JSON written in the order and style of most")
            row = replace(row, completion=answers.tidy(row))
        done.append(row)
    return done


def _decided(rows: Sequence[Row], changes: list[str]) -> list[Row]:
    removed = set()
    for alike in by_input(rows).values():
        counts = Counter(answer_key(row) for row in alike)
        if len(counts) < 2:
            continue
        answer, most = counts.most_common(1)[0]
        decided = 2 * most > len(alike)
        for row in alike:
            if not decided or answer_key(row) != answer:
                removed.add(row.id)
                why = f"{most} of {len(alike)} rows answer otherwise" if decided else "its answers disagree"
                changes.append(f"{row.name}: removed ({why})")
    return [row for row in rows if row.id not in removed]


def _once(rows: Sequence[Row], changes: list[str]) -> list[Row]:
    first: dict[tuple[str, str], Row] = {}
    kept = []
    for key, alike in by_input(rows).items():
        for row in alike:
            earlier = first.setdefault((key, answer_key(row)), row)
            if earlier is row:
                kept.append(row.id)
            else:
                changes.append(f"{row.name}: removed (repeats {earlier.name})")
    wanted = set(kept)
    return [row for row in rows if row.id in wanted]
