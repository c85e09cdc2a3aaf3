"""`whit train --teacher`: a small adapter learns what larger ones of the same base expect, with answers and without.

The teacher's distribution at each token of an answer is learned (see `training/distil.py`) where the answer alone would
be: it says how sure to be, and it is to be had for rows that nobody labelled. What it answers on those is taken for
their answers (of several teachers, what the first does; what they expect is the mean of all). No row of theirs that is
like a held-out one is learned from, and a teacher must not have seen those.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from whit.data.rows import Row, content_key, read
from whit.data.splitting import Split, hold_apart
from whit.errors import DataError, UsageError
from whit.settings import TrainSettings
from whit.talk import Talk, several
from whit.verbs import common

if TYPE_CHECKING:
    from whit.data.templates import Encoded
    from whit.evaluation.proof import Examiner
    from whit.evaluation.report import System
    from whit.training.distil import Distributions

NAME = "the teacher"


@dataclass(frozen=True)
class Lesson:
    """Rows to learn, and what the teacher expects at each token of their answers; `run` is what both are known by."""

    rows: list[Encoded]
    told: list[Distributions]
    run: str


def require_teachable(settings: TrainSettings) -> None:
    """Raise `UsageError` for what does not go with --teacher."""
    ways = {
        "--per": settings.per, "--reward": settings.reward, "--kind auto": settings.kind == "auto",
        "--processes": settings.processes > 1, "--fsdp": settings.fsdp, "--ray": settings.ray,
        f"--optimizer {settings.optimizer}": settings.optimizer != "adam",
    }  # fmt: skip
    given = [name for name, there in ways.items() if there]
    if settings.teacher and given:
        raise UsageError(f"--teacher does not go with {' and '.join(given)}: leave one of them out")


def lesson(settings: TrainSettings, split: Split, examiner: Examiner, encoded: Sequence[Encoded], talk: Talk) -> Lesson:
    """What the teacher expects on the training rows `encoded`, and on those of `--unlabelled`.

    Raises `AdapterError` where it is of another base, `UsageError` where it was told something else, and `DataError`
    where it learned from rows that are held out.
    """
    from whit.serving.payload import to_payload
    from whit.training.distil import distributions, mean_of

    extra = _unlabelled(settings, split, talk)
    digest, rows = hashlib.sha256(), list(encoded)
    told: list[list[Distributions]] = []
    for place, path in enumerate(settings.teacher):
        special = _teacher(path, settings, split)
        digest.update(to_payload(special.adapter))
        with common.bound_to(examiner.base, special.adapter) as bound:
            if bound.answers_only:
                raise UsageError(f"{path}: acts on answers alone, and is as small as its pupil would be; name another")
            if extra and not place:
                with talk.task(f"The teacher's answers to {several(len(extra), 'row')}"):
                    answers = examiner.answer(examiner.encode(extra), bound)
                said = [replace(row, completion=text) for row, text in zip(extra, answers, strict=True) if text.strip()]
                rows += examiner.encode(said, learn=True)
            with talk.task(f"What {path.name} expects"), bound.active():
                told.append(distributions(examiner.base, rows, same=told[0] if told else None))
    for row in rows:
        digest.update(f"\n{row.row.id}\0{row.row.prompt}\0{row.row.completion}".encode())
    return Lesson(rows, [mean_of(each) for each in zip(*told, strict=True)], digest.hexdigest())


def teacher_systems(settings: TrainSettings, examiner: Examiner, rows: Sequence[Row]) -> list[System]:
    """The teachers' answers to held-out rows."""
    found = []
    for place, path in enumerate(settings.teacher):
        special = common.open_specialist(str(path))
        with common.bound_to(examiner.base, special.adapter) as bound:
            name, note = f"teacher {place + 1}" if place else NAME, f"{special.adapter.numbers:,} numbers"
            found.append(examiner.system(name, "teacher", rows, bound=bound, note=note))
    return found


def _teacher(path: Path, settings: TrainSettings, split: Split) -> common.Specialist:
    """A teacher that was told the same, and has not seen what is held out."""
    special = common.open_specialist(str(path))
    known = special.instruction
    if known is not None and known != (settings.instruction or ""):
        raise UsageError(f"the teacher {path} was told {known!r} before every row: give the same with --instruction")
    seen = common.seen_by(special.folder)
    count = sum(common.seen_key(row) in seen for row in split.test)
    if count:
        raise DataError(
            f"the teacher {path} learned from or was chosen by {several(count, 'row')} of those held out here; split "
            "the rows as they were then (the same file and --seed), or hold others out with --test-data"
        )
    return special


def _unlabelled(settings: TrainSettings, split: Split, talk: Talk) -> list[Row]:
    """The rows of `--unlabelled`, without their answers if they have some: none like a held-out one, none known."""
    if settings.unlabelled is None:
        return []
    found = read(
        settings.unlabelled, prompt_column=settings.prompt_column, completion_column=settings.completion_column,
        require_completion=False,
    ).rows  # fmt: skip
    empty = next((row for row in found if not row.prompt.strip()), None)
    if empty is not None:
        raise DataError(f"{empty.place}: no input; fill it in, or remove such rows with `whit check --fix`")
    kept, why = hold_apart([replace(row, completion=row.id) for row in found], [*split.test, *split.validation])
    if why:
        talk.say(f"note: {why.total():,} of {several(len(found), 'unlabelled row')} are like held-out ones: left out")
    known = {content_key(row.turns) for row in split.train}
    kept = tuple(row for row in kept if content_key(row.turns) not in known)
    if not kept:
        raise DataError(f"{settings.unlabelled}: every row is like a held-out one or learned from already; give others")
    return [replace(row, id=f"unlabelled {row.id}", completion="") for row in kept]
