"""Supervised training of an adapter: loss on completions, evaluation by generated and scored answers.

What is scored and kept is a mean of the numbers over the last steps (polynomial-decay averaging: Shamir & Zhang, 2013,
arXiv 1212.1824), and of those the best on validation; training stops early when the score no longer rises. A run can
be stopped and resumed to the same result, bit for bit on CPU. A loss that is not finite stops it, keeps the last good
state and names the rows. Knows nothing of splits, baselines or verdicts: it is handed encoded rows and a function
that scores the present state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from transformers.cache_utils import DynamicCache

from whit.adapters.tunable import Bound, BoundLora, BoundVector
from whit.bases import Base
from whit.bases.dtypes import SMALL
from whit.data.templates import Encoded
from whit.errors import TrainingError, UsageError
from whit.evaluation.decoding import decoder_of, window_of
from whit.training.batching import Batch, collate, named, order, pack, steps_in
from whit.training.loop import Loop, Pace, Trained, under
from whit.training.optimizers import Adam, NaturalGradient, Optimizer, schedule

_AVERAGE = 8  # the mean of the numbers that is scored and kept goes over about the last ninth of the steps so far
_PACKED = 1024  # tokens; no longer sequence is packed
_SHARED_PREFIX = 8  # tokens; a shorter one is not worth a pass of its own
LEARNING_RATES = {
    ("xs", "adam"): 3.5e-2,
    ("tiny", "adam"): 2.5e-2,
    ("lora", "adam"): 5e-4,
    ("sparse", "adam"): 2.5e-2,
    ("xs", "natural"): 0.1,
    ("tiny", "natural"): 0.1,
}
#: for runs of up to so many steps; a longer one does not settle at it, and takes less by the root of its length
SMALL_LORA_RATE, SMALL_LORA_STEPS = 5e-3, 250
_OVERHEAD = 2_000_000  # parameters below which a step of 8 rows is still mostly overhead


def default_batch(base: Base) -> int:
    """Rows in a step of supervised training, where nobody says otherwise."""
    return 4 if base.parameters >= SMALL else 8 if base.parameters >= _OVERHEAD else 16


def default_epochs(base: Base, rows: int) -> float:
    """Passes over the training rows, where nobody says otherwise."""
    seen, least = (2000, 4.0) if base.parameters < SMALL else (4000, 1.0)
    return min(12.0, max(least, seen / rows))


def default_rate(base: Base, kind: str, optimizer: str, steps: int) -> float | None:
    """The peak rate of `steps` supervised steps, where nobody says otherwise; None where kind and optimiser differ."""
    if (kind, optimizer) == ("lora", "adam") and base.parameters < SMALL:
        return SMALL_LORA_RATE * min(1.0, math.sqrt(SMALL_LORA_STEPS / steps))
    return LEARNING_RATES.get((kind, optimizer))


@dataclass(frozen=True, kw_only=True)
class Plan(Pace):
    """How a run proceeds: passes over the rows, the parts a step is computed in, and what moves the numbers."""

    epochs: float
    accumulate: int = 1
    optimizer: str = "adam"


@dataclass(frozen=True)
class Progress:
    """Where a run is; told after every step."""

    step: int
    steps: int
    loss: float
    score: float | None
    seconds: float
    tokens: int


class Watch(Protocol):
    """What is told of a run while it goes on; raising `Interrupted` stops it after saving its state."""

    def __call__(self, progress: Progress) -> None:
        """Called after every step and evaluation."""


def loss_of(base: Base, batch: Batch) -> torch.Tensor:
    """Each wanted token's cross-entropy in nats, shape (targets,), with whatever adapter is active."""
    return cross_entropy(logits_of(base, batch), batch)


def cross_entropy(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The cross-entropy in nats of what a batch wants, (targets,), by logits (targets, vocabulary)."""
    return F.cross_entropy(logits.float(), batch.wanted.to(logits.device), reduction="none")


def logits_of(base: Base, batch: Batch) -> torch.Tensor:
    """What predicts each wanted token, shape (targets, vocabulary), with whatever adapter is active.

    The head is applied to the places that predict an answer's token only: with a vocabulary of 49,152 it would
    otherwise be a fifth of a small model's work. A prefix that all rows share (system turn, instruction) is
    computed once, forward and backward; whoever gives every row an adapter of its own asks for `unshared(batch)`.
    """
    device = base.model.device
    window = window_of(base.model.config)
    shared = batch.prefix >= _SHARED_PREFIX and len(batch.rows) > 1
    # Sized before anything is built: the mask of a packed batch grows with the square of its length.
    length = batch.prefix + len(batch.rows) * (batch.tokens.shape[1] - batch.prefix)
    if not shared or (window is not None and batch.tokens.shape[1] > window):
        at = batch.at.to(device)
        decoder = decoder_of(base.model)
        hidden = decoder(input_ids=batch.tokens.to(device), attention_mask=None, use_cache=False).last_hidden_state
        wanted = hidden[at[:, 0], at[:, 1]]
    else:
        wanted = _packed(base, batch, window) if length <= packed_limit(base) else _after_prefix(base, batch)
    logits: torch.Tensor = base.model.get_output_embeddings()(wanted)
    return logits


def packed_limit(base: Base) -> int:
    """The tokens up to which rows are packed: beyond, attention between rows (masked out) costs more than padding.

    Attention takes 4·L·h multiplications a token and layer, projections about h·(2h + 3f); the former may be as many.
    """
    config = base.model.config
    return min(_PACKED, (2 * int(config.hidden_size) + 3 * int(config.intermediate_size)) // 4)


def _packed(base: Base, batch: Batch, window: int | None) -> torch.Tensor:
    """Hidden states at `batch.at`, from one sequence that holds the shared prefix once and no padding."""
    device, packed = base.model.device, pack(batch)
    mask = packed.mask.to(device)
    hidden = decoder_of(base.model)(
        input_ids=packed.tokens.to(device),
        position_ids=packed.positions.to(device),
        attention_mask=mask if window is None else {"full_attention": mask, "sliding_attention": mask},
        use_cache=False,
    ).last_hidden_state
    found: torch.Tensor = hidden[0, packed.at.to(device)]
    return found


def _after_prefix(base: Base, batch: Batch) -> torch.Tensor:
    """Hidden states at `batch.at`, from two passes: the shared prefix of one row, then what follows it in each."""
    device, decoder = base.model.device, decoder_of(base.model)
    tokens, at, cache = batch.tokens.to(device), batch.at.to(device), DynamicCache()
    one = decoder(input_ids=tokens[:1, : batch.prefix], use_cache=True, past_key_values=DynamicCache())
    for place, layer in enumerate(one.past_key_values.layers):
        wide = len(tokens), -1, -1, -1
        cache.update(layer.keys.expand(wide), layer.values.expand(wide), place)
    rest = tokens[:, batch.prefix :]
    hidden = decoder(input_ids=rest, attention_mask=None, use_cache=True, past_key_values=cache).last_hidden_state
    found: torch.Tensor = hidden[at[:, 0], at[:, 1] - batch.prefix]
    return found


def unshared(batch: Batch) -> Batch:
    """The same batch, to be computed row by row from its first token: rows that bring own adapters share nothing."""
    return replace(batch, prefix=0)


def train(
    base: Base,
    bound: Bound,
    rows: Sequence[Encoded],
    plan: Plan,
    score: Callable[[], float],
    *,
    watch: Watch | None = None,
) -> Trained:
    """Train `bound` on `rows`; `score()` answers the validation rows with its present state.

    Raises `TrainingError` (NaN, nothing to learn from) and `Interrupted`; state is saved first.
    """
    return Supervised(base, bound, rows, plan, score, watch or (lambda progress: None)).go()


class Supervised(Loop):
    """A run on rows with answers. A subclass may take another loss (`accumulate`) or share the work (`places`)."""

    plan: Plan

    def __init__(
        self,
        base: Base,
        bound: Bound,
        rows: Sequence[Encoded],
        plan: Plan,
        score: Callable[[], float],
        watch: Callable[[Progress], None],
    ) -> None:
        lengths = [len(row.prompt_ids) + len(row.completion_ids) for row in rows]
        steps = steps_in(len(rows), plan.batch, plan.epochs)
        super().__init__(base, bound, rows, plan, score, steps=steps, lengths=lengths)
        self.watch, self.loss = watch, float("nan")
        self.optimizer = _optimizer(bound, plan)
        self.mean = [parameter.detach().clone() for parameter in bound.parameters()]

    def advance(self) -> None:
        """Forward, backward, and the optimiser's step."""
        places = self.places()
        if isinstance(self.bound, BoundLora):
            # Dropout draws from this; tied to the step, so that a resumed run draws the same.
            torch.manual_seed((self.plan.seed << 32) ^ self.step)
            self.bound.train(True)
        size = math.ceil(len(places) / self.plan.accumulate)
        parts = [collate([self.rows[place] for place in places[at : at + size]]) for at in range(0, len(places), size)]
        targets = sum(len(part.wanted) for part in parts)
        total, suspects = 0.0, list[str]()
        gradients: list[torch.Tensor] = []
        for parameter in self.bound.parameters():
            parameter.grad = None
        for part in parts:
            share, infinite = self.accumulate(part, targets, len(places), gradients)
            total += share
            suspects += infinite
        if isinstance(self.bound, BoundLora):
            self.bound.train(False)
        self.refuse_nan(total, gradients, suspects or [name for part in parts for name in part.rows])
        rate = self.plan.learning_rate * schedule(self.step, self.steps, self.plan.warmup)
        self.torn = True
        self.optimizer.step(rate, torch.cat(gradients) if gradients else None)
        for held, parameter in zip(self.mean, self.bound.parameters(), strict=True):
            held.lerp_(parameter.detach(), (_AVERAGE + 1) / (_AVERAGE + self.step + 1))
        self.loss = total
        self.losses.append(total)
        self.tokens += sum(part.size for part in parts)

    def accumulate(
        self, part: Batch, targets: int, rows: int, gradients: list[torch.Tensor]
    ) -> tuple[float, list[str]]:
        """Add one part's gradient; its share of the step's mean loss, and the rows whose own loss is not finite."""
        if self.optimizer.per_row and isinstance(self.bound, BoundVector):
            each = self.bound.v.detach().expand(len(part.rows), -1).clone().requires_grad_(True)
            with self.bound.rows(each):
                losses = loss_of(self.base, unshared(part))
            # Scaled so that the mean over rows of their gradients is the gradient of the step's mean loss.
            (losses.sum() * rows / targets).backward()
            assert each.grad is not None
            gradients.append(each.grad)
            return float(losses.detach().sum()) / targets, _not_finite(losses, part)
        with self.bound.active():
            losses = loss_of(self.base, part)
            loss = losses.sum() / targets
            loss.backward()
        return float(loss.detach()), _not_finite(losses, part)

    def refuse_nan(self, loss: float, rows: Sequence[torch.Tensor], names: Sequence[str]) -> None:
        """Stop at a loss or gradient that is not finite; `rows` are gradients of single rows, if they were taken."""
        gradients = [parameter.grad for parameter in self.bound.parameters() if parameter.grad is not None]
        if math.isfinite(loss) and all(bool(torch.isfinite(part).all()) for part in (*gradients, *rows)):
            return
        self.save()
        what = f"the loss became {loss}" if not math.isfinite(loss) else "the gradient became infinite or NaN"
        raise TrainingError(
            f"{what} at step {self.step + 1}, on rows {named(names, self.rows)}; the last good state is kept. "
            "Look at those rows, or lower --learning-rate"
        )

    def kept(self) -> list[torch.Tensor]:
        """The mean over the last steps."""
        return [held.clone() for held in self.mean]

    def tell(self) -> None:
        """Report the step."""
        score = self.curve[-1].score if self.curve else None
        self.watch(Progress(self.step, self.steps, self.loss, score, self.seconds, self.tokens))

    def state(self) -> dict[str, torch.Tensor]:
        """The mean, and the optimiser's moments."""
        mean = {f"mean.{at}": part for at, part in enumerate(self.mean)}
        return mean | {f"optimizer.{name}": part for name, part in self.optimizer.state().items()}

    def restore(self, state: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
        """Take over a saved state."""
        self.mean = self.beside([state[f"mean.{at}"] for at in range(len(self.mean))])
        self.optimizer.load(under("optimizer.", state))


def batch_losses(
    base: Base, encoded: Sequence[Encoded], *, rows: int, batch: int, seed: int
) -> list[Callable[[], torch.Tensor]]:
    """The mean losses of the first batches of training that hold `rows` rows, each computed when it is called."""
    lengths = [len(row.prompt_ids) + len(row.completion_ids) for row in encoded]
    steps = order(lengths, batch, seed=seed, epoch=0)[: -(-rows // batch)]

    def loss(part: Batch) -> torch.Tensor:
        return loss_of(base, part).mean()

    return [partial(loss, collate([encoded[place] for place in places])) for places in steps]


def _not_finite(losses: torch.Tensor, part: Batch) -> list[str]:
    """Ids of the rows that have a loss which is not finite."""
    bad = ~torch.isfinite(losses.detach()).cpu()
    return [part.rows[place] for place in part.at[bad, 0].unique().tolist()] if bool(bad.any()) else []


def _optimizer(bound: Bound, plan: Plan) -> Optimizer:
    if plan.optimizer == "natural":
        if not isinstance(bound, BoundVector):
            raise UsageError("--optimizer natural works on vector adapters (tiny, xs); use adam for lora")
        return NaturalGradient(bound.parameters())
    return Adam(bound.parameters())
