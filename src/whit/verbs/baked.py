"""What `whit bake` found: agreement with the teacher, gold answers, what a request saves, and what was lost.

Compares and times after training, keeps it in `bake.json`, and tells it as text and JSON. Knows nothing of training.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.data.rows import Row
from whit.data.splitting import Split
from whit.errors import DataError
from whit.files import atomic_write
from whit.settings import BakeSettings
from whit.talk import Talk
from whit.verbs import common, runs

if TYPE_CHECKING:
    from whit.adapters.tunable import Bound
    from whit.bases import Base
    from whit.data.templates import Encoded
    from whit.evaluation.proof import Examiner
    from whit.evaluation.scoring import Scorer
    from whit.evaluation.verdict import Comparison
    from whit.training.loop import Trained

REPORT_NAME = "bake.json"
_TIMED = 8
_SHOWN = 5


@dataclass(frozen=True)
class Saved:
    """Of one request, in the mean (tokens) and the median (milliseconds, one request at a time, nothing cached)."""

    tokens_with: float
    tokens_without: float
    ms_with: float
    ms_without: float

    def to_json(self) -> dict[str, float]:
        """Plain values, with the shares that are saved."""
        return {
            **vars(self),
            "tokens_saved": 1 - self.tokens_without / self.tokens_with,
            "ms_saved": self.ms_with - self.ms_without,
        }


@dataclass(frozen=True)
class BakeResult:
    """What `bake` made. `card.result` compares base and adapter by how often they answer as the teacher does.

    `first` compares base and teacher on gold answers before training; `gold` teacher and adapter on held-out ones, both
    None where the inputs have none. `lost` are held-out rows that the teacher had right and the adapter has wrong.
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

    def to_json(self) -> dict[str, Any]:
        """The contract of `whit bake --json`."""
        found = common.verdict_json(self.card.result, self.card.baselines, str(self.folder))
        about = self.adapter.describe()
        return {
            **found,
            **{key: about[key] for key in ("kind", "numbers", "payload_bytes")},
            "teacher": self.teacher,
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
            share = f" ({self.gold.tuned / self.gold.base:.2f} of it)" if self.gold.base else ""
            lines.append(
                f"Gold answers: bare base {100 * (self.bare_gold or 0):.1f}, teacher {100 * self.gold.base:.1f}, "
                f"adapter {100 * self.gold.tuned:.1f}{share}. "
                + self.gold.sentence(tuned="the adapter", base="the teacher")
            )
            lines.append(f"lost: {len(self.lost):,} rows that the teacher had right")
            lines += [
                f"  {row.id}: {_short(answer)} for {_short(row.completion)}" for row, answer in self.lost[:_SHOWN]
            ]
        spared = 1 - saved.tokens_without / saved.tokens_with
        lines += [
            f"saved on each request: {saved.tokens_with - saved.tokens_without:.0f} of {saved.tokens_with:.0f} prompt "
            f"tokens ({100 * spared:.0f} %), {saved.ms_with - saved.ms_without:.0f} of {saved.ms_with:.0f} ms (one at "
            "a time; a server that keeps the instruction's cache saves less)",
            "",
            f"{self.card.kind} adapter of {self.card.numbers:,} numbers: {self.folder}/",
            f"report: {self.folder / common.REPORT_NAME}",
            f'try it: whit run {self.folder} "…"',
        ]
        return "\n".join(lines)


def report_on(
    settings: BakeSettings,
    start: runs.Start,
    card: Any,
    trained: Trained,
    teach: Examiner,
    examiner: Examiner,
    gold: Scorer | None,
    split: Split,
    answers: dict[str, str],
    first: Comparison | None,
    teacher: str,
    talk: Talk,
) -> BakeResult:
    """Compare with gold answers, time one request at a time, and keep it all in `bake.json`."""
    from whit.evaluation.verdict import compare

    rows = split.test
    compared, bare_gold, lost = None, None, list[tuple[Row, str]]()
    held = [json.loads(line) for line in (start.folder / common.HELD_OUT_NAME).read_text("utf-8").splitlines()]
    if gold is not None:
        told = [gold.score(answers[row.id], row) for row in rows]
        tuned = [gold.score(item["tuned"], row) for item, row in zip(held, rows, strict=True)]
        bare = [gold.score(item["base"], row) for item, row in zip(held, rows, strict=True)]
        compared = compare(told, tuned, graded=gold.graded, seed=settings.seed)
        bare_gold = sum(score.value for score in bare) / len(bare)
        lost = [
            (row, item["tuned"])
            for row, item, one, two in zip(rows, held, told, tuned, strict=True)
            if two.value < one.value
        ]
    with common.bound_to(start.base, trained.adapter, check=False) as bound, talk.task("Timing single requests"):
        saved = _saved(teach, examiner, rows, bound)
    result = BakeResult(
        start.folder, card, trained.adapter, teacher, saved, first, compared, bare_gold, tuple(lost)
    )  # fmt: skip
    about = {key: value for key, value in result.to_json().items() if key not in ("lost", "adapter")}
    atomic_write(start.folder / REPORT_NAME, json.dumps(about, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return result


def _saved(teach: Examiner, examiner: Examiner, rows: Sequence[Row], bound: Bound) -> Saved:
    """Prompt tokens of all rows, and milliseconds of a few, with the instruction and without it."""
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

    def clock(encoded: Sequence[Encoded], decoder: Decoder) -> float:
        found = []
        for item in [*encoded[:1], *encoded]:
            began = time.perf_counter()
            decoder.answers([item.prompt_ids], most=examiner.max_tokens)
            found.append(time.perf_counter() - began)
        return 1000 * statistics.median(found[1:])

    ms = clock(with_guide[: len(some)], Decoder(teach.base)) if with_guide else 0.0
    mine = clock(without[: len(some)], Decoder(examiner.base, bound))
    return Saved(tokens, statistics.mean(len(item.prompt_ids) for item in without), ms or mine, mine)


def with_command(card: Any, settings: BakeSettings, folder: Path) -> Any:
    """The card with the command that made it."""
    from whit.evaluation.card import model_card, save_card
    from whit.verbs.prove import command_of

    card = replace(card, command=command_of(settings, "bake"))
    save_card(card, folder / common.CARD_NAME)
    atomic_write(folder / "README.md", model_card(card))
    return card


def _short(text: str) -> str:
    shown = " ".join(text.split())
    return repr(shown[:60] + ("…" if len(shown) > 60 else ""))


def tokens_before(guide: str, examples: Sequence[Row], base: Base) -> int:
    """Tokens that stand before every input, but for those of the template."""
    texts = [guide, *(text for row in examples for text in (*(turn.content for turn in row.turns), row.completion))]
    return sum(len(base.encode(text)) for text in texts)
