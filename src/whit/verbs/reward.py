"""`whit train --reward`: train on what answers are worth, by GRPO or by evolution, and prove what it did.

The rows are split, the best state is chosen and the verdict is found as in supervised training (`whit.verbs.train`);
only what moves the numbers differs. Each step's reward, skill, format and length go to `rewards.jsonl` and into the
report. With `gym:NAME` and no data, rows are generated into the adapter's folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.errors import AdapterError, DataError, UsageError
from whit.settings import BY_REWARD, TrainSettings
from whit.talk import Talk, size
from whit.verbs import common, runs
from whit.verbs import train as supervised
from whit.verbs.needs import require_needs

if TYPE_CHECKING:
    import torch

    from whit.adapters.sparse import SparseSpec
    from whit.adapters.targets import Target
    from whit.adapters.tunable import Bound
    from whit.bases import Base
    from whit.data.splitting import Split
    from whit.data.templates import Encoded
    from whit.evaluation.proof import Examiner
    from whit.evaluation.report import Extra
    from whit.evaluation.scoring import Scorer
    from whit.rewards import Reward
    from whit.training.reward import Measures, Rewarded, RewardPlan

MEASURES_NAME = "rewards.jsonl"
_PROMPTS_SEEN = 1600
_ROOM = 64  # tokens of an answer at least: rewarded answers may reason, whatever the gold ones do


@dataclass(frozen=True)
class RewardResult(supervised.TrainResult):
    """What `train --reward` made; `about` holds what the run by reward adds."""

    about: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The contract of `whit train --json`, and the keys of `about`."""
        return {**super().to_json(), **self.about}

    def to_text(self) -> str:
        """The verdict in words, the systems side by side, skill apart from format."""
        result = self.card.result
        gain = f"skill {100 * result.skill_difference:+.1f}, format {100 * result.format_difference:+.1f}"
        return f"{super().to_text()}\nof the difference {100 * result.difference:+.1f}: {gain}"


def train_reward(settings: TrainSettings, *, talk: Talk | None = None) -> RewardResult:
    """Train by reward and prove what it did.

    Raises what `whit.verbs.train.train` raises, and `ScoreError` for a reward that fails.
    """
    talk = talk or Talk(quiet=True)
    settings = prepared(settings)
    split = split_of(settings, talk)
    reward, scorer = judges(settings, split)
    try:
        start = runs.start(settings, talk, split=lambda *_: split)
        settings, base = start.settings, start.base
        examiner, encoded = examine(settings, split, base, scorer)
        choose = choosing(settings, start, examiner, reward, encoded, talk)
        fresh, numbers, kind, payload = supervised.shape_of(settings, base, choose)
        plan = plan_of(settings, kind, start.base, len(encoded), examiner.max_tokens, start.run, start.state)
        runs.make_folder(start.state)
        start.introduce(talk)
        talk.say(f"reward   {reward.name}; proved by {examiner.scorer.name}")
        start.size(talk, kind, numbers, payload)
        require_memory(base, encoded, plan, numbers, talk)
        talk.say(f"plan     {_said(plan)}")
        found, seeds = train_seeds(settings, examiner, reward, fresh, encoded, split, plan, talk)
        write_measures(start.folder / MEASURES_NAME, found.measures)
        remarks = remarks_on(found.measures, examiner.max_tokens)
        extras = [curves(found.measures)]
        card = start.end(examiner, found.trained, seeds, talk, extras=extras, remarks=remarks)
    finally:
        reward.close()
    return RewardResult(start.folder, card, found.trained.adapter, about_of(reward, plan, found, remarks))


def prepared(settings: TrainSettings) -> TrainSettings:
    """The settings with their optimiser named and their rows there. Raises `UsageError` for what cannot be."""
    common.require_finite(settings)
    require_needs(settings)
    if settings.per:
        raise UsageError("--per and --reward cannot be together")
    if settings.optimizer == "natural":
        raise UsageError(f"--optimizer natural is supervised; with --reward choose {', '.join(BY_REWARD)}")
    if settings.dropout:
        raise UsageError("--dropout and --reward cannot be together: the policy that answers is the one that learns")
    if settings.accumulate > 1:
        raise UsageError(
            "--accumulate is for training on answers: by reward a step is computed prompt by prompt as it is; to save "
            "memory take a lower --max-tokens or fewer --samples"
        )
    if settings.optimizer == "adam":
        settings = replace(settings, optimizer="grpo")
    supervised.require_shape(settings)
    require_moved(settings.optimizer, settings.kind)
    if settings.optimizer == "es" and settings.population % 2:
        raise UsageError(f"--population {settings.population}: es needs an even number, for its noise comes in pairs")
    if settings.kl and settings.optimizer in ("es", "cma"):
        raise UsageError(f"--kl and --optimizer {settings.optimizer} cannot be together: grpo alone has a KL term")
    if settings.warm_start:
        common.open_specialist(settings.warm_start)
    if settings.data is not None:
        return settings
    from whit.rewards.gym import ROWS, parse_name, write_rows
    from whit.rewards.reward import split_weight

    names = [name for text in settings.reward if (name := split_weight(text)[1]).startswith("gym:")]
    if not names:
        raise UsageError("Missing argument 'DATA': the rows to answer (only --reward gym:NAME makes its own)")
    rest = names[0].removeprefix("gym:")
    name, _ = parse_name(rest)
    folder = settings.out or Path(name)
    runs.make_folder(folder)
    path = write_rows(folder / f"{name}.jsonl", rest, count=settings.limit or ROWS, seed=settings.seed)
    return replace(settings, data=path, out=folder)


def split_of(settings: TrainSettings, talk: Talk) -> Split:
    """The rows, split. Generated questions are told apart by their numbers alone: near-duplicates are no leak there."""
    if any("gym:" in text for text in settings.reward) and settings.test_data is None:
        from whit.data.rows import read
        from whit.data.splitting import split_rows

        reading = read(settings.data, limit=settings.limit)
        split = split_rows(
            reading.rows, validation=settings.validation, test=settings.test, seed=settings.seed, near_duplicates=False
        )
        if not (split.train and split.validation and split.test):
            raise DataError(f"{len(reading.rows)} rows are too few to split; raise --limit, --validation or --test")
        return split
    return runs.read_and_split(settings, talk)


def judges(settings: TrainSettings, split: Split) -> tuple[Reward, Scorer]:
    """The reward, to be closed, and what proves; both by name and rows alone. Raises `UsageError`, `DataError`."""
    from whit.rewards import make_reward
    from whit.rewards.terms import named_scorer

    reward = make_reward(
        settings.reward, split.train, format_weight=settings.format_weight, seconds=settings.reward_seconds
    )
    try:
        return reward, reward.scorer if settings.score == "auto" else named_scorer(settings.score, split.train)
    except BaseException:
        reward.close()
        raise


def examine(settings: TrainSettings, split: Split, base: Base, scorer: Scorer) -> tuple[Examiner, list[Encoded]]:
    """Who answers and scores, and the training rows' prompts as tokens."""
    from whit.evaluation.proof import Examiner, longest_answer

    most = settings.max_tokens or min(base.context // 4, max(_ROOM, longest_answer(split.train, base)))
    examiner = Examiner(base, scorer, settings.instruction, most)
    encoded = examiner.encode(split.train)
    examiner.encode(split.test)
    return examiner, encoded


def require_moved(optimizer: str, kind: str | None) -> None:
    """Raise `UsageError` where an optimiser does not move adapters of that kind."""
    if optimizer in ("es", "cma") and kind == "lora":
        raise UsageError(f"--optimizer {optimizer} is for vector adapters (tiny, xs, sparse); use grpo for lora")


def choosing(
    settings: TrainSettings,
    start: runs.Start,
    examiner: Examiner,
    reward: Reward,
    encoded: Sequence[Encoded],
    talk: Talk,
) -> supervised.Choose:
    """How a sparse adapter's weights are chosen: by the policy's gradient on answers of the bare base.

    With --warm-start they are those of the adapter that it begins from.
    """

    def choose(targets: Sequence[Target], numbers: int) -> SparseSpec:
        from whit.training.grpo import default_rate, group_losses

        if settings.warm_start:
            known = common.open_specialist(settings.warm_start).adapter.sparse
            if known is None or known.numbers != numbers:
                raise UsageError(f"--warm-start {settings.warm_start}: no sparse adapter of {numbers:,} numbers")
            return known
        plan = plan_of(settings, "sparse", start.base, len(encoded), examiner.max_tokens, start.run, start.state)

        def losses() -> Sequence[Callable[[], torch.Tensor]]:
            some = -(-2 * runs.CALIBRATION // settings.samples)
            return group_losses(start.base, encoded[:some], reward, replace(plan, optimizer="grpo"))

        return runs.chosen_places(start, targets, numbers, losses, default_rate(start.base, "sparse"), talk)

    return choose


def epochs_of(settings: TrainSettings, rows: int) -> float:
    """Passes over the training rows' prompts."""
    return settings.epochs or min(12.0, max(1.0, _PROMPTS_SEEN / rows))


def plan_of(settings: TrainSettings, kind: str, base: Base, rows: int, most: int, run: str, state: Path) -> RewardPlan:
    """How a run by reward goes for these settings. Raises `UsageError`."""
    from whit.training import evolution, grpo
    from whit.training.batching import steps_in
    from whit.training.reward import PROMPTS, RewardPlan

    evolves = settings.optimizer in ("es", "cma")
    require_moved(settings.optimizer, kind)
    usual, noise = evolution.defaults(base)
    rate = settings.learning_rate or (usual if evolves else grpo.default_rate(base, kind))
    if rate < 0:
        raise UsageError(f"--learning-rate {rate:g}: must be above 0")
    batch = settings.batch or PROMPTS
    return RewardPlan(
        steps=steps_in(rows, batch, epochs_of(settings, rows)),
        batch=batch,
        learning_rate=rate,
        most=most,
        optimizer=settings.optimizer,
        samples=settings.samples,
        population=settings.population,
        sigma=settings.sigma or noise,
        updates=settings.updates,
        kl=settings.kl,
        warmup=settings.warmup,
        evaluations=settings.evaluations,
        patience=settings.patience,
        seed=settings.seed,
        run=run,
        checkpoint=state / "run.safetensors",
    )


def require_memory(base: Base, encoded: Sequence[Encoded], plan: RewardPlan, numbers: int, talk: Talk) -> None:
    """Say what a step takes. Raises `UsageError` with advice where that is more than is free."""
    from whit.training.memory import require_reward_memory

    needed = require_reward_memory(base, encoded, plan, numbers)
    talk.say(f"memory   up to about {size(needed)} for a step, beside the base")


def train_seeds(
    settings: TrainSettings,
    examiner: Examiner,
    reward: Reward,
    fresh: Callable[[int], Bound],
    encoded: Sequence[Encoded],
    split: Split,
    plan: RewardPlan,
    talk: Talk,
) -> tuple[Rewarded, dict[int, float]]:
    """Train every seed; the one that scores best on validation, and every seed's score."""

    def one(bound: Bound, plan: RewardPlan, name: str) -> Rewarded:
        if settings.warm_start:
            warm_up(bound, settings.warm_start, examiner.base)
        return _train_one(name, examiner, reward, bound, encoded, split, plan, settings.validation_rows, talk)

    return runs.best_of_seeds(settings, plan, fresh, one, lambda found: found.trained, talk)


def warm_up(bound: Bound, where: str, base: Base) -> None:
    """Begin from an adapter that is there. Raises `AdapterError`; `UsageError` where it is of another kind or size."""
    from whit.adapters.tunable import BoundBasis

    adapter = common.open_specialist(where).adapter
    adapter.check_fits(base, bound.basis if isinstance(bound, BoundBasis) and adapter.spec == bound.spec else None)
    try:
        bound.load(adapter)
    except AdapterError as error:
        raise UsageError(
            f"--warm-start {where[:200]}: a {adapter.kind} adapter of {adapter.numbers:,} numbers, and this run trains "
            f"{bound.numbers:,}; give the same --kind, --numbers, --rank and --groups as it was trained with ({error})"
        ) from error


def _train_one(
    name: str,
    examiner: Examiner,
    reward: Reward,
    bound: Bound,
    encoded: Sequence[Encoded],
    split: Split,
    plan: RewardPlan,
    most_rows: int,
    talk: Talk,
) -> Rewarded:
    from whit.training.evolution import train_evolution
    from whit.training.grpo import train_grpo
    from whit.training.reward import RewardProgress

    validation = list(split.validation[:most_rows])
    choosing = examiner.encode(validation)
    first = True

    def score() -> float:
        nonlocal first
        found = examiner.score(examiner.answer(choosing, bound), validation)
        mean = sum(item.value for item in found) / len(found)
        if first and not any(item.lenient for item in found):
            talk.say(
                f"the base gets none of {len(found)} validation rows right. Reward cannot teach what never happens: "
                "try easier rows, more --numbers, more --samples, or --warm-start from a supervised adapter"
            )
        first = False
        return mean

    def watch(progress: RewardProgress) -> None:
        now, held = progress.measures, "" if progress.score is None else f"  validation {100 * progress.score:.1f}"
        note = (
            f"reward {now.reward:.3f}  skill {100 * now.skill:.1f}  format {100 * now.format:.1f}  "
            f"length {now.length:.0f}  flat {100 * now.flat:.0f} %{held}"
        )
        talk.progress(name, progress.step, progress.steps, progress.seconds, note)
        if progress.step == 1 or progress.step % max(1, progress.steps // plan.evaluations) == 0:
            prompt, answer, value = progress.sample
            talk.say(f"  sample: {_short(prompt)} -> {_short(answer)} ({value:g})")

    train = train_evolution if plan.optimizer in ("es", "cma") else train_grpo
    return train(examiner.base, bound, encoded, reward, plan, score, watch=watch)


def about_of(reward: Reward, plan: RewardPlan, found: Rewarded, remarks: Sequence[str]) -> dict[str, Any]:
    """What `--json` adds for a run by reward; see docs/json.md."""
    last = found.measures[-max(1, len(found.measures) // 10) :]

    def mean(name: str) -> float | None:
        return sum(getattr(each, name) for each in last) / len(last) if last else None

    return {
        "reward": reward.name,
        "optimizer": plan.optimizer,
        "steps": found.trained.steps,
        "best_step": found.trained.best.step,
        "answers": sum(round(each.tokens / each.length) for each in found.measures if each.length),
        "tokens": found.trained.tokens,
        "seconds": found.trained.seconds,
        "last": {name: mean(name) for name in ("reward", "right", "skill", "format", "length", "cut", "flat")},
        "notes": list(remarks),
    }


def write_measures(path: Path, measures: Sequence[Measures]) -> None:
    """One JSON line a step."""
    from whit.files import atomic_write

    atomic_write(path, "".join(json.dumps(asdict(each)) + "\n" for each in measures))


def remarks_on(measures: Sequence[Measures], most: int) -> list[str]:
    """What a user should know of a run's answers and rewards."""
    if not measures:
        return []
    said, count = [], len(measures)
    flat, cut = sum(each.flat for each in measures) / count, sum(each.cut for each in measures) / count
    if flat > 0.5:
        said.append(
            f"In {100 * flat:.0f} % of the groups every answer had the same reward, so they taught nothing: rows of "
            "middling difficulty teach most."
        )
    if cut > 0.2:
        said.append(f"{100 * cut:.0f} % of the answers were cut off at {most} tokens; raise --max-tokens.")
    part = max(1, count // 10)
    first, last = (
        {name: sum(getattr(each, name) for each in some) / part for name in ("skill", "format", "flat", "right")}
        for some in (measures[:part], measures[-part:])
    )
    if last["flat"] > 0.8 and last["flat"] - first["flat"] > 0.2 and last["right"] < 0.9:
        said.append(
            f"The answers have become one, from which nothing more is learned: {100 * last['flat']:.0f} % of the last "
            f"groups had answers of one worth ({100 * first['flat']:.0f} % of the first), {100 * last['right']:.0f} % "
            "right. Try another --seed, fewer --numbers, a lower --learning-rate, or --kl."
        )
    skill, form = (last[name] - first[name] for name in ("skill", "format"))
    if form > 0.05 and skill < 0.01:
        said.append("In training the format rose and the skill did not: what was gained is form.")
    return said


def curves(measures: Sequence[Measures]) -> Extra:
    """The section of the report with reward, skill, format and length by step."""
    from whit.evaluation.figures import curve
    from whit.evaluation.report import Extra

    plots = []
    for name, title, percent in (
        ("skill", "Skill (of 100, format looked through)", True),
        ("format", "Answers in the right format (of 100)", True),
        ("reward", "Reward", False),
        ("length", "Tokens an answer", False),
    ):
        found = [(each.step, float(getattr(each, name))) for each in measures]
        drawn = curve(found, best=None, percent=percent, name=title)
        if drawn:
            plots.append((title, drawn))
    words = "What the answers drawn in each step were worth; they are noisier than the validation score."
    return Extra("What was rewarded", words, plots)


def _said(plan: RewardPlan) -> str:
    how = f"{plan.population} candidates" if plan.optimizer in ("es", "cma") else f"{plan.samples} answers each"
    return (
        f"{plan.optimizer}: {plan.steps:,} steps of {plan.batch} prompts, {how}, up to {plan.most} tokens, "
        f"rate {plan.learning_rate:g}{f', noise {plan.sigma:g}' if plan.optimizer in ('es', 'cma') else ''}"
        f"{f', KL term {plan.kl:g}' if plan.kl else ''}"
    )


def _short(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= 60 else f"{plain[:29]} … {plain[-28:]}"
