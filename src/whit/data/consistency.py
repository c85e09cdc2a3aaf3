"""Answers that should look alike and do not: case, spaces, full stops, JSON and its keys.

The form that most rows have is taken as the one that is meant. Knows nothing of models, and nothing of what
an answer means.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from whit.data.problem import Problem
from whit.data.rows import Row
from whit.talk import several

FEW = 20  # rows below which a count says nothing
LABEL = 80  # characters of the longest label
COMPACT, SPACED = (",", ":"), (", ", ": ")


def listed(ids: Sequence[str], most: int = 8) -> str:
    """Ids for a message."""
    return ", ".join(ids[:most]) + (f" and {len(ids) - most:,} more" if len(ids) > most else "")


def labels(values: Sequence[str]) -> Counter[str] | None:
    """How often each value occurs, None where they are not a small closed set of short texts."""
    counts = Counter(values)
    if not 2 <= len(counts) <= max(2, len(values) // 5) or max(map(len, counts)) > LABEL:
        return None
    return counts


def plain(label: str) -> str:
    """A label without differences of case, spacing and a final full stop."""
    return " ".join(label.casefold().split()).rstrip(".!")


def variants(values: Sequence[str]) -> dict[str, str]:
    """Labels written in a rarer form, each with the form that most have."""
    forms: dict[str, Counter[str]] = defaultdict(Counter)
    for value in values:
        forms[plain(value)][value] += 1
    better = {}
    for counts in forms.values():
        # Of forms that are equally frequent the one without spaces at its ends, then the first in order.
        best = min(counts, key=lambda form: (-counts[form], form != form.strip(), form))
        better.update({form: best.strip() for form in counts if form != best.strip()})
    return better


def difference(form: str, best: str) -> str:
    """The kind of problem by which two forms of one label differ."""
    if " ".join(form.split()) == " ".join(best.split()):
        return "format-spaces"
    return "format-case" if form.strip().casefold() == best.strip().casefold() else "format-punctuation"


@dataclass(frozen=True)
class Answers:
    """The answers of some rows, parsed once."""

    rows: tuple[Row, ...]

    @cached_property
    def objects(self) -> dict[str, dict[str, Any]]:
        """Answers that are JSON objects, by row id."""
        found = {}
        for row in self.rows:
            if row.completion.lstrip()[:1] == "{":
                try:
                    value = json.loads(row.completion)
                except (ValueError, RecursionError):
                    continue
                if isinstance(value, dict):
                    found[row.id] = value
        return found

    @property
    def are_json(self) -> bool:
        """Whether the task's answers are JSON objects: at least half of them parse."""
        return bool(self.objects) and 2 * len(self.objects) >= sum(bool(r.completion.strip()) for r in self.rows)

    @cached_property
    def separators(self) -> tuple[str, str] | None:
        """How most objects are written, None where most are written in some other way."""
        styles = Counter(self.style(row) for row in self.rows if row.id in self.objects)
        return styles.most_common(1)[0][0] if styles else None

    def style(self, row: Row) -> tuple[str, str] | None:
        """The separators that the row's object is written with."""
        for separators in (SPACED, COMPACT):
            if self.write(self.objects[row.id], separators) == row.completion.strip():
                return separators
        return None

    @staticmethod
    def write(value: dict[str, Any], separators: tuple[str, str]) -> str:
        """An object as one line of JSON."""
        return json.dumps(value, ensure_ascii=False, separators=separators)

    @cached_property
    def order(self) -> dict[frozenset[str], tuple[str, ...]]:
        """The order of keys that most objects with the same keys have.

        Empty where less than nine in ten follow it: then the order says something (slots, as they are said).
        """
        orders: dict[frozenset[str], Counter[tuple[str, ...]]] = defaultdict(Counter)
        for value in self.objects.values():
            orders[frozenset(value)][tuple(value)] += 1
        usual = {keys: counts.most_common(1)[0] for keys, counts in orders.items()}
        if 10 * sum(count for _, count in usual.values()) < 9 * len(self.objects):
            return {}
        return {keys: order for keys, (order, _) in usual.items()}

    def tidy(self, row: Row) -> str:
        """The row's object in the order and style of most."""
        value = self.objects[row.id]
        ordered = {key: value[key] for key in self.order.get(frozenset(value), value)}
        return self.write(ordered, self.separators) if self.separators else row.completion.strip()

    @cached_property
    def fields(self) -> dict[str, dict[str, str]]:
        """Texts of each field that at least half of the objects have: field → row id → value."""
        found: dict[str, dict[str, str]] = defaultdict(dict)
        for identity, value in self.objects.items():
            for key, item in value.items():
                if isinstance(item, str):
                    found[key][identity] = item
        return {key: texts for key, texts in found.items() if 2 * len(texts) >= len(self.objects)}

    def label_sets(self) -> dict[str, dict[str, str]]:
        """Closed sets of labels: "" for the whole answer, or a field's name → row id → label."""
        if self.are_json:
            return {key: texts for key, texts in self.fields.items() if labels(list(texts.values()))}
        whole = {row.id: row.completion for row in self.rows if row.completion.strip()}
        return {"": whole} if labels(list(whole.values())) else {}


def check_consistency(answers: Answers) -> list[Problem]:
    """Problems of form: `format-…`, `invalid-json`, `truncated` JSON, `json-…`."""
    problems = _label_forms(answers) + _spaces(answers)
    return problems + (_json(answers) if answers.are_json else [])


def _label_forms(answers: Answers) -> list[Problem]:
    problems = []
    for name, texts in answers.label_sets().items():
        for form, best in sorted(variants(list(texts.values())).items()):
            ids = tuple(identity for identity, text in texts.items() if text == form)
            where = f"field {name!r}: " if name else ""
            message = f"{where}{form!r} is written {best!r} elsewhere: {listed(ids)}"
            problems.append(Problem(difference(form, best), ids, message))
    return problems


def _spaces(answers: Answers) -> list[Problem]:
    told = set() if answers.are_json else {i for texts in answers.label_sets().values() for i in texts}
    ids = [
        row.id
        for row in answers.rows
        if (row.id not in told and row.completion.strip() not in ("", row.completion))
        or any(turn.content.strip() not in ("", turn.content) for turn in row.turns)
    ]
    if not ids:
        return []
    count = several(len(ids), "row")
    return [Problem("format-spaces", tuple(ids), f"{count} with spaces before or after the text: {listed(ids)}")]


def _json(answers: Answers) -> list[Problem]:
    problems = []
    cut: list[str] = []
    broken: list[str] = []
    for row in answers.rows:
        text = row.completion.strip()
        if text and row.id not in answers.objects:
            (cut if is_cut_json(text) else broken).append(row.id)
    if cut:
        problems.append(Problem("truncated", tuple(cut), f"JSON that ends too early: {listed(cut)}"))
    if broken:
        message = f"not a JSON object, as the other answers are: {listed(broken)}"
        problems.append(Problem("invalid-json", tuple(broken), message))
    return problems + _keys(answers) + _style(answers) + _types(answers)


def is_cut_json(text: str) -> bool:
    """Whether a text begins as JSON and ends before its brackets or quotes are closed."""
    if text[:1] not in ("{", "["):
        return False
    depth, quoted, escaped = 0, False, False
    for character in text:
        if quoted:
            quoted = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            quoted = True
        elif character in "{[":
            depth += 1
        elif character in "}]":
            depth -= 1
    return quoted or depth > 0


def _keys(answers: Answers) -> list[Problem]:
    sets = Counter(frozenset(value) for value in answers.objects.values())
    usual, count = sets.most_common(1)[0]
    # Without a shape that most share, keys vary by design (slots).
    if len(sets) == 1 or 2 * count < len(answers.objects) or count < 2:
        return []
    problems = []
    for keys in sorted((keys for keys in sets if keys != usual), key=sorted):
        ids = tuple(identity for identity, value in answers.objects.items() if frozenset(value) == keys)
        parts = [f"without {', '.join(sorted(usual - keys))}"] if usual - keys else []
        parts += [f"with {', '.join(sorted(keys - usual))}"] if keys - usual else []
        problems.append(Problem("json-keys", ids, f"{' and '.join(parts)}, unlike most: {listed(ids)}"))
    return problems


def _style(answers: Answers) -> list[Problem]:
    if answers.separators is None:
        return []
    rows = [row for row in answers.rows if row.id in answers.objects]
    ids = tuple(row.id for row in rows if answers.tidy(row) != row.completion.strip())
    if not ids:
        return []
    return [Problem("json-style", ids, f"keys in another order, or other spaces, than most: {listed(ids)}")]


def _types(answers: Answers) -> list[Problem]:
    kinds: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for identity, value in answers.objects.items():
        for key, item in value.items():
            kinds[key][_type(item)].append(identity)
    problems = []
    for key, found in kinds.items():
        usual = max(found, key=lambda kind: len(found[kind]))
        total = sum(map(len, found.values()))
        for kind, ids in found.items():
            if kind != usual and 10 * len(ids) <= total:
                message = f"field {key!r} is {kind}, elsewhere {usual}: {listed(ids)}"
                problems.append(Problem("json-types", tuple(ids), message))
    return problems


def _type(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "true or false"
    names = {str: "a text", int: "a number", float: "a number", list: "a list"}
    return names.get(type(value), "an object")
