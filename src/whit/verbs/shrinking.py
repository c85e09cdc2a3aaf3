"""`whit train --teacher`: a small adapter learns what a larger one of the same base expects, on rows with and without
answers.

The teacher's distribution at each token of an answer is learned (see `training/distil.py`) where the answer alone would
be: it says how sure to be, and it is to be had for rows that nobody labelled. What it answers on those is taken for
their answers. No row of theirs that is like a held-out one is learned from, and the teacher must not have seen those.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    from whit.training.distil import distributions

    special = common.open_specialist(str(settings.teacher))
    known = special.instruction
    if known is not None and known != (settings.instruction or ""):
        raise UsageError(f"the teacher was told {known!r} before every row: give the same with --instruction")
    seen = common.seen_by(special.folder)
    count = sum(common.seen_key(row) in seen for row in split.test)
    if count:
        raise DataError(
            f"the teacher learned from or was chosen by {several(count, 'row')} of those held out here; split the "
            "rows as they were then (the same file and --seed), or hold others out with --test-data"
        )
    extra = _unlabelled(settings, split, talk)
    digest = hashlib.sha256(to_payload(special.adapter))
    with common.bound_to(examiner.base, special.adapter) as bound:
        if bound.answers_only:
            raise UsageError("--teacher: this adapter acts on answers alone, and is as small as its pupil would be")
        rows = list(encoded)
        if extra:
            with talk.task(f"The teacher's answers to {several(len(extra), 'row')}"):
                answers = examiner.answer(examiner.encode(extra), bound)
            answered = [replace(row, completion=said) for row, said in zip(extra, answers, strict=True) if said.strip()]
            rows += examiner.encode(answered, learn=True)
        with talk.task("What the teacher expects"), bound.active():
            told = distributions(examiner.base, rows)
    for row in rows:
        digest.update(f"\n{row.row.id}\0{row.row.prompt}\0{row.row.completion}".encode())
    return Lesson(rows, told, digest.hexdigest())


def teacher_system(settings: TrainSettings, examiner: Examiner, rows: Sequence[Row]) -> System:
    """The teacher's answers to held-out rows."""
    special = common.open_specialist(str(settings.teacher))
    with common.bound_to(examiner.base, special.adapter) as bound:
        note = f"{special.adapter.numbers:,} numbers"
        return examiner.system(NAME, "teacher", rows, bound=bound, note=note)


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
