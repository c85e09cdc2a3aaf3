"""The last part of `whit train`: baselines, held-out answers, comparison, card and report.

Every system answers the same held-out rows. The adapter is used as it was stored: rounded, and bound anew.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.errors import AdapterError, DataError
from whit.files import atomic_write
from whit.settings import BakeSettings, TrainSettings, as_plain
from whit.talk import Talk, several
from whit.verbs import common

if TYPE_CHECKING:
    from whit.data.rows import Row
    from whit.data.splitting import Split
    from whit.evaluation.card import Card
    from whit.evaluation.proof import Examiner
    from whit.evaluation.report import Extra, System
    from whit.training.loop import Trained

_OF_THE_MOMENT = ("out", "resume", "overwrite", "ray", "stop")  # options that make no other adapter
_UNSAID = ("resume", "overwrite", "ray", "stop", "teacher_key")  # options that a card's command leaves out


def prove(
    settings: TrainSettings,
    examiner: Examiner,
    split: Split,
    trained: Trained,
    seeds: dict[int, float],
    folder: Path,
    talk: Talk,
    *,
    extras: Sequence[Extra] = (),
    remarks: Sequence[str] = (),
    last: Callable[[Card, System, System], tuple[Card, Sequence[Extra]]] | None = None,
    run: str = "",
) -> Card:
    """Answer the held-out rows with every system; write card, report and answers; the card, with its `run`.

    `last` is given the card, base and adapter, and says what is to be added to card and report.
    """
    from whit.evaluation.proof import changed_nothing, forgetting
    from whit.evaluation.report import Point, Report, save_report
    from whit.evaluation.verdict import compare

    rows = split.test
    with talk.task(f"Proof on {len(rows):,} held-out rows: the base"):
        bare = examiner.system("the base", "base", rows)
    # Where no step was better than the start, the start is what was kept: nothing, and the report says so.
    with common.bound_to(examiner.base, trained.adapter, check=trained.best.step > 0) as bound:
        with talk.task("  the adapter"):
            tuned = examiner.system("the adapter", "adapter", rows, bound=bound)
        kept = forgetting(examiner.base, bound)
    others = baseline_systems(settings, examiner, split, trained, talk) if settings.baselines else []
    if trained.best.step > 0 and changed_nothing(bare, tuned) and kept.before == kept.after:
        raise AdapterError("the adapter was trained and loaded, yet changes nothing; please report this as a bug")
    graded = examiner.scorer.graded
    result = compare(bare.scores, tuned.scores, graded=graded, seed=settings.seed)
    against = {other.name: compare(other.scores, tuned.scores, graded=graded, seed=settings.seed) for other in others}
    card = _card(settings, examiner, split, trained, seeds, folder, result, against, kept, run)
    if last is not None:
        card, more = last(card, bare, tuned)
        extras = [*extras, *more]
    report = Report(
        card=card,
        rows=rows,
        base=bare,
        tuned=tuned,
        others=others,
        curve=[Point(p.step, None if p.loss != p.loss else p.loss, p.score) for p in trained.curve],
        best_step=trained.best.step,
        remarks=[*_remarks(trained, seeds), *remarks],
        extras=extras,
    )
    save_report(report, folder / common.REPORT_NAME)
    write_answers(folder / common.HELD_OUT_NAME, rows, bare, tuned)
    from whit.evaluation.card import model_card, save_card

    save_card(card, folder / common.CARD_NAME)
    atomic_write(folder / "README.md", model_card(card))
    return card


def baseline_systems(
    settings: TrainSettings, examiner: Examiner, split: Split, trained: Trained, talk: Talk
) -> list[System]:
    """The teachers if there are any, few-shot (count chosen on validation), a null adapter, and what needs no model.

    That is a linear classifier where answers are a closed set; elsewhere the commonest answer, if one is common.
    """
    from whit.evaluation.baselines import CONSTANT, NAME, TextBaseline, commonest, why_not
    from whit.evaluation.figures import shorten
    from whit.evaluation.proof import best_shots, null_adapter

    found: list[System] = []
    if settings.teacher:
        from whit.verbs.shrinking import teacher_systems

        with talk.task(f"  {several(len(settings.teacher), 'teacher')}"):
            found += teacher_systems(settings, examiner, split.test)
    if settings.shots:
        validation = split.validation[: min(100, settings.validation_rows)]
        with talk.task("  the base with few-shot examples"):
            count, examples, _ = best_shots(examiner, split.train, validation, settings.shots, seed=settings.seed)
            if count:
                try:
                    found.append(
                        examiner.system(
                            f"{count}-shot", "few-shot", split.test, examples=examples, note="chosen on validation"
                        )
                    )
                except DataError:
                    talk.say(f"  {count}-shot prompts do not fit the context of every held-out row; left out")
    with (
        talk.task("  a null adapter"),
        common.bound_to(examiner.base, null_adapter(trained.adapter, seed=settings.seed), check=False) as null,
    ):
        found.append(examiner.system("null adapter", "null", split.test, bound=null, note="same shape, random numbers"))
    reason = why_not(split.train, examiner.scorer.name)
    if reason is None:
        with talk.task(f"  {NAME}"):
            answers = TextBaseline(examiner.scorer.name, seed=settings.seed).fit(split.train).predict(split.test)
            found.append(examiner.judge(NAME, "small", split.test, answers, note="no language model"))
    else:
        talk.say(f"  no {NAME} baseline: {reason}")
        answer = commonest(split.train)
        if answer is not None:
            answers = [answer] * len(split.test)
            found.append(examiner.judge(CONSTANT, "constant", split.test, answers, note=f"“{shorten(answer, 40)}”"))
    return found


def write_answers(path: Path, rows: Sequence[Row], bare: System, tuned: System) -> None:
    """What both systems answered, row by row, for `whit compare`."""
    lines = [
        json.dumps(
            {
                "id": row.id,
                "prompt": row.prompt,
                "completion": row.completion,
                "base": bare.answers[at],
                "tuned": tuned.answers[at],
                "base_score": bare.scores[at].value,
                "tuned_score": tuned.scores[at].value,
            },
            ensure_ascii=False,
        )
        for at, row in enumerate(rows)
    ]
    atomic_write(path, "\n".join(lines) + "\n")


def versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    from importlib.metadata import version

    names = ("whit", "torch", "transformers", "peft")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _card(
    settings: TrainSettings,
    examiner: Examiner,
    split: Split,
    trained: Trained,
    seeds: dict[int, float],
    folder: Path,
    result: Any,
    against: dict[str, Any],
    kept: Any,
    run: str,
) -> Card:
    import torch

    from whit.evaluation.card import Card, Cost, Data

    base, adapter = examiner.base, trained.adapter
    everything = len(split.train) + len(split.validation) + len(split.test)
    return Card(
        name=folder.resolve().name,
        kind=adapter.kind,
        numbers=adapter.numbers,
        base=settings.base,
        base_fingerprint=base.fingerprint,
        data=Data(
            name=settings.data.name,
            sha256=digest_of(split),
            rows=everything,
            train=len(split.train),
            validation=len(split.validation),
            test=len(split.test),
            split_seed=settings.seed,
        ),
        basis=adapter.basis,
        base_licence=base.licence,
        base_parameters=base.parameters,
        payload_bytes=adapter.payload_bytes,
        file_bytes=common.file_bytes(adapter, folder),
        instruction=settings.instruction or "",
        scorer=examiner.scorer.state,
        settings={**_published(settings), "max_tokens": examiner.max_tokens, "dtype": base.dtype},
        seeds=tuple(seeds),
        result=result,
        baselines=against,
        forgetting=kept,
        cost=Cost(
            seconds=trained.seconds,
            steps=trained.steps,
            rows_seen=trained.steps * (settings.batch or 1),
            tokens=trained.tokens,
            device=str(base.model.device),
            threads=torch.get_num_threads(),
        ),
        versions=versions(),
        command=command_of(settings),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        run=run,
    )


def digest_of(split: Split) -> str:
    """SHA-256 of the rows, answers included, by which a card knows them."""
    digest = hashlib.sha256()
    for row in (*split.train, *split.validation, *split.test):
        digest.update(f"{row.id}\0{row.prompt}\0{row.completion}\n".encode())
    return digest.hexdigest()


def _published(settings: TrainSettings) -> dict[str, Any]:
    """The settings for a card: the same wherever the files lay, and however often the run was resumed."""
    plain = {key: value for key, value in as_plain(settings).items() if key not in _OF_THE_MOMENT}
    plain["data"] = settings.data.name
    plain["teacher"] = [path.name for path in settings.teacher]
    plain["unlabelled"] = settings.unlabelled.name if settings.unlabelled else None
    plain["test_data"] = settings.test_data.name if settings.test_data else None
    return plain


def command_of(settings: TrainSettings | BakeSettings, verb: str = "train") -> str:
    """The command line that gives these settings; file names without their folders."""
    from dataclasses import fields

    given = [(part, getattr(settings, part.name)) for part in fields(settings)]
    parts = ["whit", verb, *(value.name for part, value in given if part.metadata["positional"])]
    for part, value in given:
        if part.metadata["positional"] or part.name in _UNSAID or value == part.default:
            continue
        flag = f"--{part.name.replace('_', '-')}"
        if isinstance(value, bool):
            parts.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, tuple):
            for item in value:
                parts += [flag, item.resolve().name if isinstance(item, Path) else str(item)]
        else:
            name = value.resolve().name if isinstance(value, Path) else str(value)  # a folder may be given as .
            parts += [f"{flag}={name}"] if name.startswith("-") else [flag, name]
    return shlex.join(parts)


def _remarks(trained: Trained, seeds: dict[int, float]) -> list[str]:
    said = []
    if trained.best.step == 0:
        said.append("No step of training scored better on validation than the untrained start, which is what was kept.")
    if len(seeds) > 1:
        low, high = min(seeds.values()), max(seeds.values())
        kept = "the mean of their adapters" if trained.mean_of > 1 else "the best"
        said.append(
            f"{len(seeds)} seeds scored from {100 * low:.1f} to {100 * high:.1f} on validation; {kept} was kept."
        )
    scores = [point.score for point in trained.curve]
    if trained.curve[-1].step > trained.best.step and scores[-1] < trained.best.score - 0.02:
        said.append("Validation fell after the best step: more training over-fits; an earlier state was kept.")
    return said
