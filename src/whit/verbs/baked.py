"""What `whit bake` found: agreement with the teacher, gold answers, what a request saves, and what was lost.

Compares and times after training, keeps it in card, report and `bake.json`, and tells it as text and JSON. Knows
nothing of training.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.data.rows import Row
from whit.data.splitting import Split
from whit.errors import DataError
from whit.files import atomic_write
from whit.settings import BakeSettings
from whit.talk import Talk, several
from whit.verbs import common, runs
from whit.verbs.prove import command_of

if TYPE_CHECKING:
    from whit.adapters.tunable import Bound
    from whit.bases import Base
    from whit.data.templates import Encoded
    from whit.evaluation.card import Card
    from whit.evaluation.proof import Examiner
    from whit.evaluation.report import Extra, System
    from whit.evaluation.scoring import Scorer
    from whit.evaluation.verdict import Comparison
    from whit.training.loop import Trained

REPORT_NAME = "bake.json"
_TIMED = 8
_SHOWN = 5


@dataclass(frozen=True)
class Saved:
    """Of one request, in the mean (tokens) and the median (milliseconds, one request at a time, nothing cached).

    Milliseconds are those of the prompt and of `answer_tokens` tokens, however soon either would have ended.
    """

    tokens_with: float
    tokens_without: float
    ms_with: float
    ms_without: float
    answer_tokens: int

    def to_json(self) -> dict[str, float]:
        """Plain values, with the shares that are saved."""
        return {
            **vars(self),
            "tokens_saved": 1 - self.tokens_without / self.tokens_with,
            "ms_saved": self.ms_with - self.ms_without,
        }

    def sentence(self) -> str:
        """What a request saves, or costs more."""
        spared, ms = 1 - self.tokens_without / self.tokens_with, self.ms_with - self.ms_without
        clock = (
            f", {ms:.0f} of {self.ms_with:.0f} ms"
            if ms >= 0
            else f"; it costs {-ms:.0f} ms more than {self.ms_with:.0f}"
        )
        return (
            f"Saved on each request: {self.tokens_with - self.tokens_without:.0f} of {self.tokens_with:.0f} prompt "
            f"tokens ({100 * spared:.0f} %){clock} (answers of {self.answer_tokens:,} tokens, one at a time; a server "
            "that keeps the instruction's cache saves less)"
        )


@dataclass(frozen=True)
class BakeResult:
    """What `bake` made. `card.result` compares base and adapter by how often they answer as the teacher does.

    `first` compares base and teacher on gold answers before training; `gold` teacher and adapter on held-out ones, both
    None where the inputs have none. `lost` are held-out rows that the teacher had right and the adapter has wrong.
    `cut` says how many of the teacher's answers its limit of tokens cut off.
    """

    folder: Path
    card: Any
    adapter: Any
    teacher: str
    saved: Saved
    first: Comparison | None
    gold: Comparison | None
    bare_gold: float | None
    lost: tuple[tuple[Row, str], ...]
    cut: int = 0

    def to_json(self) -> dict[str, Any]:
        """The contract of `whit bake --json`."""
        found = common.verdict_json(self.card.result, self.card.baselines, str(self.folder))
        about = self.adapter.describe()
        return {
            **found,
            **{key: about[key] for key in ("kind", "numbers", "payload_bytes")},
            "teacher": self.teacher,
            "cut": self.cut,
            "agreement": self.card.result.tuned,
            "base_agreement": self.card.result.base,
            "saved": self.saved.to_json(),
            "before": self.first.to_json() if self.first else None,
            "gold": {**self.gold.to_json(), "bare": self.bare_gold} if self.gold else None,
            "lost": [{"id": row.id, "prompt": row.prompt, "completion": row.completion, "answer": answer}
                     for row, answer in self.lost],
        }  # fmt: skip

    def to_text(self) -> str:
        """The verdict, what it costs, and what a request saves."""
        result, saved = self.card.result, self.saved
        lines = [
            result.sentence(base="the bare base"),
            f"It answers {result.rows:,} held-out inputs as the teacher ({self.teacher}) does in "
            f"{100 * result.tuned:.1f} % of cases, the bare base in {100 * result.base:.1f} %.",
        ]  # fmt: skip
        if self.gold is not None:
            lines.append(self.gold_words())
            lines += [
                f"  {row.id}: {_short(answer)} for {_short(row.completion)}" for row, answer in self.lost[:_SHOWN]
            ]
        lines += [
            saved.sentence(),
            "",
            f"{self.card.kind} adapter of {self.card.numbers:,} numbers: {self.folder}/",
            f"report: {self.folder / common.REPORT_NAME}",
            f'try it: whit run {self.folder} "…"',
        ]
        return "\n".join(lines)

    def gold_words(self) -> str:
        """Base, teacher and adapter on gold answers, and how many rows were lost; "" where there are none."""
        if self.gold is None:
            return ""
        share = f" ({self.gold.tuned / self.gold.base:.2f} of it)" if self.gold.base else ""
        compared = self.gold.sentence(tuned="the adapter", base="the teacher")
        return (
            f"Gold answers: bare base {100 * (self.bare_gold or 0):.1f}, teacher {100 * self.gold.base:.1f}, "
            f"adapter {100 * self.gold.tuned:.1f}{share}. {compared} "
            f"Lost: {several(len(self.lost), 'row')} that the teacher had right."
        )

    def words(self) -> str:
        """What is found but for the verdict, for card and report; no row stands in it."""
        return " ".join(filter(None, [self.gold_words(), f"{self.saved.sentence()}."]))


def report_on(
    settings: BakeSettings,
    start: runs.Start,
    trained: Trained,
    seeds: dict[int, float],
    teach: Examiner,
    examiner: Examiner,
    gold: Scorer | None,
    split: Split,
    answers: dict[str, str],
    cut: Collection[str],
    first: Comparison | None,
    teacher: str,
    remarks: Sequence[str],
    talk: Talk,
) -> BakeResult:
    """Prove the adapter, with what baking is for in card and report, and keep it all in `bake.json`."""
    from whit.evaluation.report import Extra

    found: list[BakeResult] = []

    def last(card: Card, bare: System, tuned: System) -> tuple[Card, Sequence[Extra]]:
        with common.bound_to(start.base, trained.adapter, check=False) as bound, talk.task("Timing single requests"):
            saved = _saved(teach, examiner, split.test, answers, bound)
        gold_part = _on_gold(gold, split.test, answers, bare, tuned, settings.seed)
        result = BakeResult(start.folder, card, trained.adapter, teacher, saved, first, *gold_part, len(cut))
        words = " ".join([*remarks, result.words()])
        card = replace(card, command=command_of(settings, "bake"), baked=words)
        found.append(replace(result, card=card))
        return card, [Extra("What was baked", words)]

    start.end(examiner, trained, seeds, talk, remarks=remarks, last=last)
    result = found[0]
    about = {key: value for key, value in result.to_json().items() if key != "adapter"}
    atomic_write(start.folder / REPORT_NAME, json.dumps(about, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return result


def _on_gold(
    gold: Scorer | None, rows: Sequence[Row], answers: Mapping[str, str], bare: System, tuned: System, seed: int
) -> tuple[Comparison | None, float | None, tuple[tuple[Row, str], ...]]:
    """Teacher and adapter compared on gold answers, the bare base's score, and what the adapter lost."""
    from whit.evaluation.verdict import compare

    if gold is None:
        return None, None, ()
    told = [gold.score(answers[row.id], row) for row in rows]
    mine, base = (
        [gold.score(answer, row) for answer, row in zip(one.answers, rows, strict=True)] for one in (tuned, bare)
    )
    lost = [
        (row, answer)
        for row, answer, one, two in zip(rows, tuned.answers, told, mine, strict=True)
        if two.value < one.value
    ]
    compared = compare(told, mine, graded=gold.graded, seed=seed)
    return compared, sum(score.value for score in base) / len(base), tuple(lost)


def _saved(teach: Examiner, examiner: Examiner, rows: Sequence[Row], answers: Mapping[str, str], bound: Bound) -> Saved:
    """Prompt tokens of all rows, and milliseconds of a few, with the instruction and without it.

    Both sides give as many tokens as the teacher's answers have in the median: the length is no matter of the prompt.
    """
    from whit.evaluation.decoding import Decoder

    some = list(rows[:_TIMED])
    # A base that cannot hold the instruction (another model was the teacher) still has its tokens counted.
    guide = tokens_before(teach.instruction or "", teach.examples, teach.base)
    without = examiner.encode(list(rows))
    try:
        with_guide = teach.encode(list(rows))
        tokens = statistics.mean(len(item.prompt_ids) for item in with_guide)
    except DataError:
        with_guide, tokens = [], guide + statistics.mean(len(item.prompt_ids) for item in without)

    lengths = [len(teach.base.encode(answers[row.id])) + 1 for row in some]
    most = min(teach.max_tokens, round(statistics.median(lengths)))
    endless = replace(examiner.base, stop_ids=())

    def clock(encoded: Sequence[Encoded], decoder: Decoder) -> float:
        found = []
        for item in [*encoded[:1], *encoded]:
            began = time.perf_counter()
            decoder.answers([item.prompt_ids], most=most)
            found.append(time.perf_counter() - began)
        return 1000 * statistics.median(found[1:])

    ms = clock(with_guide[: len(some)], Decoder(endless)) if with_guide else 0.0
    mine = clock(without[: len(some)], Decoder(endless, bound))
    return Saved(tokens, statistics.mean(len(item.prompt_ids) for item in without), ms or mine, mine, most)


def _short(text: str) -> str:
    shown = " ".join(text.split())
    return repr(shown[:60] + ("…" if len(shown) > 60 else ""))


def tokens_before(guide: str, examples: Sequence[Row], base: Base) -> int:
    """Tokens that stand before every input, but for those of the template."""
    texts = [guide, *(text for row in examples for text in (*(turn.content for turn in row.turns), row.completion))]
    return sum(len(base.encode(text)) for text in texts)
