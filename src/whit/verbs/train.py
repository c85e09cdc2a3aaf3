"""`whit train`: split, tune, prove. The main job.

Splits before anything else, trains on one part, chooses by the second, and reports on the third, which
neither training nor choosing saw. Ends with the verdict, a report, a card and the adapter in one folder.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.data.rows import content_key, read
from whit.data.splitting import Split, split_rows
from whit.errors import DataError, StorageError, UsageError
from whit.settings import BY_REWARD, TrainSettings, as_plain
from whit.talk import Talk, clock, size
from whit.verbs import common

if TYPE_CHECKING:
    from whit.adapters.adapter import Adapter
    from whit.adapters.tunable import Bound
    from whit.bases import Base
    from whit.data.templates import Encoded
    from whit.evaluation.proof import Examiner
    from whit.training.sft import Plan, Trained

_ROWS_SEEN = 4000
_STATE = "state"
# Rows and base are known by their content, wherever they lie.
_NOT_PART_OF_A_RUN = ("data", "test_data", "base", "out", "resume", "threads", "baselines", "shots")


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
    common.require_finite(settings)
    if settings.per:
        raise UsageError("a vector for each user is trained by whit.verbs.personal.train_personal")
    if settings.reward or settings.kind == "auto" or settings.optimizer in BY_REWARD:
        raise UsageError("--reward and --kind auto are run by whit.verbs.personal.command")
    folder = out_folder(settings)
    reading, split = read_and_split(settings)
    for note in reading.notes:
        talk.say(f"note: {note}")
    base = common.open_base(settings.base, dtype=settings.dtype, threads=settings.threads, talk=talk)
    run = run_key(settings, split, base)
    state = state_folder(folder, settings, run)

    from whit.evaluation.proof import Examiner, longest_answer
    from whit.evaluation.scoring import make_scorer

    scorer = make_scorer(settings.score, split.train)
    most = settings.max_tokens or longest_answer(split.train, base)
    examiner = Examiner(base, scorer, settings.instruction, most)
    encoded = examiner.encode(split.train, learn=True)
    examiner.encode(split.test)
    fresh, numbers, kind, payload = shape_of(settings, base)
    plan = plan_of(settings, kind, len(encoded), run, state)
    make_folder(state)
    announce(talk, settings, base, split, examiner, kind, numbers, payload, plan, encoded)
    trained, seeds = train_seeds(settings, examiner, fresh, encoded, split, plan, talk)

    from whit.verbs.prove import prove

    trained.adapter.save(folder)
    remove_other_kind(folder, trained.adapter)
    atomic_seen(folder, split)
    card = prove(settings, examiner, split, trained, seeds, folder, talk)
    for leftover in state.glob("*"):
        leftover.unlink()
    state.rmdir()
    return TrainResult(folder, card, trained.adapter)


def out_folder(settings: TrainSettings) -> Path:
    """The folder to write to. Raises `UsageError` where that is the data, or a file."""
    folder = settings.out or Path(settings.data.stem)
    if folder.resolve() == settings.data.resolve():
        raise UsageError(f"{folder} is the data; name another folder for the adapter with --out")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder for the adapter with --out")
    return folder


def make_folder(folder: Path) -> None:
    """Make a folder before anything long is begun. Raises `StorageError` where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {folder}: {error.strerror}; choose another --out") from error


def remove_other_kind(folder: Path, adapter: Adapter) -> None:
    """Take away the adapter of an earlier run of another kind, which would be read in this one's place."""
    from whit.adapters.adapter import FILE_NAME
    from whit.adapters.lora import CONFIG_NAME, WEIGHTS_NAME

    for name in (FILE_NAME,) if adapter.lora is not None else (CONFIG_NAME, WEIGHTS_NAME):
        (folder / name).unlink(missing_ok=True)


def read_and_split(settings: TrainSettings) -> tuple[Any, Split]:
    """The rows and their split, before anything else is done. Raises `DataError`."""
    reading = read(
        settings.data,
        prompt_column=settings.prompt_column,
        completion_column=settings.completion_column,
        group_column=settings.group_column,
        limit=settings.limit,
    )
    if settings.test_data is None:
        split = split_rows(reading.rows, validation=settings.validation, test=settings.test, seed=settings.seed)
        if not split.test:
            raise DataError("0 held-out rows: nothing could be proved; give --test a share above 0, or --test-data")
    else:
        held = read(
            settings.test_data, prompt_column=settings.prompt_column, completion_column=settings.completion_column
        ).rows
        kept = split_rows(reading.rows, validation=settings.validation, test=0.0, seed=settings.seed)
        inputs = {content_key(row.turns) for row in held}
        split = Split(
            tuple(row for row in kept.train if content_key(row.turns) not in inputs),
            tuple(row for row in kept.validation if content_key(row.turns) not in inputs),
            held,
        )
    if not split.validation:
        raise DataError("0 validation rows: no step could be chosen; give --validation a share above 0")
    if not split.train or not split.test:
        raise DataError("after splitting there is nothing to learn from or nothing to prove with; give more rows")
    return reading, split


def run_key(settings: TrainSettings, split: Split, base: Base) -> str:
    """What makes a run the same run: settings, rows and base."""
    plain = {key: value for key, value in as_plain(settings).items() if key not in _NOT_PART_OF_A_RUN}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for rows in (split.train, split.validation, split.test):
        for row in rows:
            digest.update(f"\n{row.id}\0{content_key(row.turns)}\0{row.completion}".encode())
    digest.update(base.fingerprint.encode() + base.dtype.encode())
    return digest.hexdigest()


def state_folder(folder: Path, settings: TrainSettings, run: str) -> Path:
    """The folder for checkpoints. Raises `UsageError` where an interrupted run lies there that was not asked for."""
    state = folder / _STATE
    if not settings.resume and any(state.glob("*.safetensors")):
        raise UsageError(
            f"{state}: an interrupted run is here; go on with --resume, remove that folder to start anew, "
            "or choose another --out"
        )
    return state


def shape_of(settings: TrainSettings, base: Base) -> tuple[Callable[[int], Bound], int, str, int]:
    """How to make the untrained adapter of a seed, its numbers, its kind and its payload in bytes."""
    from whit.adapters.compact import NUMBER_TYPES
    from whit.adapters.targets import all_targets, select_targets
    from whit.adapters.tunable import tune_lora, tune_vector
    from whit.adapters.vector import tiny_spec, xs_spec

    kind = settings.kind or ("tiny" if settings.numbers or settings.groups else default_kind(base))
    if settings.numbers and kind != "tiny":
        raise UsageError(f"--numbers sets the size of a tiny adapter; with --kind {kind} use --rank")
    every = all_targets(name for name, _ in base.model.named_modules())
    targets = select_targets(every, settings.targets)
    indices = [target.index for target in targets]
    if kind == "lora":
        rank = settings.rank or 8
        alpha = settings.alpha or 2.0 * rank
        if alpha < 0:
            raise UsageError(f"--alpha {alpha:g}: must be above 0")
        numbers = sum(rank * sum(base.model.get_submodule(target.name).weight.shape) for target in targets)

        def fresh(seed: int) -> Bound:
            return tune_lora(base, targets, rank=rank, alpha=alpha, dropout=settings.dropout, seed=seed)

        return fresh, numbers, kind, numbers * 2
    if kind == "tiny":
        spec = tiny_spec(indices, settings.numbers or 13, rank=settings.rank or 2, groups=settings.groups)
    else:
        spec = xs_spec(indices, settings.rank or 2)
    width = NUMBER_TYPES[settings.number_type]

    def fresh_vector(seed: int) -> Bound:
        return tune_vector(base, spec, number_type=settings.number_type)

    return fresh_vector, spec.numbers, kind, spec.numbers * width


def default_kind(base: Base) -> str:
    """`lora` for bases under 20 M parameters, which have too few directions for `xs`; `xs` for others."""
    return "lora" if base.parameters < 20_000_000 else "xs"


def epochs_of(settings: TrainSettings, rows: int) -> float:
    """Passes over the training rows."""
    return settings.epochs or min(12.0, max(1.0, _ROWS_SEEN / rows))


def plan_of(settings: TrainSettings, kind: str, rows: int, run: str, state: Path) -> Plan:
    """How supervised training goes for these settings. Raises `UsageError`."""
    from whit.training.sft import LEARNING_RATES, Plan

    rate = settings.learning_rate or LEARNING_RATES.get((kind, settings.optimizer))
    if rate is not None and rate < 0:
        raise UsageError(f"--learning-rate {rate:g}: must be above 0")
    if rate is None:
        raise UsageError(f"--optimizer {settings.optimizer} works on vector adapters (tiny, xs); use adam for {kind}")
    return Plan(
        epochs=epochs_of(settings, rows),
        batch=settings.batch,
        learning_rate=rate,
        accumulate=settings.accumulate,
        warmup=settings.warmup,
        optimizer=settings.optimizer,
        evaluations=settings.evaluations,
        patience=settings.patience,
        seed=settings.seed,
        run=run,
        checkpoint=state / "run.safetensors",
    )


def announce(
    talk: Talk,
    settings: TrainSettings,
    base: Base,
    split: Split,
    examiner: Examiner,
    kind: str,
    numbers: int,
    payload: int,
    plan: Plan,
    encoded: Sequence[Encoded],
) -> None:
    """Say what is about to be done, and how long it may take."""
    from whit.training.batching import steps_in

    steps = steps_in(len(encoded), plan.batch, plan.epochs)
    talk.say(f"base     {base.name}: {base.parameters / 1e6:.1f} M parameters, {base.dtype}, {base.licence}")
    talk.say(
        f"rows     {len(split.train):,} to learn from, {len(split.validation):,} to choose by, "
        f"{len(split.test):,} held out"
    )
    talk.say(f"score    {examiner.scorer.name} ({examiner.scorer.reason})")
    talk.say(f"adapter  {kind}: {numbers:,} numbers of {base.parameters:,} ({size(payload)} of payload)")
    talk.say(
        f"plan     {plan.epochs:.3g} passes, {steps:,} steps of {plan.batch} rows, rate {plan.learning_rate:g}, "
        f"{plan.evaluations} evaluations on up to {settings.validation_rows} rows"
    )
    seconds = _estimate(base, encoded, plan, examiner) * settings.seeds
    runs = "" if settings.seeds == 1 else f" {settings.seeds} seeds"
    talk.say(f"time     about {clock(seconds)} to train{runs}, then the proof")


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
) -> tuple[Trained, dict[int, float]]:
    """Train every seed; the one that scores best on validation, and every seed's score."""
    from whit.training.sft import Progress, train, with_seed

    validation = list(split.validation[: settings.validation_rows])
    choosing = examiner.encode(validation)
    best: Trained | None = None
    scores: dict[int, float] = {}
    for seed in range(settings.seed, settings.seed + settings.seeds):
        bound = fresh(seed)
        name = "training" if settings.seeds == 1 else f"seed {seed}"

        def score(bound: Bound = bound) -> float:
            found = examiner.score(examiner.answer(choosing, bound), validation)
            return sum(item.value for item in found) / len(found)

        def watch(progress: Progress, name: str = name) -> None:
            held = "" if progress.score is None else f"  validation {100 * progress.score:.1f}"
            talk.progress(name, progress.step, progress.steps, progress.seconds, f"loss {progress.loss:.3f}{held}")

        try:
            trained = train(examiner.base, bound, encoded, with_seed(plan, seed), score, watch=watch)
        finally:
            bound.detach()
        scores[seed] = trained.best.score
        early = ", stopped early" if trained.stopped_early else ""
        talk.say(
            f"{name}: best {100 * trained.best.score:.1f} on validation at step {trained.best.step} "
            f"({clock(trained.seconds)}{early})"
        )
        if best is None or trained.best.score > best.best.score:
            best = trained
    assert best is not None
    return best, scores


def atomic_seen(folder: Path, split: Split) -> None:
    """Keep hashes of the rows that training and choosing saw, so that `whit eval` can leave them out."""
    from whit.files import atomic_write

    keys = sorted({common.seen_key(row) for row in (*split.train, *split.validation)})
    atomic_write(folder / common.SEEN_NAME, "\n".join(keys) + "\n")


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
