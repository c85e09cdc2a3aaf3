"""One variant of a sweep: trained on a share of the steps, scored on the validation rows; and the proof of the winner.

The same functions run here and in a worker of a cluster. A trial leaves a folder with its adapter and `trial.json`;
it sees no held-out row, since what is chosen by a score must be proved on rows that the choice never saw.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.errors import ClusterError
from whit.files import atomic_write
from whit.settings import TrainSettings
from whit.talk import Talk, clock
from whit.verbs import common, runs
from whit.verbs import train as supervised

if TYPE_CHECKING:
    from whit.bases import Base
    from whit.evaluation.card import Card
    from whit.evaluation.report import Extra
    from whit.evaluation.scoring import Score
    from whit.training.loop import Trained

TRIAL_NAME = "trial.json"
_held: dict[str, Base] = {}  # the base of the last trial in this process: most variants share it


@dataclass(frozen=True)
class Trial:
    """What came of a variant: its adapter's size, the score of every validation row, and what training it took.

    `share` of the steps were taken, in `seconds`. `training` is what the proof needs to know of it, as plain values.
    """

    name: str
    share: float
    kind: str
    numbers: int
    payload: int
    values: tuple[float, ...]
    valid: tuple[bool, ...]
    seconds: float
    training: Mapping[str, Any]

    @property
    def score(self) -> float:
        """Mean score on validation."""
        return sum(self.values) / len(self.values)

    @property
    def scores(self) -> list[Score]:
        """The score of every validation row."""
        from whit.evaluation.scoring import Score

        return [Score(value, valid) for value, valid in zip(self.values, self.valid, strict=True)]

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the score (Wilson)."""
        from whit.evaluation.statistics import wilson_interval

        return wilson_interval(sum(self.values), len(self.values))

    @classmethod
    def from_json(cls, text: str) -> Trial:
        """What `to_json` wrote. Raises `ClusterError` where it is none."""
        try:
            given = json.loads(text)
            values = tuple(float(value) for value in given.pop("values"))
            return cls(values=values, valid=tuple(map(bool, given.pop("valid"))), **given)
        except (ValueError, KeyError, TypeError) as error:
            raise ClusterError(
                f"{TRIAL_NAME}: cannot be read ({error}); remove it and try the variant again"
            ) from error

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), allow_nan=False)


def try_variant(name: str, settings: TrainSettings, share: float, talk: Talk) -> Trial:
    """Train a variant into `settings.out` on a share of its steps, and score it. Raises what `train` raises."""
    common.require_finite(settings)
    start = _start(settings, talk)
    base, split = start.base, start.split
    settings = supervised.with_kind(settings, base, split.train, Talk(quiet=True))
    examiner, encoded = supervised.examine(settings, split, base)
    choose = supervised.choosing(settings, start, encoded, talk)
    fresh, numbers, kind, payload = supervised.shape_of(settings, base, choose)
    whole = supervised.plan_of(settings, kind, start.base, len(encoded), f"{start.run}#{share}", start.state)
    plan = replace(whole, epochs=whole.epochs * share, checkpoint=start.state / f"{round(100 * share)}.safetensors")
    runs.make_folder(start.state)
    supervised.require_memory(settings, base, encoded, plan, numbers, Talk(quiet=True))

    from whit.training.memory import checkpointed

    with checkpointed(base, settings.checkpointing):
        trained, seeds = supervised.train_seeds(settings, examiner, fresh, encoded, split, plan, talk)
    validation = list(split.validation[: settings.validation_rows])
    with common.bound_to(base, trained.adapter, check=False) as bound:
        scores = examiner.score(examiner.answer(examiner.encode(validation), bound), validation)
    about = {
        "curve": [_plain(point) for point in trained.curve], "best": _plain(trained.best), "steps": trained.steps,
        "seconds": trained.seconds, "tokens": trained.tokens, "stopped_early": trained.stopped_early,
        "seeds": {str(seed): score for seed, score in seeds.items()},
        "epochs": share * supervised.epochs_of(settings, start.base, len(encoded)),
    }  # fmt: skip
    trial = Trial(
        name, share, kind, numbers, trained.adapter.payload_bytes or payload,
        tuple(score.value for score in scores), tuple(score.valid for score in scores), trained.seconds, about,
    )  # fmt: skip
    trained.adapter.save(start.folder)
    runs.remove_other_kind(start.folder, trained.adapter)
    atomic_write(start.folder / TRIAL_NAME, trial.to_json())
    for leftover in start.state.glob("*"):
        leftover.unlink()
    start.state.rmdir()
    return trial


def prove_winner(
    settings: TrainSettings, winner: Path, trial: Trial, extras: Sequence[Extra], remarks: Sequence[str], talk: Talk
) -> Card:
    """Prove the adapter in the folder `winner` into `settings.out`, on the rows that the sweep never saw."""
    start = _start(settings, talk)
    examiner, _ = supervised.examine(settings, start.split, start.base)
    runs.make_folder(start.state)
    trained, seeds = _trained(winner, trial)
    spent = replace(settings, epochs=float(trial.training["epochs"]), kind=settings.kind or trial.kind)
    return start.end(examiner, trained, seeds, talk, settings=spent, extras=extras, remarks=remarks)


def figure(trials: Sequence[Trial], winner: Trial) -> Extra:
    """The section of the report: score against bytes."""
    from whit.evaluation.figures import sizes
    from whit.evaluation.report import Extra

    drawn = sizes(
        [(trial.payload, trial.score, *trial.interval) for trial in trials], kept=winner.payload, line=False
    )  # fmt: skip
    words = (
        f"{winner.name} scored best of {len(trials)} variants on {len(winner.values)} validation rows, which chose it; "
        "intervals are of 95 %. The verdict above is on rows that the sweep never saw. "
        + "; ".join(
            f"{trial.name}: {100 * trial.score:.1f} with {trial.payload:,} bytes, {100 * trial.share:.0f} % of the "
            f"steps in {clock(trial.seconds)}"
            for trial in sorted(trials, key=lambda trial: -trial.score)
        )
        + "."
    )
    return Extra("The variants", words, [("Validation score against bytes", drawn)] if drawn else [])


# -- in a worker of the cluster


def trial_here(job: Mapping[str, Any], talk: Talk) -> dict[str, Any]:
    """`try_variant`, in a worker; the trial comes back as the answer."""
    from whit.verbs.remote import settings_of

    settings = settings_of(job, talk)
    return {"trial": try_variant(str(job["name"]), settings, float(job["share"]), talk).to_json()}


def prove_here(job: Mapping[str, Any], talk: Talk) -> dict[str, Any]:
    """`prove_winner`, in a worker."""
    from whit.verbs.remote import settings_of

    settings = settings_of(job, talk)
    trials = [Trial.from_json(text) for text in job["trials"]]
    winner = next(trial for trial in trials if trial.name == job["name"])
    card = prove_winner(settings, Path("winner"), winner, [figure(trials, winner)], job["remarks"], talk)
    return {"verdict": card.verdict}


# -- within


def _start(settings: TrainSettings, talk: Talk) -> runs.Start:
    """As `runs.start`, always to be gone on with; the base is kept for the next trial of this process."""
    settings = common.quantised(settings)
    folder = runs.out_folder(settings)
    split = runs.read_and_split(settings, Talk(quiet=True))
    common.use_threads(settings.threads)
    key = f"{settings.base}\0{settings.dtype}\0{settings.device}\0{_content(settings.base)}"
    if key not in _held:
        _held.clear()
        _held[key] = common.open_base(
            settings.base, dtype=settings.dtype, device=settings.device, threads=settings.threads, talk=talk
        )
    base = _held[key]
    run = runs.run_key(settings, split, base)
    state = runs.state_folder(folder, replace(settings, resume=True), run)
    return runs.Start(settings, folder, split, base, run, state)


def _content(name: str) -> str:
    """What changes when the base of that name does: the files that it really is, their sizes and times."""
    from whit.bases.names import resolve
    from whit.bases.quantize import split_name

    path = resolve(split_name(name)[0]).path
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    return repr([(str(each.resolve()), each.stat().st_size, each.stat().st_mtime_ns) for each in files])


def _plain(point: Any) -> dict[str, Any]:
    """A point of the curve; where nothing was learned yet the loss is None, for JSON has no NaN."""
    return {**vars(point), "loss": point.loss if point.loss == point.loss else None}


def _trained(folder: Path, trial: Trial) -> tuple[Trained, dict[int, float]]:
    """What training gave, read back."""
    from whit.adapters.adapter import Adapter
    from whit.training.loop import Point, Trained

    def point(plain: Mapping[str, Any]) -> Point:
        return Point(**{**plain, "loss": float("nan") if plain["loss"] is None else plain["loss"]})

    about = trial.training
    trained = Trained(
        adapter=Adapter.load(folder), curve=tuple(map(point, about["curve"])), best=point(about["best"]),
        steps=about["steps"], seconds=about["seconds"], tokens=about["tokens"], stopped_early=about["stopped_early"],
    )  # fmt: skip
    return trained, {int(seed): score for seed, score in about["seeds"].items()}
