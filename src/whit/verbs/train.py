"""`whit train`: split, tune, prove. The main job.

Splits before anything else, trains on one part, chooses by the second, and reports on the third, which
neither training nor choosing saw. Ends with the verdict, a report, a card and the adapter in one folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from whit.errors import UsageError
from whit.settings import BY_REWARD, TrainSettings, as_plain
from whit.talk import Talk, clock, size
from whit.verbs import common, runs
from whit.verbs.needs import require_needs
from whit.verbs.shrinking import lesson, require_teachable

if TYPE_CHECKING:
    import torch

    from whit.adapters.adapter import Adapter
    from whit.adapters.sparse import SparseSpec
    from whit.adapters.targets import Target
    from whit.adapters.tunable import Bound
    from whit.bases import Base
    from whit.data.rows import Row
    from whit.data.splitting import Split
    from whit.data.templates import Encoded
    from whit.evaluation.proof import Examiner
    from whit.training.distil import Distributions
    from whit.training.loop import Trained
    from whit.training.parallel import Team
    from whit.training.sft import Plan

MANY_ANSWERS = 20  # different answers above which a LoRA is the default on a base that is not small
#: How a sparse adapter's weights are chosen: given the targets and how many.
Choose: TypeAlias = "Callable[[Sequence[Target], int], SparseSpec]"


@dataclass(frozen=True)
class TrainResult:
    """What `train` made: the folder, the card with the verdict, and the adapter."""

    folder: Path
    card: Any
    adapter: Adapter

    def to_json(self) -> dict[str, Any]:
        """The contract of `whit train --json`."""
        found = common.verdict_json(self.card.result, self.card.baselines, str(self.folder))
        about = self.adapter.describe()
        return {**found, **{key: about[key] for key in ("kind", "numbers", "payload_bytes")}}

    def to_text(self) -> str:
        """The verdict in words, the systems side by side, and what to do next."""
        return summary(self.card, self.folder)

    @property
    def exit_code(self) -> int:
        """0: training ended, whatever the verdict (`whit eval` answers with the verdict)."""
        return 0


def train(settings: TrainSettings, *, talk: Talk | None = None) -> TrainResult:
    """Train an adapter and prove what it does; see `TrainSettings` for the options.

    Raises `DataError`, `BaseError`, `UsageError`, `TrainingError`, `StorageError`, or `Interrupted` (its state saved).
    """
    talk = talk or Talk(quiet=True)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0":
        talk = Talk(quiet=True)  # torchrun's first process speaks for all
    common.require_finite(settings)
    require_needs(settings)
    settings = common.quantised(settings)
    if settings.per:
        raise UsageError("a vector for each user is trained by whit.verbs.personal.train_personal")
    if settings.reward or settings.kind == "auto" or settings.optimizer in BY_REWARD:
        raise UsageError("--reward and --kind auto are run by whit.verbs.personal.command")
    require_shape(settings)
    require_teachable(settings)
    several = settings.processes > 1 or settings.fsdp or int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and settings.device != "cpu":
        raise UsageError(f"several processes compute on CPUs alone; leave out --device {settings.device}")
    from whit.training.memory import checkpointed

    with contextlib.ExitStack() as stack:
        load = None
        if settings.fsdp:
            require_shareable(settings)
            team = stack.enter_context(team_for(settings))
            load = functools.partial(share_base, settings, team, talk)
        start = runs.start(settings, talk, load=load)
        base, split = start.base, start.split
        start = replace(start, settings=with_kind(start.settings, base, split.train, talk))
        settings = start.settings
        examiner, encoded = examine(settings, split, base)
        told = None
        if settings.teacher:
            taught = lesson(settings, split, examiner, encoded, talk)
            encoded, told = taught.rows, taught.told
            start = replace(start, run=hashlib.sha256(f"{start.run} {taught.run}".encode()).hexdigest())
            start = replace(start, state=runs.state_folder(start.folder, settings, start.run))
        fresh, numbers, kind, payload = shape_of(settings, base, choosing(settings, start, encoded, talk))
        plan = plan_of(settings, kind, base, len(encoded), start.run, start.state)
        runs.make_folder(start.state)
        start.introduce(talk)
        talk.say(f"score    {examiner.scorer.name} ({examiner.scorer.reason})")
        if told is not None:
            talk.say(f"teacher  {' and '.join(map(str, settings.teacher))}: what to expect on {len(encoded):,} rows")
        start.size(talk, kind, numbers, payload)
        require_memory(settings, base, encoded, plan, numbers, talk)
        announce(talk, settings, base, examiner, plan, encoded)
        if settings.fsdp:
            trained, seeds = train_seeds(settings, examiner, fresh, encoded, split, plan, talk, team)
            return prove_together(start, examiner, trained, seeds, team, talk)
        with team_for(settings) as team, checkpointed(base, settings.checkpointing):
            trained, seeds = train_seeds(settings, examiner, fresh, encoded, split, plan, talk, team, told)
        if not team.first:
            raise SystemExit(0)  # the first process goes on alone, and speaks for all
        return TrainResult(start.folder, start.end(examiner, trained, seeds, talk), trained.adapter)


def require_shareable(settings: TrainSettings) -> None:
    """Raise `UsageError` for what does not go with --fsdp."""
    if settings.processes < 2 and int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise UsageError("--fsdp shares a base among processes: add --processes N, or start with torchrun")
    if settings.kind == "sparse" or settings.checkpointing or settings.accumulate > 1:
        raise UsageError("--fsdp goes with tiny, xs and lora, without --checkpointing and --accumulate")
    from whit.bases.quantize import split_name

    if split_name(settings.base)[1] is not None:
        raise UsageError("--fsdp shares a base that is not quantised; use the one or the other")


def share_base(settings: TrainSettings, team: Team, talk: Talk) -> Base:
    """The base with its layers shared among the team, its basis made before that."""
    from whit.training.parallel import share_layers

    def load() -> Base:
        base = common.open_base(settings.base, dtype=settings.dtype, threads=settings.threads, talk=talk)
        shape_of(settings, base)[0](settings.seed).detach()  # makes the basis, which is then kept
        return base

    return share_layers(team, load)


def prove_together(
    start: runs.Start, examiner: Examiner, trained: Trained, seeds: dict[int, float], team: Team, talk: Talk
) -> TrainResult:
    """The proof where layers are shared: all compute it, and the first process alone keeps it."""
    if team.first:
        return TrainResult(start.folder, start.end(examiner, trained, seeds, talk), trained.adapter)
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        aside = replace(start, folder=Path(place), state=Path(place) / "state")
        runs.make_folder(aside.state)
        aside.end(examiner, trained, seeds, talk)
    raise SystemExit(0)


def require_memory(
    settings: TrainSettings,
    base: Base,
    encoded: Sequence[Encoded],
    plan: Plan,
    numbers: int,
    talk: Talk,
    *,
    auto: bool = False,
) -> None:
    """Say what a step takes (`auto`: of --kind auto). Raises `UsageError` with advice where that is more than is free.

    The first process on a machine counts for all that are there. Bases that others have loaded by now, as torchrun's
    do, are no longer free memory.
    """
    from whit.bases.memory import weight_bytes
    from whit.training import memory

    team = int(os.environ.get("WORLD_SIZE", "1"))
    if team > 1 and os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) != "0":
        return
    here, others = settings.processes, 0
    if team > 1:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    elif here > 1 and not settings.fsdp:
        width = 4 if base.dtype == "float32" else 2
        others = (here - 1) * weight_bytes(base.source, width, base.quantized)
    ways: Sequence[str] = ("batch",) if settings.fsdp else memory.WAYS
    if auto or settings.optimizer != "adam":
        ways = tuple(way for way in ways if way != "checkpointing")
    needed = memory.require_memory(
        base,
        encoded,
        batch=-(-plan.batch // max(here, team)),
        accumulate=plan.accumulate,
        numbers=numbers,
        checkpointing=settings.checkpointing,
        processes=here,
        others=others,
        ways=ways,
    )
    where = f" in {here} processes" if here > 1 else ""
    more = f" and {here - 1} more bases" if others else ""
    talk.say(f"memory   up to about {size(needed)} for a step{where}{more}, beside the base")


def team_for(settings: TrainSettings) -> contextlib.AbstractContextManager[Team]:
    """The processes that train together: torchrun's, or `--processes`."""
    import json

    from whit.training.parallel import team_of

    threads = max(1, (settings.threads or os.cpu_count() or 1) // settings.processes)
    plain = as_plain(replace(settings, processes=1, threads=threads))
    return team_of(settings.processes, [sys.executable, "-m", "whit.verbs.worker", json.dumps(plain)])


def examine(settings: TrainSettings, split: Split, base: Base) -> tuple[Examiner, list[Encoded]]:
    """Who answers and scores, and the training rows as tokens. Raises `DataError` for rows beyond the context."""
    from whit.evaluation.proof import Examiner, longest_answer
    from whit.evaluation.scoring import make_scorer

    most = settings.max_tokens or longest_answer(split.train, base)
    examiner = Examiner(base, make_scorer(settings.score, split.train), settings.instruction, most)
    encoded = examiner.encode(split.train, learn=True)
    examiner.encode(split.test)
    return examiner, encoded


def choosing(settings: TrainSettings, start: runs.Start, encoded: Sequence[Encoded], talk: Talk) -> Choose:
    """How a sparse adapter's weights are chosen: by the gradient of the loss on training rows."""

    def losses() -> Sequence[Callable[[], torch.Tensor]]:
        from whit.training.sft import batch_losses, default_batch

        batch = settings.batch or default_batch(start.base)
        return batch_losses(start.base, encoded, rows=runs.CALIBRATION, batch=batch, seed=settings.seed)

    def choose(targets: Sequence[Target], numbers: int) -> SparseSpec:
        return runs.chosen_places(start, targets, numbers, losses, rate_of(settings, "sparse", start.base, 1), talk)

    return choose


def require_shape(settings: TrainSettings) -> None:
    """Raise `UsageError` for a kind and sizes that no base could have together."""
    if settings.numbers and settings.kind in ("xs", "lora"):
        raise UsageError(f"--numbers sets the size of a tiny or sparse adapter; with --kind {settings.kind} use --rank")
    if settings.alpha is not None and settings.alpha < 0:
        raise UsageError(f"--alpha {settings.alpha:g}: must be above 0")
    if settings.kind == "sparse" and (settings.numbers is None or settings.rank or settings.groups):
        raise UsageError("--kind sparse moves single weights: say how many with --numbers, without --rank or --groups")


def shape_of(
    settings: TrainSettings, base: Base, choose: Choose | None = None
) -> tuple[Callable[[int], Bound], int, str, int]:
    """How to make the untrained adapter of a seed, its numbers, its kind and its payload in bytes.

    `choose` finds the weights of a sparse adapter, when the first one is made; its payload is an estimate.
    """
    from whit.adapters.compact import NUMBER_TYPES
    from whit.adapters.targets import all_targets, select_targets
    from whit.adapters.tunable import tune_lora, tune_vector
    from whit.adapters.vector import tiny_spec, xs_spec

    require_shape(settings)
    kind = settings.kind or ("tiny" if settings.numbers or settings.groups else default_kind(base))
    require_needs(replace(settings, kind=kind))  # now that it is known what the base chose
    every = all_targets(name for name, _ in base.model.named_modules())
    targets = select_targets(every, settings.targets)
    indices = [target.index for target in targets]
    if kind == "lora":
        rank = settings.rank or 8
        alpha = settings.alpha or 2.0 * rank
        numbers = sum(rank * sum(base.model.get_submodule(target.name).weight.shape) for target in targets)

        def fresh(seed: int) -> Bound:
            return tune_lora(base, targets, rank=rank, alpha=alpha, dropout=settings.dropout, seed=seed)

        return fresh, numbers, kind, numbers * 2
    width = NUMBER_TYPES[settings.number_type]
    if kind == "sparse":
        return (*sparse_shape(settings, base, targets, choose), kind, sparse_bytes(settings, base, targets, width))
    if kind == "tiny":
        spec = tiny_spec(indices, settings.numbers or 13, rank=settings.rank or 2, groups=settings.groups)
    else:
        spec = xs_spec(indices, settings.rank or 2)

    def fresh_vector(seed: int) -> Bound:
        return tune_vector(base, spec, number_type=settings.number_type)

    return fresh_vector, spec.numbers, kind, spec.numbers * width


def sparse_shape(
    settings: TrainSettings, base: Base, targets: Sequence[Target], choose: Choose | None
) -> tuple[Callable[[int], Bound], int]:
    """How to make an untrained sparse adapter, and its numbers. Raises `UsageError`."""
    from whit.adapters.tunable import tune_sparse

    numbers = settings.numbers or 0
    if choose is None:
        raise UsageError("a sparse adapter's weights are chosen by whit train alone; choose another --kind")
    weights = sum(base.model.get_submodule(target.name).weight.numel() for target in targets)
    if numbers > weights:
        raise UsageError(f"--numbers {numbers}: these modules have {weights:,} weights")

    def fresh(seed: int) -> Bound:
        return tune_sparse(base, choose(targets, numbers), number_type=settings.number_type)

    return fresh, numbers


def sparse_bytes(settings: TrainSettings, base: Base, targets: Sequence[Target], width: int) -> int:
    """The payload that so many numbers are likely to take, places included."""
    from whit.adapters.sparse import encode

    stride = max(base.model.get_submodule(target.name).weight.numel() for target in targets)
    numbers = settings.numbers or 1
    step = max(1, (targets[-1].index + 1) * stride // numbers)
    return len(encode(tuple(range(step - 1, step * numbers, step)))[1]) + numbers * width


def default_kind(base: Base) -> str:
    """`lora` for small bases, which have too few directions for `xs`; `xs` for others."""
    from whit.bases.dtypes import SMALL

    return "lora" if base.parameters < SMALL else "xs"


def with_kind(settings: TrainSettings, base: Base, rows: Sequence[Row], talk: Talk) -> TrainSettings:
    """The settings with a kind of adapter, where they leave it open: `lora` where `rows` have many different answers.

    A few numbers soon learn to choose among a few answers; among 150 they are far behind a LoRA (docs/log.md).
    """
    if settings.kind or settings.numbers or settings.groups:
        return settings
    kind = default_kind(base)
    answers = len({row.completion for row in rows})
    if kind == "xs" and settings.optimizer == "adam" and answers > MANY_ANSWERS:
        talk.say(f"kind     lora, for there are {answers:,} different answers; --kind xs is smaller and learns less")
        kind = "lora"
    return replace(settings, kind=kind)


def epochs_of(settings: TrainSettings, base: Base, rows: int) -> float:
    """Passes over the training rows."""
    from whit.training.sft import default_epochs

    return settings.epochs or default_epochs(base, rows)


def plan_of(settings: TrainSettings, kind: str, base: Base, rows: int, run: str, state: Path) -> Plan:
    """How supervised training goes for these settings. Raises `UsageError`."""
    from whit.training.batching import steps_in
    from whit.training.sft import Plan, default_batch

    epochs, batch = epochs_of(settings, base, rows), settings.batch or default_batch(base)
    return Plan(
        epochs=epochs,
        batch=batch,
        learning_rate=rate_of(settings, kind, base, steps_in(rows, batch, epochs)),
        accumulate=settings.accumulate,
        warmup=settings.warmup,
        optimizer=settings.optimizer,
        evaluations=settings.evaluations,
        patience=settings.patience,
        seed=settings.seed,
        run=run,
        checkpoint=state / "run.safetensors",
    )


def rate_of(settings: TrainSettings, kind: str, base: Base, steps: int) -> float:
    """The peak rate of `steps` supervised steps. Raises `UsageError`."""
    from whit.training.sft import default_rate

    rate = settings.learning_rate or default_rate(base, kind, settings.optimizer, steps)
    if rate is not None and rate < 0:
        raise UsageError(f"--learning-rate {rate:g}: must be above 0")
    if rate is None:
        raise UsageError(f"--optimizer {settings.optimizer} works on vector adapters (tiny, xs); use adam for {kind}")
    return rate


def announce(
    talk: Talk, settings: TrainSettings, base: Base, examiner: Examiner, plan: Plan, encoded: Sequence[Encoded]
) -> None:
    """Say what is about to be done, and how long it may take."""
    from whit.training.batching import steps_in

    steps = steps_in(len(encoded), plan.batch, plan.epochs)
    talk.say(
        f"plan     {plan.epochs:.3g} passes, {steps:,} steps of {plan.batch} rows, rate {plan.learning_rate:.3g}, "
        f"{plan.evaluations} evaluations on up to {settings.validation_rows} rows"
    )
    left = _left(plan, settings.seeds)
    seconds = _estimate(base, encoded, plan, examiner) * left
    seeds = "" if settings.seeds == 1 else f" {settings.seeds} seeds"
    more = " what is left" if left < settings.seeds else ""
    talk.say(f"time     about {clock(seconds)} to train{more or seeds}, then the proof")


def _left(plan: Plan, seeds: int) -> float:
    """How many runs' steps are still to be made, of `seeds` runs: less than that where a resumed run has some."""
    from whit.training.checkpoint import reached
    from whit.training.loop import with_seed

    plans = [with_seed(plan, seed) for seed in range(plan.seed, plan.seed + seeds)]
    known = [reached(each.checkpoint, run=each.run) for each in plans]
    return sum(1.0 if one is None else 1.0 - one[0] / one[1] for one in known)


def _estimate(base: Base, encoded: Sequence[Encoded], plan: Plan, examiner: Examiner) -> float:
    """Seconds that training may take at most: one batch forward is timed, the rest follows from sizes."""
    import torch

    from whit.training.batching import collate, steps_in
    from whit.training.sft import loss_of

    some = sorted(encoded, key=lambda row: len(row.prompt_ids))[len(encoded) // 2 :][: plan.batch]
    batch = collate(some)
    with torch.inference_mode():
        loss_of(base, collate(some[:1]))
        began = time.monotonic()
        loss_of(base, batch)
    forward = time.monotonic() - began
    answers = min(200, max(1, len(encoded) // 8)) / plan.batch * plan.evaluations
    return forward * (2.3 * steps_in(len(encoded), plan.batch, plan.epochs) + 1.5 * answers)


def train_seeds(
    settings: TrainSettings,
    examiner: Examiner,
    fresh: Callable[[int], Bound],
    encoded: Sequence[Encoded],
    split: Split,
    plan: Plan,
    talk: Talk,
    team: Team | None = None,
    told: Sequence[Distributions] | None = None,
) -> tuple[Trained, dict[int, float]]:
    """Train every seed, alone or as a `team`; the best on validation or the seeds' mean, and every seed's score.

    `told` are a teacher's distributions, to be learned in place of the answers.
    """
    from whit.training.distil import distil
    from whit.training.parallel import Team, train_together
    from whit.training.sft import Progress, train

    validation = list(split.validation[: settings.validation_rows])
    choosing = examiner.encode(validation)
    team = team or Team()

    def score(bound: Bound) -> float:
        def scores(places: Sequence[int]) -> list[float]:
            answers = examiner.answer([choosing[at] for at in places], bound)
            return [found.value for found in examiner.score(answers, [validation[at] for at in places])]

        return team.mean_score(len(validation), scores)

    def one(bound: Bound, plan: Plan, name: str) -> Trained:
        def watch(progress: Progress) -> None:
            held = "" if progress.score is None else f"  validation {100 * progress.score:.1f}"
            talk.progress(name, progress.step, progress.steps, progress.seconds, f"loss {progress.loss:.3f}{held}")

        if team.size > 1:
            return train_together(examiner.base, bound, encoded, plan, lambda: score(bound), team, watch=watch)
        if told is not None:
            return distil(examiner.base, bound, encoded, told, plan, lambda: score(bound), watch=watch)
        return train(examiner.base, bound, encoded, plan, lambda: score(bound), watch=watch)

    def keep(every: Sequence[Trained]) -> Trained:
        return runs.best_or_mean(every, lambda: fresh(settings.seed), score, talk)

    return runs.best_of_seeds(settings, plan, fresh, one, lambda trained: trained, talk, keep=keep)


def summary(card: Any, folder: Path) -> str:
    """What `train` prints for people."""
    result = card.result
    width = max([len("the base"), len("the adapter"), *(len(name) for name in card.baselines)])
    lines = [result.sentence(), ""]
    lines.append(f"  {'the base':<{width}}  {100 * result.base:5.1f}")
    for name, found in card.baselines.items():
        low, high = (100 * bound for bound in found.interval)
        lead = f"(adapter {100 * found.difference:+.1f}: {low:+.1f} to {high:+.1f})"
        lines.append(f"  {name:<{width}}  {100 * found.base:5.1f}   {lead}")
    lines.append(f"  {'the adapter':<{width}}  {100 * result.tuned:5.1f}")
    lines += [
        "",
        f"{card.kind} adapter of {card.numbers:,} numbers, {size(card.payload_bytes)}: {folder}/",
        f"report: {folder / common.REPORT_NAME}",
        f'try it: whit run {folder} "…"',
    ]
    return "\n".join(lines)
