"""Adapters that act on answers alone: what is computed once and what at each pass is what transformers computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers.cache_utils import DynamicCache

from whit.adapters.adapter import Adapter
from whit.adapters.basis import basis_of
from whit.adapters.interop.plain_lora import as_lora
from whit.adapters.learned import LearnedBasis, remember
from whit.adapters.targets import all_targets
from whit.adapters.tunable import BoundBasis, bind, tune_vector
from whit.adapters.vector import tiny_spec
from whit.data.rows import Row, Turn
from whit.data.templates import Encoded, encode_rows
from whit.errors import AdapterError, UsageError
from whit.evaluation.decoding import Decoder
from whit.testing import tiny_base
from whit.training import answering
from whit.training.answering import AnswerPasses
from whit.training.personal import PersonalPlan, mean_loss, train_personal

FIRST = 2


@pytest.fixture(scope="module")
def base() -> Any:
    return tiny_base(layers=4, hidden=32, heads=4, kv_heads=2, ffn=64, context=128)


@pytest.fixture
def bound(base: Any) -> Iterator[BoundBasis]:
    indices = [t.index for t in all_targets(name for name, _ in base.model.named_modules()) if t.layer >= FIRST]
    made = tune_vector(base, tiny_spec(indices, 4), number_type="float32")
    P = made.expansion.projection
    assert P is not None
    made.basis = LearnedBasis.of(made.spec, made.basis, P.numpy(), answers_only=True).on(made.basis)
    assert made.basis.learned is not None
    made.expansion.projection = torch.from_numpy(made.basis.learned.P.copy())
    yield made
    made.detach()


@pytest.fixture(scope="module")
def rows(base: Any) -> list[Encoded]:
    texts = ["a card", "much money, and more of it", "a", "what weather there is in paris today", "a card"]
    made = [
        Row(id=str(at), turns=(Turn("user", text),), completion=text[::-1][: 2 + at]) for at, text in enumerate(texts)
    ]
    return encode_rows(made, base.template, base.encode, stop_id=base.stop_ids[0])


def logits(base: Any, bound: BoundBasis, prompt: list[int], answer: list[int], v: torch.Tensor) -> torch.Tensor:
    """By transformers: the prompt but for its last token is read without the adapter, the rest with it."""
    cache = DynamicCache()
    with torch.no_grad():
        base.model(input_ids=torch.tensor([prompt[:-1]]), past_key_values=cache, use_cache=True)
    with bound.using(v):
        rest = torch.tensor([[prompt[-1], *answer[:-1]]])
        found: torch.Tensor = base.model(input_ids=rest, past_key_values=cache, use_cache=True).logits[0]
    return found


def vectors(bound: BoundBasis, count: int) -> torch.Tensor:
    return torch.linspace(-1.5, 1.5, count * bound.numbers).view(count, -1).requires_grad_(True)


@pytest.mark.parametrize("kept", [True, False])
def test_losses_and_gradients_are_those_of_transformers(
    base: Any, bound: BoundBasis, rows: list[Encoded], monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    if not kept:
        monkeypatch.setattr(answering, "MOST_BYTES", 10)
    passes = AnswerPasses(base, bound, rows, first=FIRST)
    assert passes.lengths == [len(row.completion_ids) for row in rows]
    for places in ([0, 1, 2, 3, 4], [3], [4, 0]):
        mine = vectors(bound, len(places))
        with bound.rows(mine):
            losses, batch = passes.losses(places)
        losses.sum().backward()
        theirs = vectors(bound, len(places))
        wanted = torch.cat([
            cross_entropy(
                logits(base, bound, rows[place].prompt_ids, rows[place].completion_ids, theirs[at]),
                torch.tensor(rows[place].completion_ids), reduction="none",
            )
            for at, place in enumerate(places)
        ])  # fmt: skip
        wanted.sum().backward()
        assert batch.rows == tuple(str(place) for place in places)
        assert torch.allclose(losses, wanted, atol=1e-4)
        assert mine.grad is not None and theirs.grad is not None
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-4) and float(theirs.grad.abs().max()) > 1e-3


def test_candidates_are_what_answers_have_and_the_base_proposes(
    base: Any, bound: BoundBasis, rows: list[Encoded]
) -> None:
    passes = AnswerPasses(base, bound, rows, first=FIRST, proposed=3)
    some = passes._candidates
    assert some is not None and some.tolist() == sorted(set(some.tolist())) and len(some) < base.model.vocab_size / 2
    assert {token for row in rows for token in row.completion_ids} <= set(some.tolist())
    v = vectors(bound, 1)
    with bound.rows(v):
        losses, _ = passes.losses([3])
    bare = logits(base, bound, rows[3].prompt_ids, rows[3].completion_ids, torch.zeros(bound.numbers))
    assert set(bare.topk(3).indices.flatten().tolist()) <= set(some.tolist())
    whole = logits(base, bound, rows[3].prompt_ids, rows[3].completion_ids, v[0].detach())
    wanted = torch.searchsorted(some, torch.tensor(rows[3].completion_ids))
    assert torch.allclose(losses, cross_entropy(whole[:, some], wanted, reduction="none"), atol=1e-4)
    part = passes.part(range(2, 5))
    with bound.rows(v):
        alone, batch = part.losses([1])
    assert torch.equal(alone, losses) and batch.rows == ("3",) and part.lengths == passes.lengths[2:]


def test_a_prompt_is_read_once_for_all_who_answered_it(base: Any, bound: BoundBasis, rows: list[Encoded]) -> None:
    read: list[tuple[int, ...]] = []
    hook = base.model.model.layers[0].mlp.register_forward_hook(lambda layer, x, y: read.append(tuple(x[0].shape[:2])))
    try:
        passes = AnswerPasses(base, bound, rows, first=FIRST)
        prefix = len(passes._prefix)
        assert prefix > 4  # of the template
        prompts = {tuple(row.prompt_ids) for row in rows}
        assert len(prompts) == 4 and read[:2] == [(1, prefix), (4, max(map(len, prompts)) - 1 - prefix)]
        before = len(read)
        with bound.rows(vectors(bound, 5)):
            passes.losses([0, 1, 2, 3, 4])
        assert len(read) == before  # layers below the lowest adapted one are not asked again
    finally:
        hook.remove()


def greedy(base: Any, bound: BoundBasis, prompt: list[int], most: int) -> list[int]:
    answer: list[int] = []
    while len(answer) < most:
        token = int(logits(base, bound, prompt, [*answer, 0], bound.v.detach())[-1].argmax())
        if token in base.stop_ids:
            break
        answer.append(token)
    return answer


def test_decoding_reads_prompts_bare_and_answers_adapted(base: Any, bound: BoundBasis, rows: list[Encoded]) -> None:
    with torch.no_grad():
        bound.v.copy_(torch.tensor([2.5, -2.0, 1.5, -3.0]))
    assert bound.answers_only
    prompts = [row.prompt_ids for row in rows]
    wanted = [greedy(base, bound, prompt, 6) for prompt in prompts]
    assert Decoder(base, bound).answers(prompts, most=6) == wanted
    own = bound.v.detach().expand(len(rows), -1)
    assert Decoder(base, bound, vectors=own).answers(prompts, most=6) == wanted
    assert Decoder(base, bound).answers(prompts[:1], most=6) == wanted[:1]
    assert Decoder(base).answers(prompts, most=6) != wanted
    learned, bound.basis = bound.basis, basis_of(base, bound.spec.rank)  # along the plain one it acts everywhere
    try:
        assert not bound.answers_only and Decoder(base, bound).answers(prompts, most=6) != wanted
    finally:
        bound.basis = learned
    answer = rows[1].completion_ids
    found = Decoder(base, bound).logits(prompts[1], answer)
    assert torch.allclose(found, logits(base, bound, prompts[1], answer, bound.v.detach()), atol=1e-4)


def test_such_an_adapter_is_no_lora(base: Any, bound: BoundBasis) -> None:
    assert bound.basis.learned is not None
    remember(bound.basis.learned)
    adapter = Adapter.from_vector(bound.spec, np.ones(bound.numbers, np.float32), bound.basis)
    bound.detach()
    again = bind(base, Adapter.from_bytes(adapter.to_bytes()))
    assert again.answers_only
    again.detach()
    with pytest.raises(AdapterError, match="answers alone"):
        as_lora(adapter, base)


def test_users_learn_their_words_from_answers_alone(base: Any) -> None:
    words = {"ann": "red", "bob": "blue", "cat": "green"}
    made = [
        Row(id=f"{user}-{at}", turns=(Turn("user", f"{at} cards"),), completion=word)
        for user, word in words.items() for at in range(12)
    ]  # fmt: skip
    users = [row.id.split("-")[0] for row in made]
    encoded = encode_rows(made, base.template, base.encode, stop_id=base.stop_ids[0])
    learn = [at for at in range(36) if at % 12 < 9]
    check = [at for at in range(36) if at % 12 >= 9]
    indices = [t.index for t in all_targets(name for name, _ in base.model.named_modules()) if t.layer >= FIRST]
    bound = tune_vector(base, tiny_spec(indices, 3, rank=4, groups=1), number_type="float32")
    try:
        plan = PersonalPlan(
            basis_epochs=30, shared_epochs=4, epochs=10, batch=9, learning_rate=0.1, personal_rate=0.1,
            basis_rate=0.05, answers_only=True,
        )  # fmt: skip
        found = train_personal(
            base, bound, [encoded[at] for at in learn], [users[at] for at in learn],
            [encoded[at] for at in check], [users[at] for at in check], plan,
        )  # fmt: skip
        assert found.basis is not None and found.basis.answers_only and bound.answers_only
        passes = AnswerPasses(base, bound, [encoded[at] for at in check], first=FIRST)
        own = torch.from_numpy(np.stack([found.vector(users[at]) for at in check]))
        shared = torch.from_numpy(found.shared).expand(len(check), -1)
        losses = [mean_loss(bound, passes, each, 9) for each in (own, shared, torch.zeros_like(own))]
        assert losses[0] < 0.97 * losses[1] < 0.97 * losses[2]
    finally:
        bound.detach()


def test_other_kinds_of_base_are_refused(base: Any, bound: BoundBasis, rows: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(base.model.config, "model_type", "gemma3_text")
    with pytest.raises(UsageError, match="--answers-only"):
        AnswerPasses(base, bound, rows, first=FIRST)
