"""`whit check --influence`: which rows hurt an adapter, likely why, and what training without them changes.

The rows are split as training split them, by the adapter's card. Influence is taken on the validation rows, the
verdict of retraining on the rows that training held out, which neither of the two saw. Says so where the validation
rows are too few to tell single rows apart.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from whit.data.problem import Problem
from whit.data.rows import Row
from whit.errors import AdapterError, DataError, UsageError
from whit.settings import CheckSettings, TrainSettings
from whit.talk import Talk, clock
from whit.verbs import common
from whit.verbs.prove import digest_of
from whit.verbs.runs import read_and_split
from whit.verbs.train import plan_of, shape_of, train_seeds

if TYPE_CHECKING:
    from whit.adapters.adapter import Adapter
    from whit.data.splitting import Split
    from whit.data.templates import Encoded
    from whit.evaluation.card import Card
    from whit.evaluation.proof import Examiner
    from whit.evaluation.verdict import Comparison
    from whit.training.gradients import Gradients

LEAST_AGREEMENT = 0.5
_SHOWN = 10
_TEXT = 100
_SEEN = 0.9


@dataclass(frozen=True)
class Suspect:
    """A row that is doubted. `harm`: nats of a validation row's loss; `doubt` and `loss`: nats of its own answer."""

    row: Row
    doubt: float
    harm: float
    loss: float
    answer: str
    cause: str
    why: str
    removed: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        about = {"id": self.row.id, "line": self.row.line, "prompt": self.row.prompt, "completion": self.row.completion}
        found = {
            "answer": self.answer,
            "doubt": self.doubt,
            "harm": self.harm,
            "loss": self.loss,
            "cause": self.cause,
            "why": self.why,
        }
        return {**about, **found, "removed": self.removed}


@dataclass(frozen=True)
class InfluenceReport:
    """What was found. `worst` begins with the row that is doubted most; `retrained` is None where nothing was.

    `agreement` says how alike two halves of the validation rows rank the rows by harm; below `LEAST_AGREEMENT` they are
    too few to say what a single row does (`enough` is False), and `needed` is how many would do, None where that cannot
    be told. `notes` say what else is to be known: that the rows were changed since, why nothing was retrained.
    """

    adapter: str
    rows: int
    validation: int
    agreement: float
    needed: int | None
    worst: tuple[Suspect, ...]
    retrained: Comparison | None
    notes: tuple[str, ...] = ()

    @property
    def enough(self) -> bool:
        """Whether the validation rows tell rows apart."""
        return self.agreement >= LEAST_AGREEMENT

    @property
    def removed(self) -> tuple[str, ...]:
        """Ids of the rows that were left out in retraining."""
        return tuple(suspect.row.id for suspect in self.worst if suspect.removed)

    @property
    def left_out(self) -> dict[str, str]:
        """What a cleaned copy leaves out, id and cause; nothing where retraining without it `harmed`."""
        if self.retrained is not None and str(self.retrained.verdict) == "harmed":
            return {}
        return {suspect.row.id: suspect.cause for suspect in self.worst if suspect.removed}

    def to_json(self) -> dict[str, Any]:
        """The key `influence` of `whit check --json`."""
        return {
            "adapter": self.adapter,
            "rows": self.rows,
            "validation": self.validation,
            "agreement": self.agreement,
            "enough": self.enough,
            "validation_needed": self.needed,
            "worst": [suspect.to_json() for suspect in self.worst],
            "removed": list(self.removed),
            "retrained": self.retrained.to_json() if self.retrained else None,
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """A report to read."""
        lines = [f"which rows hurt {self.adapter}: {self.rows:,} rows, judged by {self.validation:,} validation rows"]
        if not self.enough:
            more = f"; about {self.needed:,} would do" if self.needed else ""
            lines.append(
                "! too few validation rows to say what a single row does to the score: two halves of them differ "
                f"on it (agreement {self.agreement:.2f}, {LEAST_AGREEMENT} is needed{more}); the order below rests on "
                "what the rows say of each other"
            )
        kinds: dict[str, int] = {}
        for suspect in self.worst:
            kinds[suspect.cause] = kinds.get(suspect.cause, 0) + 1
        counts = ", ".join(f"{kind} {count:,}" for kind, count in sorted(kinds.items(), key=lambda each: -each[1]))
        lines.append(f"the {len(self.worst):,} that are doubted most, by likely cause: {counts}")
        for suspect in self.worst[:_SHOWN]:
            row = suspect.row
            where = f"line {row.line}, " if row.line is not None else ""
            lines.append(f"- {row.id} ({where}{suspect.cause}: {suspect.why})")
            lines.append(f"    {_short(row.prompt)} → {_short(row.completion)}")
        if len(self.worst) > _SHOWN:
            lines.append(f"  … and {len(self.worst) - _SHOWN:,} more; --json lists all")
        if self.retrained is not None:
            said = self.retrained.sentence(
                tuned=f"retraining without {len(self.removed):,} rows", base="training on all"
            )
            lines.append(said)
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def find_influence(settings: CheckSettings, problems: Sequence[Problem], talk: Talk) -> InfluenceReport:
    """Which of the rows that `settings.adapter` was trained on hurt it.

    Raises `UsageError`, `AdapterError` (no card, baked, trained by reward or for users), `DataError` (other rows than
    it was trained on, too few validation rows), `TrainingError`.
    """
    if settings.adapter is None:
        raise UsageError("--influence needs the adapter that was trained on these rows: add --adapter FOLDER")
    special = common.open_specialist(settings.adapter)
    card = special.card
    if card is None or special.folder is None:
        raise AdapterError(f"{settings.adapter}: --influence needs the folder that whit train made, with its card.json")
    if ":" in str(card.settings.get("score", "")) and settings.score is None:
        # A card may come from anyone, and a name in it must not choose what code is run.
        raise UsageError(f"scored with {str(card.settings['score'])[:80]!r}: say it again with --score to have it run")
    trained_with = settings_of(card, special.adapter, settings)
    split = read_and_split(trained_with, Talk(quiet=True))
    _require_seen(settings, split, special.folder)
    notes = []
    if card.data.sha256 != digest_of(split):
        notes.append(
            "these rows are not quite those that it was trained on (their SHA-256 is another): where answers were "
            "changed since, what is said of them is about the new ones"
        )
        talk.say(f"note: {notes[0]}")
    base = common.open_base(
        special.base_name(settings.base), dtype=trained_with.dtype, threads=settings.threads, talk=talk
    )

    from whit.evaluation.causes import Causes
    from whit.evaluation.proof import Examiner, longest_answer
    from whit.evaluation.scoring import make_scorer
    from whit.training.gradients import row_gradients
    from whit.training.influence import influence, rows_wanted

    scorer = make_scorer(trained_with.score, split.train)
    most = trained_with.max_tokens or longest_answer(split.train, base)
    examiner = Examiner(base, scorer, card.instruction or None, most)
    encoded, judges = examiner.encode(split.train, learn=True), examiner.encode(split.validation, learn=True)
    with common.bound_to(base, special.adapter, check=False) as bound:

        def gradients(name: str, rows: Sequence[Encoded]) -> Gradients:
            with talk.task(f"Gradients of {len(rows):,} {name} rows"):
                return row_gradients(base, bound, rows)

        # The few come first: what they cannot say ends the command before the long part.
        judged = gradients("validation", judges)
        learned = gradients("training", encoded)
        found = influence(learned, judged, doubted=1.5 * settings.share)
        order = found.doubt.argsort(descending=True).tolist()
        worst = order[: max(1, round(settings.share * len(order)))]
        with talk.task(f"Answers of the {len(worst):,} rows that are doubted most"):
            answers = examiner.answer(examiner.encode([split.train[at] for at in worst]), bound)
        causes = Causes(split.train, problems, dict(zip(learned.ids, found.leverage.tolist(), strict=True)))
        suspects = []
        for at, answer in zip(worst, answers, strict=True):
            row = split.train[at]
            cause = causes.of(row, answer, scorer)
            doubt, harm, loss = (float(part[at]) for part in (found.doubt, found.harm, learned.losses))
            removed = cause.kind != "unclear"
            suspects.append(Suspect(row, doubt, harm, loss, answer, cause.kind, cause.why, removed))
        left_out = {suspect.row.id for suspect in suspects if suspect.removed}
        why_not = _why_not(card, left_out)
        retrain = settings.retrain and why_not is None
        # The adapter's score before, on rows that neither it nor the influence saw.
        before = _scores(examiner, split.test, bound, talk) if retrain else []
    if settings.retrain and why_not:
        notes.append(why_not)
    retrained = None
    if retrain:
        talk.say(f"training again without {len(left_out):,} rows{_as_long(card)}")
        kept = replace(split, train=tuple(row for row in split.train if row.id not in left_out))
        retrained = _retrain(trained_with, examiner, kept, before, talk)
    enough = found.agreement >= LEAST_AGREEMENT
    needed = None if enough else rows_wanted(found.agreement, len(judges), least=LEAST_AGREEMENT)
    return InfluenceReport(
        settings.adapter,
        len(split.train),
        len(judges),
        found.agreement,
        needed,
        tuple(suspects),
        retrained,
        tuple(notes),
    )


def settings_of(card: Card, adapter: Adapter, settings: CheckSettings) -> TrainSettings:
    """The settings of the card's adapter, on `settings.data`. Raises `AdapterError`, `UsageError`."""
    if card.baked:
        raise AdapterError("--influence works on adapters that learned the rows' own answers; this one was baked")
    hints = get_type_hints(TrainSettings)
    given: dict[str, Any] = {}
    for name, value in card.settings.items():
        if name not in hints or name in ("data", "out", "resume", "test_data", "threads"):
            continue
        given[name] = tuple(value) if isinstance(value, list) else value
        if not _fits(hints[name], given[name]):
            raise AdapterError(f"the card's setting {name} is {str(value)[:60]!r}; make it again with whit train")
    if given.get("reward") or given.get("per"):
        raise AdapterError("--influence works on adapters that learned the rows' own answers, in one vector or LoRA")
    if given.get("kind") == "auto":
        shape = adapter.spec or adapter.lora
        given |= {"kind": card.kind, "rank": shape.rank if shape else None}
        given["numbers"] = card.numbers if card.kind == "tiny" else None
    if settings.score:
        given["score"] = settings.score
    held_out = settings.held_out
    if card.settings.get("test_data") and held_out is None:
        beside = Path(settings.data).parent / str(card.settings["test_data"])
        if not beside.is_file():
            raise UsageError(f"the adapter was proved on {beside.name}; say where it is with --held-out FILE")
        held_out = beside
    columns = {name: getattr(settings, name) for name in ("prompt_column", "completion_column")}
    given |= {name: value for name, value in columns.items() if value}
    return TrainSettings(data=Path(settings.data), test_data=held_out, threads=settings.threads, **given)


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value from a card is of a setting's type."""
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(get_args(hint)[0], item) for item in value)
    options = get_args(hint) or (hint,)
    return type(value) in options or (type(value) is int and float in options)


def _require_seen(settings: CheckSettings, split: Split, folder: Path) -> None:
    path = folder / common.SEEN_NAME
    if not path.is_file():
        raise AdapterError(f"{folder}: {common.SEEN_NAME} is gone, so the rows it was trained on are not known")
    seen = set(path.read_text("ascii", errors="replace").split())
    count = sum(common.seen_key(row) in seen for row in split.train)
    if count < _SEEN * len(split.train):
        raise DataError(
            f"{settings.data}: {settings.adapter} was trained on {count:,} of these {len(split.train):,} rows; give the"
            " file that it was trained on"
        )


def _why_not(card: Card, left_out: Collection[str]) -> str | None:
    """Why nothing is trained again; None where it is."""
    if not left_out:
        return "nothing was retrained: none of these rows has a likely cause, so that none would be left out"
    if card.kind == "sparse":
        return "nothing was retrained: the weights of a sparse adapter are chosen anew by whit train alone"
    return None


def _scores(examiner: Examiner, rows: Sequence[Row], bound: Any, talk: Talk) -> list[Any]:
    with talk.task(f"{len(rows):,} held-out rows: the adapter"):
        return list(examiner.system("the adapter", "adapter", rows, bound=bound).scores)


def _retrain(
    settings: TrainSettings, examiner: Examiner, split: Split, before: Sequence[Any], talk: Talk
) -> Comparison:
    from whit.evaluation.verdict import compare

    fresh, _, kind, _ = shape_of(settings, examiner.base)
    encoded = examiner.encode(split.train, learn=True)
    plan = replace(plan_of(settings, kind, examiner.base, len(encoded), "", Path()), checkpoint=None)
    trained, _ = train_seeds(settings, examiner, fresh, encoded, split, plan, talk)
    with common.bound_to(examiner.base, trained.adapter, check=False) as bound:
        after = _scores(examiner, split.test, bound, talk)
    return compare(before, after, graded=examiner.scorer.graded, seed=settings.seed)


def _as_long(card: Card) -> str:
    return f": training took {clock(card.cost.seconds)}" if card.cost else ""


def _short(text: str) -> str:
    from whit.data import secrets

    shown = " ".join(secrets.mask(text).split())
    return shown[:_TEXT] + ("…" if len(shown) > _TEXT else "")
