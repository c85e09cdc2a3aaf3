"""What every way of training shares: where a run begins, its seeds, and how it ends in a folder with a verdict.

A run is known by its settings, rows and base, and leaves its state in the adapter's folder until it has ended. Knows
nothing of what is trained, nor by what.
"""

from __future__ import annotations

import functools
import hashlib
import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from whit.data.rows import content_key, read
from whit.data.splitting import Split, hold_apart, split_rows
from whit.errors import DataError, StorageError, UsageError
from whit.settings import TrainSettings, as_plain
from whit.talk import Talk, clock, size
from whit.verbs import common
from whit.verbs.folders import require_replaceable

if TYPE_CHECKING:
    import torch

    from whit.adapters.adapter import Adapter
    from whit.adapters.sparse import SparseSpec
    from whit.adapters.targets import Target
    from whit.adapters.tunable import Bound
    from whit.bases import Base
    from whit.data.rows import Row
    from whit.evaluation.card import Card
    from whit.evaluation.proof import Examiner
    from whit.evaluation.report import Extra, System
    from whit.training.loop import Pace, Trained

CALIBRATION = 128  # rows or answers at most by which a sparse adapter's weights are chosen
_STATE = "state"
# Rows and base are known by their content, wherever they lie.
_NOT_PART_OF_A_RUN = (
    "data", "test_data", "base", "out", "resume", "threads", "baselines", "shots", "checkpointing", "processes",
    "fsdp", "ray", "stop", "overwrite",
)  # fmt: skip
R = TypeVar("R")
P = TypeVar("P", bound="Pace")


@dataclass(frozen=True)
class Start:
    """Where a run begins: rows, base, the key `run` that it is known by, and the folder `state` for its checkpoints.

    `command` is the key of the same command, whatever the base: what its adapter is known by.
    """

    settings: TrainSettings
    folder: Path
    split: Split
    base: Base
    run: str
    state: Path
    command: str = ""

    def introduce(self, talk: Talk) -> None:
        """Say what it works with."""
        base, split = self.base, self.split
        talk.say(f"base     {base.name}: {base.parameters / 1e6:.1f} M parameters, {base.dtype}, {base.licence}")
        talk.say(
            f"rows     {len(split.train):,} to learn from, {len(split.validation):,} to choose by, "
            f"{len(split.test):,} held out"
        )

    def size(self, talk: Talk, kind: str, numbers: int, payload: int) -> None:
        """Say what is trained; `payload` in bytes."""
        talk.say(f"adapter  {kind}: {numbers:,} numbers of {self.base.parameters:,} ({size(payload)} of payload)")

    def end(
        self,
        examiner: Examiner,
        trained: Trained,
        seeds: dict[int, float],
        talk: Talk,
        *,
        settings: TrainSettings | None = None,
        extras: Sequence[Extra] = (),
        remarks: Sequence[str] = (),
        last: Callable[[Card, System, System], tuple[Card, Sequence[Extra]]] | None = None,
    ) -> Card:
        """Keep the adapter, prove it (`settings`: those it was trained with, if others), and remove the run's state.

        `last` may add to card and report: see `prove`.
        """
        from whit.verbs.prove import prove

        trained.adapter.save(self.folder)
        remove_other_kind(self.folder, trained.adapter)
        atomic_seen(self.folder, self.split)
        for remark in remarks:
            talk.say(f"note: {remark}")
        card = prove(
            settings or self.settings, examiner, self.split, trained, seeds, self.folder, talk,
            extras=extras, remarks=remarks, last=last, run=self.command,
        )  # fmt: skip
        for leftover in self.state.glob("*"):
            leftover.unlink()
        self.state.rmdir()
        return card


def start(
    settings: TrainSettings,
    talk: Talk,
    *,
    split: Callable[[TrainSettings, Talk], Split] | None = None,
    load: Callable[[], Base] | None = None,
) -> Start:
    """Read and split the rows, then load the base. Raises `UsageError`, `DataError`, `BaseError`.

    Its settings are those given, with what they leave to the base.
    """
    from whit.evaluation.scoring import require_known
    from whit.training.reward import PROMPTS
    from whit.training.sft import default_batch

    folder = out_folder(settings)
    rows = (split or read_and_split)(settings, talk)
    command = command_key(settings, rows)
    require_replaceable(folder, settings, command)
    if not settings.reward:  # which has a say in what proves it, and has said it
        require_known(settings.score)
    plainly = functools.partial(
        common.open_base, settings.base, dtype=settings.dtype, device=settings.device, threads=settings.threads,
        talk=talk,
    )  # fmt: skip
    base = (load or plainly)()
    settings = replace(settings, batch=settings.batch or (PROMPTS if settings.reward else default_batch(base)))
    run = run_key(settings, rows, base)
    return Start(settings, folder, rows, base, run, state_folder(folder, settings, run), command)


def best_of_seeds(
    settings: TrainSettings,
    plan: P,
    fresh: Callable[[int], Bound],
    one: Callable[[Bound, P, str], R],
    trained: Callable[[R], Trained],
    talk: Talk,
    *,
    keep: Callable[[Sequence[R]], R] | None = None,
) -> tuple[R, dict[int, float]]:
    """Train every seed by `one`; what scores best on validation (or what `keep` makes of them), and every seed's score.

    `one` is given a fresh adapter, the seed's plan and what to call the run; `trained` looks into what it gives.
    """
    from whit.training.checkpoint import reached
    from whit.training.loop import with_seed

    every: list[R] = []
    scores: dict[int, float] = {}
    for seed in range(settings.seed, settings.seed + settings.seeds):
        name = "training" if settings.seeds == 1 else f"seed {seed}"
        own = with_seed(plan, seed)
        known = reached(own.checkpoint, run=own.run)
        if known:
            talk.say(f"{name}: goes on from step {known[0]:,} of {known[1]:,}")
        bound = fresh(seed)
        try:
            every.append(one(bound, own, name))
        finally:
            bound.detach()
        about = trained(every[-1])
        scores[seed] = about.best.score
        early = ", stopped early" if about.stopped_early else ""
        talk.say(
            f"{name}: best {100 * about.best.score:.1f} on validation at step {about.best.step} "
            f"({clock(about.seconds)}{early})"
        )
    if keep is not None:
        return keep(every), scores
    return max(every, key=lambda found: trained(found).best.score), scores


def best_or_mean(
    every: Sequence[Trained], fresh: Callable[[], Bound], score: Callable[[Bound], float], talk: Talk
) -> Trained:
    """The best of several seeds, or the mean of their adapters where that scores no worse on validation.

    `fresh` makes an adapter to try the mean in. Adapters that have no mean (`lora`) are as if there were none.
    """
    from whit.adapters.adapter import Adapter

    best = max(every, key=lambda trained: trained.best.score)
    mean = Adapter.mean([trained.adapter for trained in every]) if len(every) > 1 else None
    if mean is None:
        return best
    bound = fresh()
    try:
        bound.load(mean)
        found = score(bound)
    finally:
        bound.detach()
    talk.say(f"the mean of {len(every)} seeds: {100 * found:.1f} on validation")
    if found < best.best.score:
        return best
    return replace(best, adapter=mean, best=replace(best.best, score=found), mean_of=len(every))


def chosen_places(
    start: Start,
    targets: Sequence[Target],
    numbers: int,
    losses: Callable[[], Sequence[Callable[[], torch.Tensor]]],
    rate: float,
    talk: Talk,
) -> SparseSpec:
    """The weights of a sparse adapter: those that this run chose already, or chosen now and kept with its state."""
    import numpy as np

    from whit.adapters.adapter import Adapter
    from whit.files import atomic_write
    from whit.training.sparse import find_places

    kept = start.state / f"places-{start.run[:16]}.whit"
    known = Adapter.load(kept).sparse if kept.is_file() else None
    if known is not None:
        return known
    with talk.task(f"Choosing {numbers:,} weights"):
        spec = find_places(start.base, targets, numbers, losses(), rate=rate)
    atomic_write(kept, Adapter.from_sparse(spec, np.zeros(numbers, np.float32), start.base).to_bytes())
    return spec


def out_folder(settings: TrainSettings) -> Path:
    """The folder to write to. Raises `UsageError` where that is the data, a file, or no name to print."""
    folder = settings.out or Path(settings.data.stem)
    if any(unicodedata.category(each) in ("Cc", "Zl", "Zp") for each in str(folder)):
        raise UsageError(f"{str(folder)!r} has control characters in it; name another folder with --out")
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


def read_and_split(settings: TrainSettings, talk: Talk) -> Split:
    """The rows and their split, before anything else is done. Raises `DataError`."""
    reading = read(
        settings.data,
        prompt_column=settings.prompt_column,
        completion_column=settings.completion_column,
        group_column=settings.group_column,
        limit=settings.limit,
    )
    for note in reading.notes:
        talk.say(f"note: {note}")
    if settings.test_data is None:
        split = split_rows(reading.rows, validation=settings.validation, test=settings.test, seed=settings.seed)
        if not split.test:
            raise DataError("0 held-out rows: nothing could be proved; give --test a share above 0, or --test-data")
    else:
        held = read(
            settings.test_data,
            prompt_column=settings.prompt_column,
            completion_column=settings.completion_column,
            group_column=settings.group_column,
        ).rows
        rows = without_held_out(reading.rows, held, settings, talk)
        kept = split_rows(rows, validation=settings.validation, test=0.0, seed=settings.seed)
        split = Split(kept.train, kept.validation, held)
    if not split.validation:
        raise DataError("0 validation rows: no step could be chosen; give --validation a share above 0")
    if not split.train or not split.test:
        raise DataError("after splitting there is nothing to learn from or nothing to prove with; give more rows")
    return split


def without_held_out(rows: Sequence[Row], held: Sequence[Row], settings: TrainSettings, talk: Talk) -> tuple[Row, ...]:
    """The rows of which `--test-data` has nothing like it; that file stays whole. Raises `DataError` for none."""
    generated = any("gym:" in text for text in settings.reward)  # told apart by their numbers alone
    kept, why = hold_apart(rows, held, near_duplicates=not generated)
    if not why:
        return kept
    told = {"repeat": "stand in", "near": "nearly stand in", "group": "are of a group of"}
    name = settings.test_data.name if settings.test_data else ""
    listed = ", ".join(f"{why[kind]:,} {said}" for kind, said in told.items() if why[kind])
    counted = f"{why.total():,} of {len(rows):,} rows are left out of training: {listed} {name}"
    if not kept:
        raise DataError(f"{settings.data}: {counted}; give held-out rows that differ from these")
    talk.say(f"note: {counted}")
    return kept


def run_key(settings: TrainSettings, split: Split, base: Base) -> str:
    """What makes a run the same run: settings, rows and base."""
    digest = _digest(settings, split)
    digest.update(base.fingerprint.encode() + base.dtype.encode())
    return digest.hexdigest()


def command_key(settings: TrainSettings, split: Split) -> str:
    """What makes a command the same command, as far as is known before the base is: settings and rows."""
    return _digest(settings, split).hexdigest()


def _digest(settings: TrainSettings, split: Split) -> hashlib._Hash:
    plain = {key: value for key, value in as_plain(settings).items() if key not in _NOT_PART_OF_A_RUN}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for rows in (split.train, split.validation, split.test):
        for row in rows:
            digest.update(f"\n{row.id}\0{content_key(row.turns)}\0{row.completion}".encode())
    return digest


def state_folder(folder: Path, settings: TrainSettings, run: str) -> Path:
    """The folder for checkpoints. Raises `UsageError` where an interrupted run lies there that was not asked for."""
    state = folder / _STATE
    if not settings.resume and any(state.glob("*.safetensors")):
        raise UsageError(
            f"{state}: an interrupted run is here; go on with --resume, remove that folder to start anew, "
            "or choose another --out"
        )
    return state


def atomic_seen(folder: Path, split: Split) -> None:
    """Keep hashes of the rows that training and choosing saw, so that `whit eval` knows them again.

    A line has that of the input, and that of the input without its punctuation.
    """
    from whit.files import atomic_write

    keys = sorted({f"{common.seen_key(row)} {common.plain_key(row)}" for row in (*split.train, *split.validation)})
    atomic_write(folder / common.SEEN_NAME, "\n".join(keys) + "\n")
