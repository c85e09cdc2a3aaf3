"""`whit sweep grid.toml`: many variants of the settings, a table and a figure of them, and the winner proved.

Variants are trained here one after another, or side by side on a Ray cluster (`--ray`); all of them see the same
training rows and are compared on the same validation rows. What scores best there is the winner (among equals the
smaller), and the verdict on it is on held-out rows, which no variant ever saw. A variant that fails is a line of the
table, not the end.

`--halvings N` is successive halving in rungs, as `--kind auto` has it: every variant on a 2⁻ᴺ share of its steps, with
a schedule of its own, then the better half on twice as many. Ray Tune's ASHA is not used: it decides by who comes
first, so that a sweep would not give the same result twice, and it brings pandas and pyarrow for a sort.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from whit.errors import Interrupted, TrainingError, UsageError, WhitError
from whit.files import atomic_write
from whit.settings import SweepSettings, as_plain
from whit.talk import Talk, clock
from whit.verbs import common, runs
from whit.verbs.folders import require_own_readme
from whit.verbs.grid import Variant, read_grid
from whit.verbs.remote import Stopped
from whit.verbs.train import TrainResult
from whit.verbs.trial import TRIAL_NAME, Trial, figure, prove_winner, try_variant

if TYPE_CHECKING:
    from whit.evaluation.card import Card

TABLE_NAME, FIGURE_NAME, FOLDER = "sweep.json", "sweep.svg", "variants"


@dataclass(frozen=True)
class SweepResult(TrainResult):
    """What a sweep made: the winner's folder, card and adapter, and what came of every variant, the best first."""

    variants: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """The contract of `whit train --json`, and `variants`."""
        return {**super().to_json(), "variants": self.variants}

    def to_text(self) -> str:
        """The table, then what `train` says."""
        width = max(len("variant"), *(len(row["name"]) for row in self.variants))
        lines = [f"{'variant':<{width}}  {'numbers':>10} {'bytes':>10} {'validation':>10}  {'95 %':<13} trained"]
        for row in self.variants:
            if row["error"]:
                lines.append(f"{row['name']:<{width}}  failed: {row['error']}")
                continue
            low, high = (100 * bound for bound in row["interval"])
            mark = "  <- kept" if row["kept"] else ""
            lines.append(
                f"{row['name']:<{width}}  {row['numbers']:>10,} {row['payload_bytes']:>10,} "
                f"{100 * row['score']:>10.1f}  {f'{low:.1f} to {high:.1f}':<13} {100 * row['share']:.0f} % of its "
                f"steps, {clock(row['seconds'])}{mark}"
            )
        return "\n".join(lines) + f"\nfigure: {self.folder / FIGURE_NAME}\n\n{super().to_text()}"


class Place(Protocol):
    """Where variants are tried: here, or on a cluster."""

    def try_all(self, variants: Sequence[Variant], share: float) -> Iterator[tuple[Variant, Trial | WhitError]]:
        """Try each on that share of its steps, as they end."""

    def prove(self, winner: Variant, trials: Sequence[Trial], remarks: Sequence[str]) -> Card:
        """Prove the winner, into the sweep's folder."""


def sweep(settings: SweepSettings, *, talk: Talk | None = None) -> SweepResult | Stopped:
    """Try every variant of the grid, keep the best on validation, and prove it.

    Raises `UsageError`, `DataError`, `TrainingError` where every variant failed, `ClusterError`, `Interrupted`.
    """
    talk = talk or Talk(quiet=True)
    variants = read_grid(settings)
    folder = runs.out_folder(variants[0].settings)
    require_own_readme(folder)
    if (
        not (settings.resume or settings.stop)
        and (folder / common.CARD_NAME).exists()
        and not (folder / TABLE_NAME).exists()
    ):
        raise UsageError(f"{folder} holds an adapter that no sweep made; choose another --out, or remove it")
    runs.read_and_split(variants[0].settings, talk)  # rows that cannot be used are told before anything is begun
    if settings.ray:
        from whit.verbs.remote_sweep import swept

        return swept(settings, variants, lambda place: _swept(settings, variants, place, folder, talk), talk)
    if settings.stop:
        raise UsageError("--stop ends a run on a cluster: name it with --ray")
    return _swept(settings, variants, Here(settings, folder, talk), folder, talk)


def _swept(settings: SweepSettings, variants: Sequence[Variant], place: Place, folder: Path, talk: Talk) -> SweepResult:
    found, failed = climb(variants, settings.halvings, place, talk)
    if not found:
        name, why = next(iter(failed.items()))
        raise TrainingError(f"every one of the {len(variants)} variants failed; {name}: {why}")
    # Those on more of their steps have beaten the others already.
    most = max(trial.share for trial in found.values())
    ranked = sorted(found.values(), key=lambda trial: (-trial.share, -trial.score, trial.payload))
    winner = ranked[0]
    variant = next(each for each in variants if each.name == winner.name)
    card = place.prove(variant, ranked, remarks_on(ranked, winner, failed))
    from whit.adapters.adapter import Adapter

    table = [_row(trial, winner) for trial in ranked] + [_failed(name, why) for name, why in failed.items()]
    drawn = drawing([trial for trial in ranked if trial.share == most] or ranked, winner)
    atomic_write(folder / FIGURE_NAME, drawn)
    about = {"contract": common.CONTRACT, "grid": settings.grid.name, "winner": winner.name, "variants": table}
    atomic_write(folder / TABLE_NAME, json.dumps(about, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return SweepResult(folder, card, Adapter.load(folder), table)


def climb(
    variants: Sequence[Variant], halvings: int, place: Place, talk: Talk
) -> tuple[dict[str, Trial], dict[str, str]]:
    """Successive halving; each variant as it was last trained, and why others failed, by name."""
    found: dict[str, Trial] = {}
    failed: dict[str, str] = {}
    alive = list(variants)
    for turn in range(halvings, -1, -1):
        share = 0.5**turn
        part = "" if halvings == 0 else f" on {100 * share:.3g} % of their steps"
        talk.say(f"sweep    {len(alive)} variants{part}")
        for variant, outcome in place.try_all(alive, share):
            if isinstance(outcome, WhitError):
                failed[variant.name] = str(outcome)
                found.pop(variant.name, None)
                talk.say(f"  {variant.name}: failed: {outcome}")
            else:
                found[variant.name] = outcome
                talk.say(f"  {variant.name}: {100 * outcome.score:.1f} on validation ({clock(outcome.seconds)})")
        alive = [each for each in alive if each.name not in failed]
        if turn:
            order = sorted(alive, key=lambda each: (-found[each.name].score, found[each.name].payload))
            going = {each.name for each in order[: max(2, (len(alive) + 1) // 2)]}
            alive = [each for each in alive if each.name in going]
    return found, failed


def remarks_on(trials: Sequence[Trial], winner: Trial, failed: Mapping[str, str]) -> list[str]:
    """What the choice rests on: who else might be as good."""
    from whit.evaluation.verdict import Verdict, compare

    rows = len(winner.values)
    even = [
        trial for trial in trials
        if trial is not winner and compare(winner.scores, trial.scores).verdict is not Verdict.HARMED
    ]  # fmt: skip
    said = [
        f"{winner.name} scored best of {len(trials)} variants on {rows} validation rows ({100 * winner.score:.1f}), "
        "which is more than it would on others: it was chosen for it. The verdict is on rows that chose nothing."
    ]
    if even:
        least = min(even, key=lambda trial: trial.payload)
        smaller = (
            f"; the smallest is {least.name} with {least.payload:,} bytes" if least.payload < winner.payload else ""
        )
        others = "1 other is" if len(even) == 1 else f"{len(even)} others are"
        said.append(f"{others} not separably worse on these rows{smaller}.")
    if failed:
        others = "1 variant failed and was" if len(failed) == 1 else f"{len(failed)} variants failed and were"
        said.append(f"{others} left out: {', '.join(failed)}.")
    return said


def drawing(trials: Sequence[Trial], winner: Trial) -> str:
    """The figure as a file of its own."""
    from whit.evaluation.scatter import Dot, scatter

    dots = [
        Dot(trial.name, trial.payload, trial.score, *trial.interval, kept=trial is winner) for trial in trials
    ]  # fmt: skip
    scored = f"score on {len(winner.values)} validation rows, with 95 % intervals"
    return scatter(dots, title=f"{len(trials)} variants", scored=scored)


class Here:
    """Variants one after another in this process. One that is done is not done again."""

    def __init__(self, settings: SweepSettings, folder: Path, talk: Talk) -> None:
        self._settings, self._folder, self._talk = settings, folder, talk
        if not settings.resume and (folder / FOLDER).is_dir() and any((folder / FOLDER).iterdir()):
            raise UsageError(
                f"{folder / FOLDER}: variants of an earlier sweep are here; go on with --resume, remove that folder to "
                "start anew, or choose another --out"
            )

    def try_all(self, variants: Sequence[Variant], share: float) -> Iterator[tuple[Variant, Trial | WhitError]]:
        """Try each on that share of its steps."""
        for at, variant in enumerate(variants):
            known = self._known(variant, share)
            if known is not None:
                yield variant, known
                continue
            self._talk.say(f"variant {at + 1} of {len(variants)}: {variant.name}")
            own = replace(variant.settings, out=self._folder / FOLDER / variant.slug, threads=self._settings.threads)
            try:
                trial = try_variant(variant.name, own, share, self._talk)
            except Interrupted:
                raise
            except WhitError as error:
                yield variant, error
                continue
            atomic_write(self._mark(variant), _key(variant))
            atomic_write(self._done(variant, share), trial.to_json())
            yield variant, trial

    def prove(self, winner: Variant, trials: Sequence[Trial], remarks: Sequence[str]) -> Card:
        """Prove the winner, into the sweep's folder."""
        best = next(trial for trial in trials if trial.name == winner.name)
        settings = replace(winner.settings, out=self._folder, threads=self._settings.threads)
        place = self._folder / FOLDER / winner.slug
        return prove_winner(settings, place, best, [figure(trials, best)], remarks, self._talk)

    def _mark(self, variant: Variant) -> Path:
        return self._folder / FOLDER / variant.slug / "settings.sha256"

    def _done(self, variant: Variant, share: float) -> Path:
        # Of each rung: a sweep that goes on must halve as it did before.
        return self._folder / FOLDER / variant.slug / f"{round(100 * share)}-{TRIAL_NAME}"

    def _known(self, variant: Variant, share: float) -> Trial | None:
        place = self._done(variant, share)
        if not place.is_file() or not self._mark(variant).is_file():
            return None
        if self._mark(variant).read_text("utf-8") != _key(variant):
            raise UsageError(f"{place.parent}: made from other rows or settings; remove it, or choose another --out")
        return Trial.from_json(place.read_text("utf-8"))


def _key(variant: Variant) -> str:
    """What a variant's result depends on: its settings and rows."""
    import hashlib

    plain = {k: v for k, v in as_plain(variant.settings).items() if k not in ("out", "threads", "resume", "data")}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for path in (variant.settings.data, variant.settings.test_data):
        for each in sorted(path.rglob("*")) if path is not None and path.is_dir() else [path] if path else []:
            if each.is_file():
                digest.update(each.read_bytes())
    return digest.hexdigest()


def _row(trial: Trial, winner: Trial) -> dict[str, Any]:
    return {
        "name": trial.name, "kind": trial.kind, "numbers": trial.numbers, "payload_bytes": trial.payload,
        "score": trial.score, "interval": list(trial.interval), "rows": len(trial.values), "share": trial.share,
        "seconds": trial.seconds, "kept": trial is winner, "error": None,
    }  # fmt: skip


def _failed(name: str, why: str) -> dict[str, Any]:
    nothing = dict.fromkeys(("kind", "numbers", "payload_bytes", "score", "interval", "rows", "share", "seconds"))
    return {"name": name, **nothing, "kept": False, "error": why}
