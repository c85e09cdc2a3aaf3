"""`whit check`: what is wrong with my data, by row, before anything is tuned on it.

Promises a report of every kind in `whit.data.problem.KINDS`, the same as text and as JSON, and with `fix` a
cleaned copy with a list of each change. The file that was read is never written to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.data.checking import check_rows
from whit.data.fixing import fix_rows, write_rows
from whit.data.problem import KINDS, Problem
from whit.data.rows import Reading, Row, read
from whit.errors import UsageError
from whit.settings import CheckSettings
from whit.talk import Talk, several
from whit.verbs.common import CONTRACT
from whit.verbs.needs import require_needs

if TYPE_CHECKING:
    from whit.verbs.influence import InfluenceReport

_SHOWN = 5


@dataclass(frozen=True)
class CheckResult:
    """What was found: rows, problems, what reading assumed, what `fix` changed and left, and which rows hurt."""

    path: str
    rows: int
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()
    fixed: str | None = None
    kept: int | None = None
    changes: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    influence: InfluenceReport | None = None

    @property
    def serious(self) -> bool:
        """Whether any problem is one that tuning must not go on with."""
        return any(problem.serious for problem in self.problems)

    def to_json(self) -> dict[str, Any]:
        """The contract of `whit check --json`: `rows` and `problems`, each with `kind`, `ids`, `lines`, `message`."""
        document: dict[str, Any] = {
            "contract": CONTRACT,
            "rows": self.rows,
            "problems": [
                {"kind": p.kind, "ids": list(p.ids), "lines": list(p.lines), "message": p.message, "serious": p.serious}
                for p in self.problems
            ],
            "notes": list(self.notes),
        }
        if self.fixed is not None:
            changes, left = list(self.changes), list(self.left)
            document["fix"] = {"path": self.fixed, "rows": self.kept, "changes": changes, "left": left}
        if self.influence is not None:
            document["influence"] = self.influence.to_json()
        return document

    def to_text(self, most: int = _SHOWN) -> str:
        """A report to read: each kind with its count and at most `most` of its problems."""
        lines = [f"{self.path}: {several(self.rows, 'row')}"]
        lines += [f"  note: {note}" for note in self.notes]
        kinds: dict[str, list[Problem]] = {}
        for problem in self.problems:
            kinds.setdefault(problem.kind, []).append(problem)
        for kind, found in kinds.items():
            rows = len({identity for problem in found for identity in problem.ids})
            mark = "!" if found[0].serious else "-"
            lines.append(f"{mark} {kind}: {KINDS[kind]} ({several(rows, 'row')})")
            lines += [f"    {problem.message}" for problem in found[:most]]
            if len(found) > most:
                lines.append(f"    … and {len(found) - most:,} more; --json lists all")
        if not kinds:
            lines.append("nothing wrong was found")
        elif not self.serious:
            lines.append("nothing serious (!) was found")
        if self.influence is not None:
            lines.append(self.influence.to_text())
        if self.fixed is not None:
            lines.append(f"{self.fixed}: {several(self.kept or 0, 'row')}, {several(len(self.changes), 'change')}")
            lines += [f"    {change}" for change in self.changes]
            lines += [f"    left as it is: {what}" for what in self.left]
        return "\n".join(lines)


def check(settings: CheckSettings, *, talk: Talk | None = None) -> CheckResult:
    """Check the rows of `settings.data`, also against other splits, and write a cleaned copy to `settings.fix`.

    With a `base` each row's length is counted in its tokens, under its chat template. Raises `DataError`
    where the file cannot be read at all, and `UsageError` where `fix` would overwrite what was read, or without
    `overwrite` a file that holds anything else.
    """
    talk = talk or Talk(quiet=True)
    require_needs(settings)
    fix = settings.fix
    for path in (settings.data, *settings.against):
        if fix is not None and Path(fix).resolve() == Path(path).resolve():
            raise UsageError(f"--fix {fix} would overwrite the data; name another file")
    if fix is not None and settings.influence and not settings.overwrite and Path(fix).exists():
        raise UsageError(f"--fix {fix} is there already; name another file, or add --overwrite")

    def reading(path: Path) -> Reading:
        # The same columns, where they were named; each file's others are found by their own names.
        return read(
            path,
            prompt_column=settings.prompt_column,
            completion_column=settings.completion_column,
            require_completion=False,
        )

    data = reading(settings.data)
    rows = list(data.rows)
    others = {str(path): reading(path) for path in settings.against}
    notes = (*data.notes, *(note for other in others.values() for note in other.notes))
    tokens, context = _counter(settings.base, rows) if settings.base else (None, None)
    problems = check_rows(
        rows,
        context_tokens=tokens,
        context=context,
        splits={name: other.rows for name, other in others.items()},
    )
    result = CheckResult(str(settings.data), len(rows), tuple(problems), notes)
    hurting: dict[str, str] = {}
    if settings.influence:
        from whit.verbs.influence import find_influence

        found = find_influence(settings, problems, talk)
        result = replace(result, influence=found)
        hurting = found.left_out
    if fix is None:
        return result
    kept, changes, left = fix_rows(rows, problems)
    changes += [f"{row.name}: removed (hurts: {hurting[row.id]})" for row in kept if row.id in hurting]
    kept = [row for row in kept if row.id not in hurting]
    write_rows(fix, kept, overwrite=settings.overwrite)
    return replace(result, fixed=str(fix), kept=len(kept), changes=tuple(changes), left=tuple(left))


def _counter(base: str, rows: list[Row]) -> tuple[Callable[[Row], int], int]:
    from whit.bases import load_base
    from whit.data.templates import encode_rows

    loaded = load_base(base)
    encoded = encode_rows(rows, loaded.template, loaded.encode, stop_id=loaded.stop_ids[0])
    lengths = {item.row.id: len(item.prompt_ids) + len(item.completion_ids) for item in encoded}
    return lambda row: lengths[row.id], loaded.context
