"""`whit eval`: is it better on these rows, by how much, and how sure is that?

Rows that training saw are left out, and that is said. The exit code is the verdict's: 0 helped, 10 no worse,
11 harmed, 12 not enough data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.data.rows import Row, read
from whit.errors import DataError
from whit.settings import EvalSettings
from whit.talk import Talk, several
from whit.verbs import common

if TYPE_CHECKING:
    from whit.evaluation.verdict import Comparison


@dataclass(frozen=True)
class EvalResult:
    """A verdict on new rows. `left_out` counts rows that training had seen.

    `nearly_seen` counts rows that were kept, though but for case, spacing and punctuation training had seen them.
    """

    adapter: str
    result: Comparison
    baselines: dict[str, Comparison]
    left_out: int
    nearly_seen: int = 0

    def to_json(self) -> dict[str, Any]:
        """The contract of `whit eval --json`."""
        found = common.verdict_json(self.result, self.baselines, self.adapter)
        return {**found, "left_out": self.left_out, "nearly_seen": self.nearly_seen}

    def to_text(self) -> str:
        """The verdict in words."""
        lines = [self.result.sentence()]
        lines += [found.sentence(base=f"the {name}") for name, found in self.baselines.items()]
        if self.left_out:
            lines.append(f"Left out, for training had seen their input: {several(self.left_out, 'row')}.")
        if self.nearly_seen:
            count = f"{self.nearly_seen:,} of the {several(self.result.rows, 'row')}"
            lines.append(f"Like rows that training had seen but for case, spacing and punctuation: {count}.")
        return "\n".join(lines)

    @property
    def exit_code(self) -> int:
        """The verdict's."""
        return self.result.verdict.exit_code


def evaluate(settings: EvalSettings, *, talk: Talk | None = None) -> EvalResult:
    """Compare an adapter with its base on rows that training never saw.

    Raises `DataError` where no such row is left, and `AdapterError` or `BaseError` where one does not fit the other.
    """
    talk = talk or Talk(quiet=True)
    common.require_finite(settings)
    special = common.open_specialist(settings.adapter)
    rows = read(
        settings.data,
        prompt_column=settings.prompt_column,
        completion_column=settings.completion_column,
        limit=settings.limit,
    ).rows
    seen = common.seen_by(special.folder)
    fresh = tuple(row for row in rows if common.seen_key(row) not in seen)
    nearly = sum(common.plain_key(row) in seen for row in fresh)
    if not fresh:
        raise DataError(f"{settings.data}: training has seen all of it ({len(rows):,}); give rows that it never saw")
    if len(fresh) < len(rows):
        talk.say(f"seen in training and left out: {len(rows) - len(fresh):,} of {several(len(rows), 'row')}")
    from whit.evaluation.proof import Examiner, longest_answer, null_adapter
    from whit.evaluation.scoring import restore_scorer
    from whit.evaluation.verdict import compare
    from whit.rewards.terms import named_scorer

    card = special.card
    if settings.score or card is None or not card.scorer:
        scorer = named_scorer(settings.score or "auto", fresh)
    else:
        scorer = restore_scorer(card.scorer)
    base = common.open_base(
        special.base_name(settings.base), dtype=settings.dtype, device=settings.device, threads=settings.threads,
        talk=talk,
    )  # fmt: skip
    instruction = settings.instruction or special.instruction
    known = card.settings.get("max_tokens") if card else None
    most = settings.max_tokens or (int(known) if isinstance(known, int) else longest_answer(fresh, base))
    examiner = Examiner(base, scorer, instruction, most)
    with common.bound_to(base, special.adapter) as bound, talk.task(f"{several(len(fresh), 'row')}: the adapter"):
        tuned = examiner.system("the adapter", "adapter", fresh, bound=bound)
    with talk.task("  the base"):
        bare = examiner.system("the base", "base", fresh)
    result = compare(bare.scores, tuned.scores, graded=scorer.graded)
    others = []
    if settings.baselines:
        with talk.task("  a null adapter"), common.bound_to(base, null_adapter(special.adapter), check=False) as null:
            others.append(examiner.system("null adapter", "null", fresh, bound=null))
    against = {other.name: compare(other.scores, tuned.scores, graded=scorer.graded) for other in others}
    if settings.report:
        _report(settings.report, special, fresh, bare, tuned, others, result, against)
        talk.say(f"report: {settings.report}")
    return EvalResult(settings.adapter, result, against, len(rows) - len(fresh), nearly)


def _report(
    path: Path,
    special: common.Specialist,
    rows: tuple[Row, ...],
    bare: Any,
    tuned: Any,
    others: list[Any],
    result: Comparison,
    against: dict[str, Comparison],
) -> None:
    from whit.evaluation.report import Report, save_report

    if special.card is None:
        raise DataError("--report needs the adapter's card; give the folder that `whit train` made")
    card = replace(special.card, result=result, baselines=against)
    save_report(Report(card=card, rows=rows, base=bare, tuned=tuned, others=others), path)
