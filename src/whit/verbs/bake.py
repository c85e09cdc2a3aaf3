"""`whit bake`: an adapter in the place of a long standing instruction.

The teacher is the base with the instruction, or any model behind an OpenAI-compatible address; the student is the base
without it, and an adapter. Gold answers in the inputs, where they are, are used to judge and never to learn from. A
teacher that is no better than the bare base is said before training. The verdict is on inputs that training never
saw: does the adapter answer as the teacher does, more often than the bare base?
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from whit.data.rows import Row, read
from whit.data.splitting import Split, split_rows
from whit.errors import DataError, UsageError
from whit.settings import BakeSettings, TrainSettings
from whit.talk import Talk
from whit.verbs import common, runs
from whit.verbs.baked import BakeResult, report_on, tokens_before
from whit.verbs.needs import require_needs
from whit.verbs.teaching import compare_first, digest_of, open_endpoint, teacher_answers, teacher_distributions
from whit.verbs.train import announce, plan_of, require_memory, shape_of

if TYPE_CHECKING:
    from whit.adapters.tunable import Bound
    from whit.bases import Base
    from whit.data.templates import Encoded
    from whit.evaluation.proof import Examiner
    from whit.evaluation.scoring import Scorer
    from whit.training.distil import Distributions
    from whit.training.loop import Trained
    from whit.training.sft import Plan

ANSWERS_NAME = "teacher.jsonl"
_LARGEST_GUIDE = 1_000_000  # bytes


def bake(settings: BakeSettings, *, talk: Talk | None = None) -> BakeResult:
    """Bake the instruction in `settings.guide` into an adapter; see `BakeSettings` for the options.

    Raises `UsageError`, `DataError`, `BaseError`, `TrainingError` (a teacher that fails: its answers so far are kept),
    or `Interrupted` (its state saved).
    """
    talk = talk or Talk(quiet=True)
    common.require_finite(settings)
    require_needs(settings)
    settings = common.quantised(settings)
    guide, examples = read_guide(settings.guide), read_examples(settings)
    endpoint = open_endpoint(settings, talk)
    plain = as_training(settings)
    start = runs.start(plain, talk, split=lambda plain, talk: read_inputs(settings, plain, talk))
    plain = start.settings
    before = tokens_before(guide, examples, start.base)
    _require_fits(settings, before, start.base)
    run = hashlib.sha256(
        f"{start.run}\0{guide}\0{settings.teacher_url}\0{settings.teacher_model}\0{settings.top}".encode()
    )
    run.update(digest_of(examples).encode())
    start = replace(start, run=run.hexdigest())
    runs.make_folder(start.state)
    start.introduce(talk)

    from whit.evaluation.proof import Examiner, longest_answer
    from whit.training.memory import checkpointed

    gold_split = start.split
    gold = _gold_scorer(settings, gold_split)
    with_gold = [row for row in (*gold_split.train, *gold_split.validation) if row.completion]
    most = settings.max_tokens or (longest_answer(with_gold, start.base) if with_gold else 128)
    teach = Examiner(start.base, gold, guide, most, examples)  # type: ignore[arg-type]  # without gold it only answers
    name = (
        f"{settings.teacher_model} at {settings.teacher_url}" if settings.teacher_url else f"{start.base.name} with it"
    )
    what = "an instruction" + (f" and {len(examples)} examples" if examples else "")
    talk.say(f"teacher  {name}: {what} of {before:,} tokens")

    everything = [*gold_split.validation, *gold_split.train, *gold_split.test]
    answers, cut = teacher_answers(settings, endpoint, teach, guide, start.folder / ANSWERS_NAME, everything, talk)
    taught = Split(*(
        tuple(replace(row, completion=answers[row.id]) for row in part)
        for part in (gold_split.train, gold_split.validation, gold_split.test)
    ))  # fmt: skip
    if settings.teacher_url:  # of which only the text is known, and its end would be learned
        taught = replace(taught, train=tuple(row for row in taught.train if row.id not in cut))
    own = ":" in settings.score
    if own:
        use = "judges gold answers alone" if gold else "judges nothing, for there are no gold answers"
        talk.say(f"note: {settings.score} {use}; the teacher is agreed with where an answer is exactly its own")
    examiner = Examiner(start.base, _agreement(gold, taught, settings), settings.instruction, most)
    first = compare_first(examiner, gold, gold_split, answers, talk)
    encoded = examiner.encode(taught.train, learn=True)
    fresh, numbers, kind, payload = shape_of(plain, start.base)
    plan = plan_of(plain, kind, start.base, len(encoded), start.run, start.state)
    start.size(talk, kind, numbers, payload)
    told = None
    if not settings.teacher_url:
        told = teacher_distributions(settings, teach, taught.train, start.state, start.run, talk)
    require_memory(plain, start.base, encoded, plan, numbers, talk)
    announce(talk, plain, start.base, examiner, plan, encoded)
    with checkpointed(start.base, settings.checkpointing):
        trained, seeds = _train(plain, examiner, fresh, encoded, told, taught, plan, talk)
    start = replace(start, split=taught)
    remarks = [f"Baked from {what} of {before:,} tokens; agreement is with {name}{', exactly' * own}."]
    if cut:
        left = ", and are not learned from" if settings.teacher_url else ""
        remarks.append(f"{len(cut):,} of {len(answers):,} answers of the teacher were cut off at {most} tokens{left}.")
    return report_on(
        settings, start, trained, seeds, teach, examiner, gold, gold_split, answers, cut, first, name, remarks, talk
    )  # fmt: skip


def read_guide(path: Path) -> str:
    """The instruction. Raises `DataError` where there is none to read."""
    try:
        if path.stat().st_size > _LARGEST_GUIDE:
            raise DataError(f"{path}: {path.stat().st_size:,} bytes are no instruction; give a shorter text")
        text = path.read_text("utf-8").strip()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not text in UTF-8 ({error.reason})") from error
    if not text:
        raise DataError(f"{path}: is empty; give the instruction that stands before every request")
    return text


def read_examples(settings: BakeSettings) -> tuple[Row, ...]:
    """The rows that stand before every input, with their answers. Raises `DataError`."""
    if settings.examples is None:
        return ()
    found = read(
        settings.examples, prompt_column=settings.prompt_column, completion_column=settings.completion_column
    ).rows
    return tuple(found)


def as_training(settings: BakeSettings) -> TrainSettings:
    """The settings of the training that baking is."""
    own = {part.name for part in fields(TrainSettings)}
    given = {part.name: getattr(settings, part.name) for part in fields(settings) if part.name in own}
    out = settings.out or Path(settings.guide.stem)
    return TrainSettings(**{**given, "data": settings.inputs, "out": out, "shots": (), "baselines": True})


def read_inputs(settings: BakeSettings, plain: TrainSettings, talk: Talk) -> Split:
    """The inputs, split; answers are kept where the file has them. Raises `DataError`."""
    reading = read(
        settings.inputs,
        prompt_column=settings.prompt_column,
        completion_column=settings.completion_column,
        limit=settings.limit,
        require_completion=False,
    )
    for note in reading.notes:
        talk.say(f"note: {note}")
    empty = next((row for row in reading.rows if not row.prompt.strip()), None)
    if empty is not None:
        raise DataError(f"{empty.place}: no input; fill it in, or remove such rows with `whit check --fix`")
    gold = {row.id: row.completion for row in reading.rows}
    # Splitting wants answers that differ; inputs may come without any.
    stand_in = [replace(row, completion=row.id) for row in reading.rows]
    if settings.test_data is not None:
        held = read(
            settings.test_data,
            prompt_column=settings.prompt_column,
            completion_column=settings.completion_column,
            require_completion=False,
        ).rows
        others = runs.without_held_out(stand_in, held, plain, talk)
        kept = split_rows(others, validation=plain.validation, test=0.0, seed=plain.seed)
        # Ids are a file's own: a row of the other file may have the same.
        held = tuple(replace(row, id=f"held out {row.id}") if row.id in gold else row for row in held)
        gold |= {row.id: row.completion for row in held}
        parts: tuple[Sequence[Row], ...] = (kept.train, kept.validation, held)
    else:
        split = split_rows(stand_in, validation=plain.validation, test=plain.test, seed=plain.seed)
        parts = (split.train, split.validation, split.test)
    if not all(parts):
        raise DataError(
            "after splitting there is nothing to learn from, to choose by or to prove with; give more inputs"
        )
    return Split(*(tuple(replace(row, completion=gold[row.id]) for row in part) for part in parts))


def _gold_scorer(settings: BakeSettings, split: Split) -> Scorer | None:
    from whit.evaluation.scoring import make_scorer

    rows = [row for row in split.train if row.completion]
    everyone = all(row.completion for row in (*split.validation, *split.test))
    return make_scorer(settings.score, rows) if rows and everyone else None


def _agreement(gold: Scorer | None, taught: Split, settings: BakeSettings) -> Scorer:
    """What decides whether two answers are the same: the labels' own reader, else what suits all the answers.

    A function of the user's judges an answer, perhaps without looking at another: it cannot say whether two agree.
    """
    from whit.evaluation.scoring import make_scorer

    if gold is not None and gold.labels:
        return gold
    return make_scorer(
        settings.score if ":" not in settings.score else "exact", [*taught.train, *taught.validation, *taught.test]
    )


def _require_fits(settings: BakeSettings, tokens: int, base: Base) -> None:
    if settings.teacher_url is None and tokens + 8 >= base.context:
        raise UsageError(
            f"{settings.guide}: {tokens:,} tokens leave no room in {base.name}'s context of {base.context:,}; shorten "
            "it, or let another model read it with --teacher-url"
        )


def _train(
    plain: TrainSettings,
    examiner: Examiner,
    fresh: Callable[[int], Bound],
    encoded: Sequence[Encoded],
    told: Sequence[Distributions] | None,
    split: Split,
    plan: Plan,
    talk: Talk,
) -> tuple[Trained, dict[int, float]]:
    from whit.training.distil import distil
    from whit.training.sft import Progress, train

    validation = list(split.validation[: plain.validation_rows])
    choosing = examiner.encode(validation)

    def score(bound: Bound) -> float:
        found = examiner.score(examiner.answer(choosing, bound), validation)
        return sum(item.value for item in found) / len(found)

    def one(bound: Bound, plan: Plan, name: str) -> Trained:
        def watch(progress: Progress) -> None:
            held = "" if progress.score is None else f"  agreement {100 * progress.score:.1f}"
            talk.progress(name, progress.step, progress.steps, progress.seconds, f"loss {progress.loss:.3f}{held}")

        if told is None:
            return train(examiner.base, bound, encoded, plan, lambda: score(bound), watch=watch)
        return distil(examiner.base, bound, encoded, told, plan, lambda: score(bound), watch=watch)

    def keep(every: Sequence[Trained]) -> Trained:
        return runs.best_or_mean(every, lambda: fresh(plain.seed), score, talk)

    return runs.best_of_seeds(plain, plan, fresh, one, lambda trained: trained, talk, keep=keep)
