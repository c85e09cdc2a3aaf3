"""`whit train --kind auto`: a ladder of sizes, and the smallest that is not separably worse than the best.

Successive halving: every size is trained on a quarter of the steps, the better half on a half of them, the best two on
all. Sizes are compared on the validation rows, pair by pair (`whit.evaluation.verdict`); of those that are not
separably worse than the best the smallest is kept, as it was trained. The verdict is on the held-out rows, which the
ladder never saw. Works from answers and by reward.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from whit.errors import UsageError
from whit.settings import BY_REWARD, TrainSettings
from whit.talk import Talk, clock
from whit.verbs import common, runs
from whit.verbs import reward as by_reward
from whit.verbs import train as supervised
from whit.verbs.needs import fitted, require_needs

if TYPE_CHECKING:
    from whit.bases import Base
    from whit.evaluation.proof import Examiner
    from whit.evaluation.report import Extra
    from whit.evaluation.scoring import Score, Scorer
    from whit.rewards import Reward
    from whit.training.loop import Trained

#: Kind, and numbers (tiny) or rank (xs, lora), the smallest first.
LADDER = (("tiny", 13), ("tiny", 52), ("tiny", 210), ("xs", 2), ("xs", 4), ("lora", 1), ("lora", 8))
SHARES = (0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Rung:
    """A size as it was last trained: its settings, what came of it, and its scores on the validation rows."""

    name: str
    settings: TrainSettings
    numbers: int
    payload: int
    share: float
    trained: Trained
    seeds: dict[int, float]
    scores: Sequence[Score]
    seconds: float

    @property
    def score(self) -> float:
        """Mean score on validation."""
        return sum(each.value for each in self.scores) / len(self.scores)


@dataclass(frozen=True)
class AutoResult(supervised.TrainResult):
    """What `train --kind auto` made; `ladder` has every size, the smallest first."""

    ladder: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """The contract of `whit train --json`, and `ladder`."""
        return {**super().to_json(), "ladder": self.ladder}

    def to_text(self) -> str:
        """The sizes, then what `train` says."""
        lines = [f"{'size':<10} {'numbers':>10} {'bytes':>10} {'validation':>10}  trained"]
        for rung in self.ladder:
            mark = "  <- kept" if rung["kept"] else ""
            lines.append(
                f"{rung['name']:<10} {rung['numbers']:>10,} {rung['payload_bytes']:>10,} {100 * rung['score']:>10.1f}  "
                f"{100 * rung['share']:.0f} %, {clock(rung['seconds'])}{mark}"
            )
        return "\n".join(lines) + f"\n\n{super().to_text()}"


def train_auto(settings: TrainSettings, *, talk: Talk | None = None) -> AutoResult:
    """Train the ladder, keep the smallest that does the job, and prove it."""
    talk = talk or Talk(quiet=True)
    _refuse(settings)
    settings = by_reward.prepared(settings) if settings.reward else settings
    supervised.require_shape(settings)
    with contextlib.ExitStack() as stack:
        split = (by_reward.split_of if settings.reward else runs.read_and_split)(settings, talk)
        judges = by_reward.judges(settings, split) if settings.reward else None
        if judges is not None:
            stack.callback(judges[0].close)
        start = runs.start(settings, talk, split=lambda *_: split)
        settings = start.settings
        runs.make_folder(start.state)
        trainer = _Trainer(start, judges, talk)
        sizes = _sizes(settings, start.base)
        trainer.require_memory(sizes[-1][1])
        rungs = climb(trainer, sizes, talk)
        best, kept = choose(rungs)
        remarks = remarks_on(rungs, best, kept)
        card = start.end(
            trainer.examiner, kept.trained, kept.seeds, talk,
            settings=kept.settings, extras=[figure(rungs, kept)], remarks=remarks,
        )  # fmt: skip
    return AutoResult(start.folder, card, kept.trained.adapter, [_plain(rung, kept) for rung in rungs])


def climb(trainer: _Trainer, sizes: Sequence[tuple[str, TrainSettings]], talk: Talk) -> list[Rung]:
    """Successive halving over the sizes; each as it was last trained, the smallest first."""
    found: dict[str, Rung] = {}
    alive = list(sizes)
    for turn, share in enumerate(SHARES):
        talk.say(f"ladder   {100 * share:.0f} % of the steps: {', '.join(name for name, _ in alive)}")
        for name, settings in alive:
            found[name] = rung = trainer.train(name, settings, share)
            talk.say(f"  {name}: {100 * rung.score:.1f} on {len(rung.scores)} validation rows ({clock(rung.seconds)})")
        if turn + 1 < len(SHARES):
            # Among equals the smaller goes on.
            order = sorted(alive, key=lambda each: (-found[each[0]].score, found[each[0]].payload))
            going = {name for name, _ in order[: max(2, (len(alive) + 1) // 2)]}
            alive = [each for each in alive if each[0] in going]
    return sorted(found.values(), key=lambda rung: rung.payload)


def choose(rungs: Sequence[Rung]) -> tuple[Rung, Rung]:
    """The rung that scores best, and the smallest that is not separably worse than it."""
    from whit.evaluation.verdict import Verdict, compare

    best = max(rungs, key=lambda rung: (rung.score, -rung.payload))
    for rung in sorted(rungs, key=lambda rung: rung.payload):
        if rung is best or compare(best.scores, rung.scores).verdict is not Verdict.HARMED:
            return best, rung
    return best, best


def remarks_on(rungs: Sequence[Rung], best: Rung, kept: Rung) -> list[str]:
    """What the choice rests on, and whether size was gained without score."""
    from whit.evaluation.verdict import Verdict, compare

    said = []
    rows = len(best.scores)
    if kept is not best:
        least = compare(best.scores, kept.scores).smallest_detectable
        resolution = "" if least is None else f"; a difference under {100 * least:.1f} points could not have shown"
        said.append(
            f"{best.name} scored best on {rows} validation rows ({100 * best.score:.1f}); {kept.name} "
            f"({100 * kept.score:.1f}) is the smallest that is not separably worse{resolution}."
        )
    larger = [rung for rung in rungs if rung.payload > best.payload]
    if larger and all(rung.score <= best.score for rung in larger):
        said.append(f"Beyond {best.name} more numbers gained nothing on validation: larger sizes over-fit these rows.")
    worse = [rung for rung in larger if compare(best.scores, rung.scores).verdict is Verdict.HARMED]
    if worse:
        said.append(f"Separably worse for being larger: {', '.join(rung.name for rung in worse)}.")
    return said


def figure(rungs: Sequence[Rung], kept: Rung) -> Extra:
    """The section of the report: score against bytes."""
    from whit.evaluation.figures import sizes
    from whit.evaluation.report import Extra
    from whit.evaluation.statistics import wilson_interval

    found = [(rung.payload, rung.score, *wilson_interval(rung.score * len(rung.scores), len(rung.scores)))
             for rung in rungs]  # fmt: skip
    drawn = sizes(found, kept=kept.payload)
    words = (
        f"{kept.name} was kept: the smallest that is not separably worse than the best. Scores are those on "
        f"{len(kept.scores)} validation rows with 95 % intervals; the verdict above is on rows that the ladder never "
        "saw. " + "; ".join(f"{rung.name} took {clock(rung.seconds)}" for rung in rungs) + "."
    )
    return Extra("The ladder of sizes", words, [("Validation score against bytes", drawn)] if drawn else [])


class _Trainer:
    """Trains one size after another on the same rows, with the same examiner."""

    def __init__(self, start: runs.Start, judges: tuple[Reward, Scorer] | None, talk: Talk) -> None:
        self.split, self.base, self.run, self.state, self.talk = start.split, start.base, start.run, start.state, talk
        self.reward: Any = None
        self.examiner: Examiner
        if judges is not None:
            self.reward, scorer = judges
            self.examiner, self.encoded = by_reward.examine(start.settings, self.split, self.base, scorer)
        else:
            self.examiner, self.encoded = supervised.examine(start.settings, self.split, self.base)

    def train(self, name: str, settings: TrainSettings, share: float) -> Rung:
        """One size, on a share of the steps. Its checkpoint stays, so that a resumed ladder passes it at once."""
        fresh, numbers, kind, payload = supervised.shape_of(settings, self.base)
        run, rows = f"{self.run}#{name}#{share}", len(self.encoded)
        checkpoint = self.state / f"{name.replace(' ', '-')}-{round(100 * share)}.safetensors"
        if settings.reward:
            whole = by_reward.plan_of(settings, kind, self.base, rows, self.examiner.max_tokens, run, self.state)
            plan = replace(whole, steps=max(1, round(whole.steps * share)), checkpoint=checkpoint)
            found, seeds = by_reward.train_seeds(
                settings, self.examiner, self.reward, fresh, self.encoded, self.split, plan, self.talk
            )
            trained = found.trained
        else:
            supervised_plan = supervised.plan_of(settings, kind, self.base, rows, run, self.state)
            short = replace(supervised_plan, epochs=supervised_plan.epochs * share, checkpoint=checkpoint)
            trained, seeds = supervised.train_seeds(
                settings, self.examiner, fresh, self.encoded, self.split, short, self.talk
            )
        validation = list(self.split.validation[: settings.validation_rows])
        with common.bound_to(self.base, trained.adapter, check=False) as bound:
            scores = self.examiner.score(self.examiner.answer(self.examiner.encode(validation), bound), validation)
        reward = settings.reward
        epochs = by_reward.epochs_of(settings, rows) if reward else supervised.epochs_of(settings, self.base, rows)
        spent = replace(settings, epochs=share * epochs)
        return Rung(name, spent, numbers, payload, share, trained, seeds, scores, trained.seconds)

    def require_memory(self, settings: TrainSettings) -> None:
        """Say what a step takes for these settings. Raises `UsageError` where that is more than is free."""
        _, numbers, kind, _ = supervised.shape_of(settings, self.base)
        rows = len(self.encoded)
        if settings.reward:
            plan = by_reward.plan_of(settings, kind, self.base, rows, self.examiner.max_tokens, self.run, self.state)
            by_reward.require_memory(self.base, self.encoded, plan, numbers, self.talk)
        else:
            step = supervised.plan_of(settings, kind, self.base, rows, self.run, self.state)
            supervised.require_memory(settings, self.base, self.encoded, step, numbers, self.talk, auto=True)


def _refuse(settings: TrainSettings) -> None:
    common.require_finite(settings)
    require_needs(settings)
    for name in ("numbers", "rank", "groups", "per", "warm_start"):
        if getattr(settings, name):
            raise UsageError(f"--kind auto chooses the size; take out --{name.replace('_', '-')}, or name a --kind")
    if settings.data is None and not settings.reward:
        raise UsageError("Missing argument 'DATA': the rows to learn from")
    if settings.optimizer in BY_REWARD and not settings.reward:
        raise UsageError(f"--optimizer {settings.optimizer} needs a --reward to follow")


def _sizes(settings: TrainSettings, base: Base) -> list[tuple[str, TrainSettings]]:
    """The ladder's sizes that this base and optimiser can have, with the settings of each."""
    found: list[tuple[str, TrainSettings]] = []
    for kind, amount in LADDER:
        if kind == "lora" and settings.optimizer in ("es", "cma", "natural"):
            continue
        size_of: dict[str, Any] = {"numbers": amount} if kind == "tiny" else {"rank": amount}
        own = fitted(replace(settings, kind=kind, **size_of))
        try:
            supervised.shape_of(own, base)
        except UsageError:
            continue  # a small base has not so many directions
        found.append((f"{kind} {amount}" if kind == "tiny" else f"{kind} r{amount}", own))
    if len(found) < 2:
        raise UsageError("--kind auto: fewer than two sizes fit this base; name a --kind")
    return found


def _plain(rung: Rung, kept: Rung) -> dict[str, Any]:
    return {
        "name": rung.name,
        "kind": rung.settings.kind,
        "numbers": rung.numbers,
        "payload_bytes": rung.payload,
        "score": rung.score,
        "rows": len(rung.scores),
        "share": rung.share,
        "seconds": rung.seconds,
        "kept": rung is kept,
    }
