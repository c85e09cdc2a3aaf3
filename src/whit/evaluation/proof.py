"""The proof: the same rows, decoding and scorer for the base, its baselines and the adapter.

`Examiner` answers and scores rows in one fixed way; what differs from system to system is only the adapter and
the few-shot examples. The null adapter has the tuned one's shape and size but random numbers: what it gains
is no skill. Knows nothing of how an adapter was trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from whit.data.rows import Row
from whit.data.templates import Encoded, encode_rows
from whit.errors import AdapterError, DataError, ScoreError, UsageError
from whit.evaluation.card import Forgetting
from whit.evaluation.report import System
from whit.evaluation.scoring import Score, Scorer

if TYPE_CHECKING:
    from whit.adapters.adapter import Adapter
    from whit.adapters.tunable import Bound
    from whit.bases import Base

PLAIN_TEXT = "plain.txt"


@dataclass(frozen=True)
class Examiner:
    """Answers rows with one base, one instruction and one scorer. `max_tokens` bounds an answer.

    `examples` stand before every row as earlier turns. Raises `UsageError` for answers that no context could hold.
    """

    base: Base
    scorer: Scorer
    instruction: str | None
    max_tokens: int
    examples: tuple[Row, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens >= self.base.context:
            raise UsageError(
                f"--max-tokens {self.max_tokens}: {self.base.name} reads {self.base.context:,} tokens, prompt and "
                "answer together; give fewer"
            )

    @property
    def stop_id(self) -> int:
        """The token that ends an answer in training: the tokenizer's own end, if the base stops there."""
        return stop_token(self.base)

    def encode(self, rows: Sequence[Row], *, examples: Sequence[Row] = (), learn: bool = False) -> list[Encoded]:
        """Tokens of rows. `learn` checks the answers' length too, else only room for an answer of `max_tokens`.

        Raises `DataError` that names the rows beyond the context.
        """
        return encode_rows(
            rows,
            self.base.template,
            self.base.encode,
            stop_id=self.stop_id,
            instruction=self.instruction,
            examples=[*self.examples, *examples],
            context=self.base.context,
            reserve=0 if learn else max(0, self.max_tokens - 1),
        )

    def answer(
        self,
        encoded: Sequence[Encoded],
        bound: Bound | None = None,
        on_done: Callable[[int], None] | None = None,
        on_stop: Callable[[int, int], None] | None = None,
    ) -> list[str]:
        """The texts that base (and adapter) answer with, greedily; `on_stop` as in `Decoder.answers`."""
        from whit.evaluation.decoding import Decoder

        prompts = [item.prompt_ids for item in encoded]
        ids = Decoder(self.base, bound).answers(prompts, most=self.max_tokens, on_done=on_done, on_stop=on_stop)
        return [self.base.decode(found) for found in ids]

    def score(self, answers: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        """A score for each answer. Raises `ScoreError`."""
        return [self.scorer.score(answer, row) for answer, row in zip(answers, rows, strict=True)]

    def system(
        self,
        name: str,
        role: str,
        rows: Sequence[Row],
        *,
        bound: Bound | None = None,
        examples: Sequence[Row] = (),
        note: str = "",
    ) -> System:
        """Answer and score `rows` as one system of the report."""
        began = time.monotonic()
        answers = self.answer(self.encode(rows, examples=examples), bound)
        return self.judge(name, role, rows, answers, note=note, seconds=time.monotonic() - began)

    def judge(
        self,
        name: str,
        role: str,
        rows: Sequence[Row],
        answers: Sequence[str],
        *,
        note: str = "",
        seconds: float | None = None,
    ) -> System:
        """A system from answers that something gave."""
        readings = [self.scorer.read(answer) for answer in answers]
        return System(name, role, self.score(answers, rows), answers, readings, note, seconds)


def stop_token(base: Base) -> int:
    """The token that ends an answer."""
    own = getattr(base.tokenizer, "eos_token_id", None)
    return int(own) if own in base.stop_ids else base.stop_ids[-1]


def longest_answer(rows: Sequence[Row], base: Base) -> int:
    """Room for an answer: half as many tokens again as the longest training answer, and a few more."""
    longest = max((len(base.encode(row.completion)) for row in rows), default=1)
    return min(base.context // 2, longest + longest // 2 + 4)


def shots(rows: Sequence[Row], count: int, *, labels: Sequence[str] = (), seed: int = 0) -> list[Row]:
    """`count` training rows as few-shot examples: drawn by seed, label by label where answers are labels."""
    order = [rows[place] for place in np.random.Generator(np.random.Philox(key=seed)).permutation(len(rows)).tolist()]
    if not labels:
        return order[:count]
    chosen: list[Row] = []
    remaining = list(order)
    while remaining and len(chosen) < count:
        seen: set[str] = set()
        for row in list(remaining):
            if row.completion not in seen and len(chosen) < count:
                seen.add(row.completion)
                chosen.append(row)
                remaining.remove(row)
    return chosen


def best_shots(
    examiner: Examiner, train: Sequence[Row], validation: Sequence[Row], counts: Sequence[int], *, seed: int
) -> tuple[int, list[Row], dict[int, float]]:
    """The few-shot count that scores best on validation rows, its examples, and every count's score.

    Counts whose prompts do not fit the context are passed over; with none left the count is 0.
    """
    scores: dict[int, float] = {}
    for count in sorted(set(counts)):
        examples = shots(train, count, labels=examiner.scorer.labels, seed=seed)
        if not validation or len(examples) < count:
            continue
        try:
            encoded = examiner.encode(validation, examples=examples)
        except DataError:
            continue
        values = [score.value for score in examiner.score(examiner.answer(encoded), validation)]
        scores[count] = sum(values) / len(values)
    if not scores:
        return 0, [], {}
    best = max(scores, key=lambda count: (scores[count], -count))
    return best, shots(train, best, labels=examiner.scorer.labels, seed=seed), scores


def null_adapter(adapter: Adapter, *, seed: int = 0) -> Adapter:
    """An adapter of the same shape, with random numbers of the same size (root mean square) as the tuned ones."""
    from dataclasses import replace

    import torch

    draw = torch.Generator().manual_seed(seed)

    def like(part: torch.Tensor) -> torch.Tensor:
        size, noise = part.float().square().mean().sqrt(), torch.randn(part.shape, generator=draw)
        # Scaled to that size exactly: 13 drawn numbers may be half as large, and weaker for it.
        return (noise * (size / noise.square().mean().sqrt())).to(part.dtype)

    if adapter.vector is not None:
        return replace(adapter, vector=like(torch.from_numpy(adapter.vector)).numpy())
    if adapter.lora is None:
        raise AdapterError("the adapter is empty")
    return replace(
        adapter,
        lora=replace(
            adapter.lora,
            A={name: like(part) for name, part in adapter.lora.A.items()},
            B={name: like(part) for name, part in adapter.lora.B.items()},
        ),
    )


def forgetting(base: Base, bound: Bound) -> Forgetting:
    """Loss on a page of plain text (our own), without and with the adapter: what tuning cost elsewhere."""
    text = resources.files("whit.evaluation").joinpath(PLAIN_TEXT).read_text("utf-8")
    before, tokens = _text_loss(base, text, None)
    after, _ = _text_loss(base, text, bound)
    return Forgetting(text=PLAIN_TEXT, tokens=tokens, before=before, after=after)


def _text_loss(base: Base, text: str, bound: Bound | None) -> tuple[float, int]:
    import contextlib

    import torch
    import torch.nn.functional as F

    ids = base.encode(text)
    window = min(256, base.context)
    total, count = 0.0, 0
    with torch.inference_mode(), bound.active() if bound else contextlib.nullcontext():
        for start in range(0, len(ids) - 1, window):
            part = torch.tensor([ids[start : start + window + 1]], device=base.model.device)
            if part.shape[1] < 2:
                break
            logits = base.model(input_ids=part[:, :-1], use_cache=False).logits[0].float()
            total += float(F.cross_entropy(logits, part[0, 1:], reduction="sum"))
            count += part.shape[1] - 1
    return total / max(1, count), count


def changed_nothing(base: System, tuned: System) -> bool:
    """Whether an adapter answered every row exactly as the base does."""
    if len(base.answers) != len(tuned.answers):
        raise ScoreError("two systems that did not answer the same rows")
    return list(base.answers) == list(tuned.answers)
