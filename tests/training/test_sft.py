"""The supervised loop: its loss is transformers', it learns, it keeps the best, and it stops as it promises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import whit.training.sft as sft
from whit.adapters.tunable import Bound, BoundLora, BoundVector, bind
from whit.bases import Base
from whit.data.templates import Encoded
from whit.errors import Interrupted, TrainingError, UsageError
from whit.evaluation.decoding import Decoder
from whit.training.batching import collate
from whit.training.checkpoint import load_checkpoint
from whit.training.loop import Trained, with_seed
from whit.training.sft import Plan, Progress, loss_of, train, unshared

Tune = Callable[..., Bound]
Encode = Callable[[int], list[Encoded]]
PLAN = Plan(epochs=1, batch=8, learning_rate=0.01, evaluations=2)


def constant(value: float = 0.0) -> Callable[[], float]:
    return lambda: value


def numbers(trained: Trained) -> np.ndarray:
    adapter = trained.adapter
    if adapter.vector is not None:
        return adapter.vector
    assert adapter.lora is not None
    sides = (*adapter.lora.A.values(), *adapter.lora.B.values())
    return np.concatenate([part.float().numpy().ravel() for part in sides])


def mean_loss(base: Base, bound: Bound, rows: Sequence[Encoded]) -> float:
    with torch.no_grad(), bound.active():
        return float(loss_of(base, collate(rows)).mean())


def labelled(rows: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and transformers' labels: the prompt and the padding masked by -100."""
    texts = [[*row.prompt_ids, *row.completion_ids] for row in rows]
    width = max(map(len, texts))
    tokens = torch.tensor([text + [0] * (width - len(text)) for text in texts])
    labels = torch.full_like(tokens, -100)
    for place, row in enumerate(rows):
        labels[place, len(row.prompt_ids) : len(texts[place])] = torch.tensor(row.completion_ids)
    return tokens, labels


@pytest.mark.parametrize("kind", ["bare", "xs", "lora"])
def test_the_loss_is_transformers_own(base: Base, tune: Tune, encode: Encode, kind: str) -> None:
    rows = encode(5)
    tokens, labels = labelled(rows)
    bound = None if kind == "bare" else tune(kind)
    if bound is not None:
        with torch.no_grad():
            for parameter in bound.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        bare = float(base.model(input_ids=tokens, labels=labels).loss)
        if bound is None:
            ours, theirs = loss_of(base, collate(rows)), bare
        else:
            with bound.active():
                ours = loss_of(base, collate(rows))
                theirs = float(base.model(input_ids=tokens, labels=labels).loss)
            assert abs(theirs - bare) > 1e-2
    assert ours.shape == (sum(len(row.completion_ids) for row in rows),)
    assert float(ours.mean()) == pytest.approx(theirs, rel=1e-5)


def test_padding_changes_nothing(base: Base, encode: Encode) -> None:
    rows = encode(6)
    with torch.no_grad():
        together = loss_of(base, collate(rows))
        alone = torch.cat([loss_of(base, collate([row])) for row in rows])
    assert len({len(row.prompt_ids) for row in rows}) > 1
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["xs", "tiny", "lora"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_shared_prefix_is_computed_once_with_the_same_result(
    base: Base, tune: Tune, encode: Encode, monkeypatch: pytest.MonkeyPatch, kind: str, packed: bool
) -> None:
    monkeypatch.setattr(sft, "packed_limit", lambda base: 1024 if packed else 0)
    system = encode(1)[0].prompt_ids[:1] * 3 + list(range(20, 40))
    rows = [replace(row, prompt_ids=[*system, *row.prompt_ids]) for row in encode(6)]
    rows[2] = replace(rows[2], completion_ids=[7, 8, 9, *rows[2].completion_ids])
    bound, batch = tune(kind), collate(rows)
    with torch.no_grad():
        for parameter in bound.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    assert batch.prefix >= len(system)
    passed: list[int] = []
    count = base.model.get_input_embeddings().register_forward_hook(lambda *seen: passed.append(seen[1][0].numel()))
    found: list[list[torch.Tensor]] = []
    for part in (batch, unshared(batch)):
        with bound.active():
            losses = loss_of(base, part)
            gradients = torch.autograd.grad(losses.sum(), bound.parameters())
        found.append([losses.detach(), *gradients])
    count.remove()
    own = sum(len(row.prompt_ids) + len(row.completion_ids) - 1 - batch.prefix for row in rows)
    once = [batch.prefix + own] if packed else [batch.prefix, (batch.tokens.shape[1] - batch.prefix) * 6]
    assert passed == [*once, batch.tokens.numel()]
    for shared, alone in zip(*found, strict=True):
        torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-5)


def test_a_large_batch_is_never_packed(base: Base, encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    # Packed, 400 rows would need a mask of ten thousand tokens squared.
    rows = [replace(row, prompt_ids=[*range(20, 40), *row.prompt_ids]) for row in encode(400)]
    monkeypatch.setattr(sft, "pack", lambda batch: pytest.fail("packed"))
    with torch.no_grad():
        assert bool(loss_of(base, collate(rows)).isfinite().all())


def test_a_narrow_base_packs_less(base: Base) -> None:
    narrow = sft.packed_limit(base)
    wide = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(hidden_size=576, intermediate_size=1536)))
    assert narrow < 100
    assert sft.packed_limit(wide) == 1024  # type: ignore[arg-type]


def test_what_is_kept_is_the_mean_of_the_last_steps(base: Base, tune: Tune, encode: Encode) -> None:
    bound, seen = tune("xs"), list[torch.Tensor]()
    assert isinstance(bound, BoundVector)
    v = bound.v

    def watch(progress: Progress) -> None:
        if progress.step > len(seen):
            seen.append(v.detach().clone())

    done = train(base, bound, encode(8), replace(PLAN, epochs=20.0, batch=4, patience=99), constant(), watch=watch)
    assert done.best.step == done.steps == len(seen) == 40
    mean = torch.zeros_like(seen[0])
    for step, each in enumerate(seen, start=1):
        mean = mean + (each - mean) * 9 / (8 + step)
    kept = torch.from_numpy(done.adapter.vector)
    torch.testing.assert_close(kept, mean, rtol=1e-2, atol=1e-5)
    assert float((kept - mean).norm()) < 0.2 * float((kept - seen[-1]).norm())


def test_the_mean_of_the_rows_gradients_is_the_batchs(base: Base, tune: Tune, encode: Encode) -> None:
    bound, rows = tune("xs"), encode(5)
    assert isinstance(bound, BoundVector)
    rows[0] = replace(rows[0], completion_ids=[7, 8, 9, *rows[0].completion_ids])  # answers of unlike length
    with torch.no_grad():
        bound.v.copy_(0.1 * torch.randn(bound.numbers, generator=torch.Generator().manual_seed(0)))
    one = sft.Supervised(base, bound, rows, PLAN, constant(), lambda progress: None)
    one.accumulate(collate(rows), sum(len(row.completion_ids) for row in rows), 5, [])
    whole = bound.v.grad
    assert whole is not None
    each: list[torch.Tensor] = []
    natural = sft.Supervised(base, bound, rows, replace(PLAN, optimizer="natural"), constant(), lambda progress: None)
    natural.accumulate(collate(rows), sum(len(row.completion_ids) for row in rows), 5, each)
    assert each[0].shape == (5, bound.numbers)
    torch.testing.assert_close(each[0].mean(0), whole, rtol=1e-4, atol=1e-6)
    bound.v.grad = None
    (alone,) = torch.autograd.grad(_loss_sum(base, bound, rows[:1]), bound.v)
    targets = sum(len(row.completion_ids) for row in rows)
    torch.testing.assert_close(each[0][0], alone * 5 / targets, rtol=1e-4, atol=1e-6)


def _loss_sum(base: Base, bound: BoundVector, rows: Sequence[Encoded]) -> torch.Tensor:
    with bound.active():
        return loss_of(base, collate(rows)).sum()


@pytest.mark.parametrize(
    ("kind", "optimizer", "rate", "share"),
    [
        ("xs", "adam", 0.05, 0.85),
        ("tiny", "adam", 0.05, 0.99),
        ("lora", "adam", 5e-3, 0.8),
        ("xs", "natural", 0.3, 0.9),
    ],
)
def test_every_kind_lowers_the_loss(
    base: Base, tune: Tune, encode: Encode, kind: str, optimizer: str, rate: float, share: float
) -> None:
    bound, rows = tune(kind), encode(48)
    before = mean_loss(base, bound, rows)
    plan = Plan(epochs=4, batch=8, learning_rate=rate, optimizer=optimizer, evaluations=2)
    trained = train(base, bound, rows, plan, lambda: -mean_loss(base, bound, rows))
    bound.load(trained.adapter)
    assert mean_loss(base, bound, rows) < share * before
    assert trained.steps == 24 and len(trained.curve) == 3
    assert trained.curve[0].loss != trained.curve[0].loss  # nothing was learned yet
    assert trained.curve[2].loss < trained.curve[1].loss


def test_lora_learns_an_easy_task(base: Base, tune: Tune, encode: Encode) -> None:
    bound, rows = tune("lora", rank=8), encode(48)

    def accuracy() -> float:
        answers = Decoder(base, bound).answers([row.prompt_ids for row in rows], most=3)
        return sum(base.decode(a) == row.row.completion for a, row in zip(answers, rows, strict=True)) / len(rows)

    before = accuracy()
    plan = Plan(epochs=8, batch=8, learning_rate=5e-3, evaluations=4)
    trained = train(base, bound, rows, plan, accuracy)
    assert before < 0.1 and trained.best.score > 0.9
    bound.load(trained.adapter)
    assert accuracy() == trained.best.score  # what is kept is what was scored


@pytest.mark.parametrize(("kind", "optimizer"), [("xs", "adam"), ("lora", "adam"), ("xs", "natural")])
def test_accumulated_parts_make_the_step_of_the_whole(
    base: Base, tune: Tune, encode: Encode, kind: str, optimizer: str
) -> None:
    rows, found, tokens = encode(20), [], []
    for accumulate in (1, 3, 8, 50):
        plan = replace(PLAN, accumulate=accumulate, optimizer=optimizer, learning_rate=0.002)
        bound = tune(kind)
        found.append(torch.cat([part.detach().ravel() for part in _after(base, bound, rows, plan)]))
        tokens.append(bound)
        bound.detach()
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-3, atol=1e-4)


def _after(base: Base, bound: Bound, rows: Sequence[Encoded], plan: Plan) -> list[torch.Tensor]:
    """The exact numbers after the last step (every evaluation scores better than the one before)."""
    score = iter(range(100))
    train(base, bound, rows, plan, lambda: float(next(score)))
    return [parameter.detach().clone() for parameter in bound.parameters()]


def test_the_best_is_kept_not_the_last(base: Base, tune: Tune, encode: Encode) -> None:
    scores, states = iter([0.1, 0.5, 0.9, 0.4, 0.2]), []
    bound = tune("xs")

    def score() -> float:
        states.append(bound.parameters()[0].detach().clone())
        return next(scores)

    trained = train(base, bound, encode(32), replace(PLAN, epochs=2, evaluations=4), score)
    assert trained.best.score == 0.9 and trained.best.step == 4
    assert [point.score for point in trained.curve] == [0.1, 0.5, 0.9, 0.4, 0.2]
    assert not torch.equal(states[2], states[4])
    assert np.array_equal(numbers(trained), states[2].numpy())


def test_the_untrained_start_is_kept_where_nothing_beats_it(base: Base, tune: Tune, encode: Encode) -> None:
    scores = iter([0.5, 0.2, 0.3])
    trained = train(base, tune("xs"), encode(16), PLAN, lambda: next(scores))
    assert trained.best.step == 0 and not numbers(trained).any()


def test_among_equals_the_later_is_kept(base: Base, tune: Tune, encode: Encode) -> None:
    for scores, best in (([0.0, 0.0, 0.0, 0.0, 0.0], 4), ([0.0, 0.5, 0.5, 0.5, 0.1], 3)):
        given = iter(scores)
        bound = tune("xs")
        trained = train(base, bound, encode(16), replace(PLAN, epochs=2, evaluations=4), given.__next__)
        assert trained.best.step == best
        bound.detach()


def test_it_stops_early_on_the_generated_score(base: Base, tune: Tune, encode: Encode) -> None:
    scores = iter([0.1, 0.8, 0.7, 0.8, 0.6, 0.9, 1.0, 1.0, 1.0])
    plan = replace(PLAN, epochs=8, evaluations=8, patience=3)
    bound = tune("xs")
    trained = train(base, bound, encode(8), plan, scores.__next__)
    assert trained.stopped_early and trained.steps == 4 and trained.best.step == 3  # patience counts from the first 0.8
    bound.detach()
    # A score that never rises does not stop it: there is nothing to lose yet.
    patient = train(base, tune("xs"), encode(8), plan, constant(0.0))
    assert not patient.stopped_early and patient.steps == 8


@pytest.mark.parametrize("kind", ["xs", "lora"])
def test_the_same_seed_gives_the_same_bits(base: Base, tune: Tune, encode: Encode, kind: str) -> None:
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(found))  # whatever was drawn before
        bound = tune(kind, seed=seed, dropout=0.2)
        plan = replace(PLAN, seed=seed, learning_rate=0.01)
        found.append(torch.cat([part.ravel() for part in _after(base, bound, encode(24), plan)]))
        bound.detach()
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_dropout_is_on_in_steps_and_off_in_answers(base: Base, tune: Tune, encode: Encode) -> None:
    rows = encode(16)
    bound = tune("lora", dropout=0.5)
    assert isinstance(bound, BoundLora)
    scored = []

    def score() -> float:
        scored.append([mean_loss(base, bound, rows) for _ in range(2)])
        return 0.0

    dropped = train(base, bound, rows, PLAN, score)
    assert all(one == other for one, other in scored)
    bound.detach()
    again = bind(base, dropped.adapter)  # off from the first answer on, too
    assert mean_loss(base, again, rows) == mean_loss(base, again, rows)
    again.detach()
    plain = train(base, tune("lora"), rows, PLAN, constant())
    assert not np.array_equal(numbers(dropped), numbers(plain))


def test_the_base_is_bare_after_detach(base: Base, tune: Tune, encode: Encode) -> None:
    modules = [(name, type(module)) for name, module in base.model.named_modules()]
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        before = base.model(input_ids=ids).logits
    for kind in ("xs", "tiny", "lora"):
        bound = tune(kind)
        train(base, bound, encode(8), PLAN, constant())
        bound.detach()
        assert [(name, type(module)) for name, module in base.model.named_modules()] == modules
        with torch.no_grad():
            assert torch.equal(base.model(input_ids=ids).logits, before)


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_no_rows_is_an_error(base: Base, tune: Tune) -> None:
    with pytest.raises(TrainingError, match="no rows"):
        train(base, tune("xs"), [], PLAN, constant())


def test_the_natural_gradient_is_for_vectors(base: Base, tune: Tune, encode: Encode) -> None:
    with pytest.raises(UsageError, match="vector adapters"):
        train(base, tune("lora"), encode(8), replace(PLAN, optimizer="natural"), constant())


@pytest.mark.parametrize(("kind", "optimizer"), [("xs", "adam"), ("xs", "natural"), ("lora", "adam")])
def test_nan_stops_it_names_the_row_and_keeps_the_last_good_state(
    base: Base, tune: Tune, encode: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, optimizer: str
) -> None:
    rows, real, good = encode(32), sft.loss_of, []
    bound = tune(kind)

    def poisoned(base: Base, batch: object) -> torch.Tensor:
        losses = real(base, batch)  # type: ignore[arg-type]
        good[:] = [parameter.detach().clone() for parameter in bound.parameters()]
        where = [place for place, name in enumerate(batch.rows) if name == "r17"]  # type: ignore[attr-defined]
        bad = torch.isin(batch.at[:, 0], torch.tensor(where))  # type: ignore[attr-defined]
        return losses + torch.where(bad, float("nan"), 0.0)

    monkeypatch.setattr(sft, "loss_of", poisoned)
    plan = replace(PLAN, optimizer=optimizer, checkpoint=tmp_path / "run.safetensors", run="k", accumulate=2, epochs=1)
    with pytest.raises(
        TrainingError, match=r"became nan at step \d+, on rows r17; the last good state is kept"
    ) as error:
        train(base, bound, rows, plan, constant())
    assert "--learning-rate" in str(error.value)
    found = load_checkpoint(tmp_path / "run.safetensors", run="k")
    assert found is not None
    assert all(torch.equal(found[0][f"now.{at}"], part) and part.isfinite().all() for at, part in enumerate(good))


def test_an_infinite_gradient_of_a_finite_loss_stops_it(
    base: Base, tune: Tune, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sft.loss_of

    class Explode(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, losses: torch.Tensor) -> torch.Tensor:
            return losses.clone()

        @staticmethod
        def backward(ctx: object, *grads: torch.Tensor) -> torch.Tensor:
            return grads[0] * float("inf")

    monkeypatch.setattr(sft, "loss_of", lambda base, batch: Explode.apply(real(base, batch)))
    for optimizer in ("adam", "natural"):
        bound = tune("xs")
        with pytest.raises(TrainingError, match="gradient became infinite or NaN at step 1"):
            train(base, bound, encode(8), replace(PLAN, optimizer=optimizer), constant())
        assert not bound.parameters()[0].detach().any()
        bound.detach()


# --- stopping and going on -------------------------------------------------------------------------------------------


def same(one: Trained, other: Trained) -> bool:
    def curve(trained: Trained) -> list[tuple[object, ...]]:
        return [(point.step, repr(point.loss), point.score) for point in trained.curve]

    return (
        np.array_equal(numbers(one), numbers(other))
        and curve(one) == curve(other)
        and (one.best.step, one.steps, one.tokens) == (other.best.step, other.steps, other.tokens)
        and one.stopped_early == other.stopped_early
    )


class Stops:
    """A score and a watch that interrupt at the n-th of their calls, as Ctrl-C may."""

    def __init__(self, base: Base, bound: Bound, rows: list[Encoded], at: int, error: type[BaseException]) -> None:
        self.base, self.bound, self.rows, self.left, self.error = base, bound, rows, at, error

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error

    def watch(self, progress: Progress) -> None:
        self._count()

    def score(self) -> float:
        self._count()
        return -mean_loss(self.base, self.bound, self.rows[:8])


@pytest.mark.parametrize(
    ("kind", "optimizer", "accumulate"), [("xs", "adam", 1), ("lora", "adam", 2), ("tiny", "natural", 1)]
)
def test_interrupted_anywhere_and_resumed_it_ends_in_the_same_bits(
    base: Base, tune: Tune, encode: Encode, tmp_path: Path, kind: str, optimizer: str, accumulate: int
) -> None:
    rows = encode(28)
    plan = Plan(
        epochs=2, batch=8, learning_rate=0.02, evaluations=3, optimizer=optimizer, accumulate=accumulate, run="k"
    )

    def go(at: int, checkpoint: Path | None, error: type[BaseException] = KeyboardInterrupt) -> Trained:
        torch.rand(1)
        bound = tune(kind, dropout=0.1)
        stops = Stops(base, bound, rows, at, error)
        try:
            return train(base, bound, rows, replace(plan, checkpoint=checkpoint), stops.score, watch=stops.watch)
        finally:
            bound.detach()

    whole = go(0, None)
    for at in range(2, 12):  # 8 steps and 4 evaluations are 12 calls
        path = tmp_path / f"{at}" / "run.safetensors"
        with pytest.raises(Interrupted, match=r"stopped at step \d of 8; go on .* --resume"):
            go(at, path, Interrupted if at % 3 == 0 else KeyboardInterrupt)
        if at < 11:
            with pytest.raises(Interrupted):
                go(2, path)  # and once more, soon after
        assert same(go(0, path), whole), f"interrupted at call {at}"


def test_interrupted_in_the_middle_of_a_step_the_earlier_state_stands(
    base: Base, tune: Tune, encode: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, path = encode(24), tmp_path / "run.safetensors"
    plan = replace(PLAN, epochs=2, evaluations=3, run="k", learning_rate=0.02)

    def go(plan: Plan) -> Trained:
        bound = tune("xs")
        try:
            return train(base, bound, rows, plan, constant())
        finally:
            bound.detach()

    whole = go(plan)
    plan = replace(plan, checkpoint=path)
    real, calls = sft.Adam.step, []

    def torn(self: sft.Adam, rate: float, rows: torch.Tensor | None) -> None:
        real(self, rate, rows)
        calls.append(rate)
        if len(calls) == 4:
            raise KeyboardInterrupt  # the numbers have moved, the count of steps has not

    monkeypatch.setattr(sft.Adam, "step", torn)
    with pytest.raises(Interrupted):
        go(plan)
    monkeypatch.undo()
    assert same(go(plan), whole)


def test_a_finished_run_is_not_run_again(base: Base, tune: Tune, encode: Encode, tmp_path: Path) -> None:
    plan = replace(PLAN, run="k", checkpoint=tmp_path / "run.safetensors")
    bound = tune("xs")
    first = train(base, bound, encode(16), plan, constant())
    bound.detach()

    def never() -> float:
        raise AssertionError("it was finished")

    again = train(base, tune("xs"), encode(16), plan, never)
    assert same(first, again)


def test_a_checkpoint_of_another_run_is_refused(base: Base, tune: Tune, encode: Encode, tmp_path: Path) -> None:
    plan = replace(PLAN, run="one", checkpoint=tmp_path / "run.safetensors")
    bound = tune("xs")
    train(base, bound, encode(8), plan, constant())
    with pytest.raises(TrainingError, match="other settings, rows or base"):
        train(base, bound, encode(8), replace(plan, run="two"), constant())


def test_checkpoints_are_written_between_evaluations_too(
    base: Base, tune: Tune, encode: Encode, tmp_path: Path
) -> None:
    path, seen = tmp_path / "run.safetensors", []
    plan = replace(PLAN, run="k", checkpoint=path, checkpoint_seconds=0.0, evaluations=1)

    def watch(progress: Progress) -> None:
        found = load_checkpoint(path, run="k")
        seen.append(found[1]["step"] if found else None)

    train(base, tune("xs"), encode(24), plan, constant(), watch=watch)
    assert seen == [1, 2, 3]


def test_seeds_have_checkpoints_of_their_own(tmp_path: Path) -> None:
    plan = replace(PLAN, run="k", checkpoint=tmp_path / "run.safetensors")
    plans = [with_seed(plan, seed) for seed in (0, 1)]
    assert plans[0].checkpoint != plans[1].checkpoint and plans[0].run != plans[1].run
    assert [plan.seed for plan in plans] == [0, 1]


@pytest.mark.parametrize(
    ("parameters", "batch", "rate", "passes"),
    [(1_000_000, 16, 5e-3, 5.0), (6_000_000, 8, 5e-3, 5.0), (135_000_000, 4, 5e-4, 10.0)],
)
def test_what_is_left_to_the_base(parameters: int, batch: int, rate: float, passes: float) -> None:
    base: Any = SimpleNamespace(parameters=parameters)
    assert (sft.default_batch(base), sft.default_rate(base, "lora", "adam", 250)) == (batch, rate)
    assert sft.default_epochs(base, 400) == passes and sft.default_epochs(base, 10) == 12.0
    assert sft.default_epochs(base, 10_000) == (4.0 if parameters < sft.SMALL else 1.0)
    assert sft.default_rate(base, "xs", "adam", 4000) == sft.LEARNING_RATES["xs", "adam"]
    assert sft.default_rate(base, "lora", "natural", 250) is None


def test_a_long_lora_of_a_small_base_has_a_lower_rate() -> None:
    """At the rate of a short run a long one does not settle; a large base's rate is low already."""
    small: Any = SimpleNamespace(parameters=6_000_000)
    large: Any = SimpleNamespace(parameters=135_000_000)
    rates = [sft.default_rate(small, "lora", "adam", steps) for steps in (1, 100, 250, 1000, 4000)]
    assert rates == [5e-3, 5e-3, 5e-3, 2.5e-3, 1.25e-3]
    assert {sft.default_rate(large, "lora", "adam", steps) for steps in (1, 4000)} == {5e-4}
