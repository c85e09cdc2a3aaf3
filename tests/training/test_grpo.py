"""GRPO: its formulas are the papers', it learns what is rewarded, and it resumes to the same numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from whit.adapters.targets import all_targets
from whit.adapters.tunable import Bound, tune_lora, tune_vector
from whit.adapters.vector import tiny_spec, xs_spec
from whit.bases import Base
from whit.data.rows import Row, Turn
from whit.data.templates import Encoded
from whit.errors import Interrupted, TrainingError
from whit.rewards.reward import Grade
from whit.testing import tiny_base
from whit.training.batching import collate
from whit.training.evolution import centred_ranks, defaults, noise, train_evolution
from whit.training.grpo import LEARNING_RATES, advantages, default_rate, policy_loss, train_grpo
from whit.training.reward import Rewarded, RewardPlan, RewardProgress
from whit.training.rollouts import roll_out
from whit.training.sft import loss_of

Tune = Callable[..., Bound]
Encode = Callable[[int], list[Encoded]]
PLAN = RewardPlan(steps=6, batch=2, learning_rate=0.05, most=4, samples=4, population=4, evaluations=2, warmup=0.0)


class Rewards:
    """The share of an answer's characters that are lower-case letters; or what a function says."""

    name = "letters"

    def __init__(self, of: Callable[[str], float] | None = None) -> None:
        self.of = of or (lambda answer: sum(letter.islower() for letter in answer) / max(1, len(answer)))

    def grade(self, answers: Sequence[str], rows: Sequence[Row]) -> list[Grade]:
        return [Grade(self.of(answer), 0.0, 0.0, 1.0) for answer in answers]


def run(base: Base, bound: Bound, rows: list[Encoded], plan: RewardPlan, **more: object) -> Rewarded:
    train = train_grpo if "grpo" in plan.optimizer else train_evolution
    options: dict[str, object] = {"reward": Rewards(), "score": lambda: 0.0, **more}
    reward, score = options.pop("reward"), options.pop("score")
    return train(base, bound, rows, reward, plan, score, **options)  # type: ignore[arg-type]


@contextlib.contextmanager
def fresh(base: Base, kind: str) -> Iterator[Bound]:
    """An adapter that is taken out before the next is put in."""
    targets = all_targets(name for name, _ in base.model.named_modules())
    indices = [target.index for target in targets]
    if kind == "lora":
        bound: Bound = tune_lora(base, targets, rank=2, alpha=4.0, dropout=0.0, seed=0)
    else:
        bound = tune_vector(base, xs_spec(indices, 4) if kind == "xs" else tiny_spec(indices, 13, rank=2))
    try:
        yield bound
    finally:
        bound.detach()


def numbers(found: Rewarded) -> np.ndarray:
    adapter = found.trained.adapter
    if adapter.vector is not None:
        return adapter.vector
    assert adapter.lora is not None
    return np.concatenate([part.float().numpy().ravel() for part in adapter.lora.B.values()])


def test_advantages() -> None:
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1]])
    A = advantages(rewards, normalised=True)
    assert torch.allclose(A[0], (rewards[0] - 0.25) / (rewards[0].std() + 1e-4)) and not A[1].any()
    assert torch.equal(advantages(rewards, normalised=False)[0], rewards[0] - 0.25)


def test_the_loss_is_the_formula_and_clips(encode: Encode) -> None:
    rows = encode(2)
    rows = [replace(rows[0], completion_ids=[5, 6, 7]), replace(rows[1], completion_ids=[8])]
    batch = collate(rows)
    old = torch.tensor([-1.0, -2.0, -0.5, -3.0])
    logp = (old + torch.tensor([0.0, 0.5, -0.5, 1.0])).requires_grad_(True)
    A = torch.tensor([2.0, -1.0])
    loss = policy_loss(logp, old, batch, A, clip=0.2, length=None)
    rho = torch.exp(logp.detach() - old)
    wanted = -(2 * (1 + 1.2 + rho[2]) / 3 - rho[3])
    assert float(loss.detach()) == pytest.approx(float(wanted), rel=1e-6)
    loss.backward()
    assert logp.grad is not None and logp.grad[1] == 0 and logp.grad[0] != 0 and logp.grad[3] != 0
    constant = policy_loss(logp.detach(), old, batch, A, clip=0.2, length=4)
    assert float(constant) == pytest.approx(float(-(2 * (1 + 1.2 + rho[2]) - rho[3]) / 4), rel=1e-6)
    bare = torch.tensor([-1.5, -1.0, -0.8, -2.5])
    anchored = policy_loss(logp.detach(), old, batch, A, clip=0.2, length=None, anchor=(0.3, bare))
    apart = torch.exp(bare - logp.detach()) - (bare - logp.detach()) - 1
    assert bool((apart > 0).all())
    assert float(anchored) == pytest.approx(float(wanted + 0.3 * (apart[:3].mean() + apart[3])), rel=1e-6)


def test_the_kl_term_estimates_the_divergence_and_draws_back_to_the_base(base: Base, encode: Encode) -> None:
    """In an exact sum over all tokens the mean of KL_t is KL(pi || base); its gradient leads back, flat groups too."""
    torch.manual_seed(0)
    ours, theirs = torch.log_softmax(torch.randn(50), -1), torch.log_softmax(torch.randn(50), -1)
    k3 = torch.exp(theirs - ours) - (theirs - ours) - 1
    assert float((ours.exp() * k3).sum()) == pytest.approx(float((ours.exp() * (ours - theirs)).sum()), rel=1e-5)
    with fresh(base, "xs") as bound:
        free = run(base, bound, encode(4), PLAN)
    with fresh(base, "xs") as bound:
        held = run(base, bound, encode(4), replace(PLAN, kl=50.0))
    assert np.linalg.norm(numbers(held)) < 0.7 * np.linalg.norm(numbers(free))
    with fresh(base, "xs") as bound, torch.no_grad():
        bound.parameters()[0].normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
        before = bound.parameters()[0].clone()
    with fresh(base, "xs") as bound:
        with torch.no_grad():
            bound.parameters()[0].copy_(before)
        plan = replace(PLAN, kl=1.0, steps=12)
        with contextlib.suppress(TrainingError):  # a constant reward ends a run; the term has moved it by then
            run(base, bound, encode(4), plan, reward=Rewards(lambda answer: 0.5))
        after = bound.parameters()[0].detach()
    assert float(after.norm()) < float(before.norm())


def test_rollouts_draw_from_the_policy_and_carry_their_stop(base: Base, tune: Tune, encode: Encode) -> None:
    bound, prompt = tune("xs"), encode(1)[0].prompt_ids
    drawn = roll_out(base, bound, [prompt] * 1500, most=1, seed=(0, 0))
    again = roll_out(base, bound, [prompt] * 1500, most=1, seed=(0, 0))
    assert [each.ids for each in drawn] == [each.ids for each in again]
    other = roll_out(base, bound, [prompt] * 1500, most=1, seed=(0, 1))
    assert [each.ids for each in drawn] != [each.ids for each in other]
    counts = np.bincount([each.ids[0] for each in drawn], minlength=base.model.config.vocab_size)
    with torch.no_grad():
        logits = base.model(input_ids=torch.tensor([prompt])).logits[0, -1]
    chances = torch.softmax(logits.float(), -1).numpy()
    error = (counts - 1500 * chances) ** 2 / (1500 * chances)
    assert error.sum() < len(chances) + 6 * np.sqrt(2 * len(chances)), "chi-squared, six deviations"
    for each in roll_out(base, bound, [prompt] * 300, most=40, seed=(3, 0)):
        assert each.cut == (each.ids[-1] not in base.stop_ids)
        assert not any(token in base.stop_ids for token in each.ids[:-1])


def test_what_is_drawn_is_what_is_followed(base: Base, tune: Tune, encode: Encode) -> None:
    """One step of Dr-GRPO is the gradient of the expected reward, as a finite difference sees it."""
    bound, row = tune("xs"), encode(1)[0]
    with torch.no_grad():
        logits = base.model(input_ids=torch.tensor([row.prompt_ids])).logits[0, -1]
    token = int(logits.argmax())
    batch = collate([replace(row, completion_ids=[token])])
    with bound.active():
        logp = -loss_of(base, batch)
        policy_loss(logp, logp.detach(), batch, torch.tensor([1.0]), clip=0.2, length=1).backward()
    gradient = bound.parameters()[0].grad
    assert gradient is not None
    way = -gradient / gradient.norm()
    with torch.no_grad():
        bound.parameters()[0].copy_(1e-3 * way)
        with bound.active():
            after = float(-loss_of(base, batch))
    assert after - float(logp.detach()) == pytest.approx(1e-3 * float(gradient.norm()), rel=0.05)


@pytest.mark.parametrize(
    ("kind", "optimizer", "kl"),
    [
        ("xs", "grpo", 0.0), ("xs", "grpo", 0.1), ("tiny", "dr-grpo", 0.0), ("lora", "grpo", 0.0),
        ("lora", "grpo", 0.1), ("tiny", "es", 0.0), ("tiny", "cma", 0.0),
    ],
)  # fmt: skip
def test_it_learns_what_is_rewarded_and_a_killed_run_ends_the_same(
    base: Base, encode: Encode, tmp_path: Path, kind: str, optimizer: str, kl: float
) -> None:
    if optimizer == "cma":
        pytest.importorskip("cma")
    rows = encode(4)
    plan = replace(
        PLAN, optimizer=optimizer, updates=2 if optimizer == "grpo" else 1, sigma=1.0 if optimizer == "cma" else 0.3,
        kl=kl,
    )  # fmt: skip
    with fresh(base, kind) as bound:
        whole = run(base, bound, rows, plan)
    assert len(whole.measures) == 6 and whole.trained.steps == 6
    assert np.abs(numbers(whole)).max() > 0

    def stop(progress: RewardProgress) -> None:
        if progress.step == 4:
            raise KeyboardInterrupt

    plan = replace(plan, checkpoint=tmp_path / "run.safetensors", run="x", checkpoint_seconds=0.0)
    with fresh(base, kind) as bound, pytest.raises(Interrupted, match="step 4 of 6"):
        run(base, bound, rows, plan, watch=stop)
    with fresh(base, kind) as bound:
        resumed = run(base, bound, rows, plan)
    assert np.array_equal(numbers(whole), numbers(resumed))
    assert whole.measures == resumed.measures


def test_reward_rises(base: Base, encode: Encode) -> None:
    plan = replace(PLAN, steps=24, batch=4, samples=16, population=16, sigma=0.5)
    with fresh(base, "xs") as bound:
        found = run(base, bound, encode(4), replace(plan, optimizer="es", steps=16, batch=2, learning_rate=0.2))
    means = [each.reward for each in found.measures]
    assert np.mean(means[-4:]) > np.mean(means[:4]) + 0.1
    told = [Row(id=f"r{number}", turns=(Turn("user", "red " + "x" * number),), completion="A") for number in range(4)]
    rows = [Encoded(row, base.encode(str(base.template.render(row.turns))), [5]) for row in told]
    with fresh(base, "lora") as bound:
        found = run(base, bound, rows, replace(plan, optimizer="grpo", learning_rate=0.05))
    means = [each.reward for each in found.measures]  # of drawn answers: far noisier than greedy ones
    assert np.mean(means[-8:]) > np.mean(means[:4]) + 0.02


@pytest.mark.parametrize(("kind", "rise"), [("tiny", 0.06), ("xs", 0.05)])
def test_at_the_default_rate_a_token_that_is_rewarded_comes_more_often(kind: str, rise: float) -> None:
    """On a base with opinions: the common one draws tokens almost evenly, and no adapter can change that by much."""
    base = tiny_base(layers=2, hidden=32, heads=2, kv_heads=1, ffn=64, vocab=320, context=128)
    with torch.no_grad():
        base.model.get_output_embeddings().weight.mul_(2.5)
    texts = [f"{'red' if number % 2 else 'blue'} {'x' * (1 + number % 5)}{number}" for number in range(16)]
    asked = [Row(id=f"r{number}", turns=(Turn("user", text),), completion="A") for number, text in enumerate(texts)]
    prompts = base.template.render_many([row.turns for row in asked])
    rows = [Encoded(row, base.encode(str(text)), [5]) for row, text in zip(asked, prompts, strict=True)]
    with torch.no_grad():
        logits = torch.stack([base.model(input_ids=torch.tensor([row.prompt_ids])).logits[0, -1] for row in rows])
    chances = torch.softmax(logits.float(), -1).mean(0)
    words = [base.decode([token]) for token in range(len(chances))]
    likely = {word: sum(float(chances[at]) for at, same in enumerate(words) if same == word) for word in set(words)}
    wanted = min(likely, key=lambda word: (abs(likely[word] - 0.2), word))
    plan = replace(PLAN, steps=32, batch=4, samples=16, most=1, warmup=0.1, learning_rate=default_rate(base, kind))
    with fresh(base, kind) as bound:
        found = run(base, bound, rows, plan, reward=Rewards(lambda answer: float(answer == wanted)))
    means = [each.reward for each in found.measures]
    assert np.mean(means[-8:]) > np.mean(means[:4]) + rise, (wanted, likely[wanted], means)


def test_a_larger_base_moves_at_a_lower_rate(base: Base) -> None:
    assert default_rate(base, "tiny") == LEARNING_RATES["tiny"]
    larger = replace(base, parameters=135_000_000)
    for kind, rate in LEARNING_RATES.items():
        assert 0 < default_rate(larger, kind) < rate / 2
    assert all(0 < less < usual / 2 for less, usual in zip(defaults(larger), defaults(base), strict=True))


def test_the_best_on_validation_is_kept(base: Base, tune: Tune, encode: Encode) -> None:
    scores = iter([0.2, 0.9, 0.1])
    kept: list[torch.Tensor] = []
    bound = tune("tiny")

    def score() -> float:
        kept.append(bound.parameters()[0].detach().clone())
        return next(scores)

    found = run(base, bound, encode(4), PLAN, score=score)
    assert found.trained.best.step == 3 and found.trained.best.score == 0.9
    assert np.allclose(numbers(found), kept[1].numpy())


def test_a_reward_that_never_varies_is_told(base: Base, encode: Encode) -> None:
    for optimizer in ("grpo", "es"):
        plan = replace(PLAN, optimizer=optimizer)
        with (
            fresh(base, "tiny") as bound,
            pytest.raises(TrainingError, match=r"0\.5 for every answer in the first 3 steps"),
        ):
            run(base, bound, encode(4), plan, reward=Rewards(lambda answer: 0.5))


def test_ranks_are_centred_and_ties_share_them() -> None:
    assert centred_ranks(np.array([3.0, 1, 2])).tolist() == [0.5, -0.5, 0]
    assert centred_ranks(np.array([1.0, 0, 0, 1])).tolist() == pytest.approx([1 / 3, -1 / 3, -1 / 3, 1 / 3])
    assert not centred_ranks(np.ones(4)).any()
    assert np.array_equal(noise(1, 2, 3, 4), noise(1, 2, 3, 4)) and not np.array_equal(
        noise(1, 2, 3, 4), noise(1, 3, 3, 4)
    )
