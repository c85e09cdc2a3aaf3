"""The teacher's part of `whit bake`: its answers, its distributions, and whether it is any better than the bare base.

What the teacher gave is kept as it comes. Knows nothing of the adapter that learns from it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from whit.data.rows import Row
from whit.data.splitting import Split
from whit.errors import DataError, UsageError
from whit.settings import BakeSettings
from whit.talk import Talk

if TYPE_CHECKING:
    from whit.evaluation.proof import Examiner
    from whit.evaluation.scoring import Scorer
    from whit.evaluation.verdict import Comparison
    from whit.training.distil import Distributions
    from whit.training.teacher import Endpoint

MOST_CUT = 0.1  # share of answers that the limit of tokens cut off, above which nothing is baked
_CHUNK = 64  # rows answered between two writes
_FIRST = 200  # rows with gold answers on which teacher and base are compared before training


def digest_of(examples: Sequence[Row]) -> str:
    """What examples are known by; "" where there are none."""
    said = [[*((turn.role, turn.content) for turn in row.turns), row.completion] for row in examples]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest() if said else ""


def open_endpoint(settings: BakeSettings, talk: Talk) -> Endpoint | None:
    """The address that is asked, if any. Raises `UsageError` for what cannot be one; nothing is sent yet."""
    from whit.training.teacher import Endpoint

    if not settings.teacher_url:
        return None
    if not settings.teacher_model:
        raise UsageError("--teacher-url needs the model to ask: add --teacher-model NAME")
    return Endpoint(
        settings.teacher_url, settings.teacher_model, key_name=settings.teacher_key,
        timeout=settings.teacher_timeout, say=talk.say,
    )  # fmt: skip


def teacher_answers(
    settings: BakeSettings,
    endpoint: Endpoint | None,
    teach: Examiner,
    guide: str,
    path: Path,
    rows: Sequence[Row],
    talk: Talk,
) -> tuple[dict[str, str], frozenset[str]]:
    """The answer of `endpoint`, or of the base, to each row, by id, and the ids of those that the limit cut off.

    Each is kept in `path` as it comes, and given once. Raises `UsageError` where too many were cut.
    """
    from whit.training.teacher import Answers

    whose = {"guide": hashlib.sha256(guide.encode()).hexdigest(), "most": teach.max_tokens,
             "url": settings.teacher_url, "model": settings.teacher_model or teach.base.fingerprint}  # fmt: skip
    if teach.examples:
        whose["examples"] = digest_of(teach.examples)
    answers = Answers(path, whose)
    known = sum(answers.get(row) is not None for row in rows)
    if known:
        talk.say(f"{known:,} of {len(rows):,} answers of the teacher are here already: {path}")
    began = time.monotonic()

    def watch(done: int) -> None:
        talk.progress("the teacher's answers", done - known, len(rows) - known, time.monotonic() - began)

    if known < len(rows):
        watch(known)
    if endpoint is not None:
        endpoint.answer_all(rows, guide, teach.max_tokens, answers, examples=teach.examples, on_done=watch)
    else:
        left = [row for row in rows if answers.get(row) is None]
        for start in range(0, len(left), _CHUNK):
            some = left[start : start + _CHUNK]
            for row, (answer, cut_off) in zip(some, _answer(teach, some), strict=True):
                answers.add(row, answer, cut=cut_off)
            watch(len(rows) - len(left) + start + len(some))
    found = {row.id: answers.get(row) or "" for row in rows}
    if len(set(found.values())) == 1:
        raise DataError(
            f"the teacher gives every input the answer {next(iter(found.values()))[:40]!r}: nothing to bake"
        )
    cut = frozenset(row.id for row in rows if answers.cut(row))
    # What the base is seen to go on with is learned by its distributions; a limit that was asked for is meant.
    if len(cut) > MOST_CUT * len(rows) and (settings.teacher_url or settings.max_tokens is None):
        raise UsageError(
            f"{len(cut):,} of {len(rows):,} answers of the teacher are cut off at {teach.max_tokens} tokens: raise "
            f"--max-tokens; the whole ones are kept in {path}, and only the others are asked for again"
        )
    return found, cut


def _answer(teach: Examiner, rows: Sequence[Row]) -> list[tuple[str, bool]]:
    """The base's own answers, each with whether the limit cut it off."""
    ended: set[int] = set()
    given = teach.answer(teach.encode(rows), on_stop=lambda at, token: ended.add(at))
    return [(answer.strip(), at not in ended) for at, answer in enumerate(given)]


def compare_first(
    examiner: Examiner, gold: Scorer | None, split: Split, answers: dict[str, str], talk: Talk
) -> Comparison | None:
    """Bare base and teacher on gold answers, before training; told where the teacher is no better."""
    from whit.evaluation.verdict import compare

    rows = [row for row in (*split.validation, *split.train) if row.completion][:_FIRST]
    if gold is None or not rows:
        talk.say("note: no gold answers in the inputs, so that the teacher itself cannot be judged")
        return None
    with talk.task(f"Is the teacher better than the bare base? {len(rows):,} rows"):
        bare = examiner.answer(examiner.encode(rows))
    before = [gold.score(answer, row) for answer, row in zip(bare, rows, strict=True)]
    after = [gold.score(answers[row.id], row) for row in rows]
    found = compare(before, after, graded=gold.graded)
    talk.say(f"teacher {100 * found.tuned:.1f}, bare base {100 * found.base:.1f} on gold answers")
    if str(found.verdict) != "helped":
        talk.say("! the teacher is not shown to be better than the bare base: there may be nothing worth baking")
    return found


def teacher_distributions(
    settings: BakeSettings, teach: Examiner, rows: Sequence[Row], state: Path, run: str, talk: Talk
) -> list[Distributions]:
    """The teacher's distributions at its own answers, kept in the run's state."""
    import torch

    from whit.training.checkpoint import load_checkpoint, save_checkpoint
    from whit.training.distil import Distributions, distributions

    path = state / "teacher.top"
    kept = load_checkpoint(path, run=run) if settings.resume else None
    if kept is not None:
        tensors, about = kept
        parts = zip(*(torch.split(tensors[name], about["sizes"]) for name in ("ids", "logs")), strict=True)
        return [Distributions(ids.long(), logs) for ids, logs in parts]
    began = time.monotonic()

    def watch(done: int) -> None:
        talk.progress("the teacher's distributions", done, len(rows), time.monotonic() - began)

    found = distributions(teach.base, teach.encode(rows, learn=True), top=settings.top, on_done=watch)
    tensors = {"ids": torch.cat([one.ids for one in found]).int(), "logs": torch.cat([one.logs for one in found])}
    save_checkpoint(path, tensors, {"run": run, "sizes": [len(one.ids) for one in found]})
    return found
