"""Personal training: each row moves its own user alone, shrinkage follows the evidence, and it is worth having."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from whit.adapters.targets import all_targets
from whit.adapters.tunable import tune_vector
from whit.adapters.vector import tiny_spec, xs_spec
from whit.data.rows import Row, Turn
from whit.data.templates import encode_rows
from whit.errors import TrainingError
from whit.testing import tiny_base
from whit.training.personal import SHRINKAGES, Personal, PersonalPlan, mean_loss, train_personal, weight
from whit.training.upper import Passes

THINGS = ("card", "money", "weather", "paris", "apples", "pears")
WORDS = {"ann": "red", "bob": "blue", "cat": "green"}
PLAN = PersonalPlan(shared_epochs=15, epochs=15, batch=12, learning_rate=0.3, personal_rate=0.3)


@pytest.fixture(scope="module")
def base() -> Any:
    return tiny_base(layers=2, hidden=32, heads=2, kv_heads=1, ffn=64, context=96)


@pytest.fixture
def bound(base: Any) -> Any:
    indices = [target.index for target in all_targets(name for name, _ in base.model.named_modules())]
    made = tune_vector(base, xs_spec(indices, 2), number_type="float32")
    yield made
    made.detach()


@pytest.fixture(scope="module")
def rows(base: Any) -> Callable[[dict[str, str], int], tuple[list[Any], list[str]]]:
    """Constructed users: on the same inputs each wants a word of their own."""

    def make(words: dict[str, str], count: int, start: int = 0) -> tuple[list[Any], list[str]]:
        made, users = [], []
        for user, word in words.items():
            for at in range(start, start + count):
                text = f"{THINGS[at % len(THINGS)]} {at}"
                made.append(Row(id=f"{user}-{at}", turns=(Turn("user", text),), completion=word))
                users.append(user)
        return encode_rows(made, base.template, base.encode, stop_id=base.stop_ids[0]), users

    return make


def test_users_who_differ_get_their_own_and_strangers_the_shared(base: Any, bound: Any, rows: Any) -> None:
    train, users = rows(WORDS, 12)
    held, held_users = rows(WORDS, 6, 12)
    found = train_personal(base, bound, train, users, held, held_users, PLAN)
    assert found.users == ("ann", "bob", "cat") and found.rows == (12, 12, 12)
    assert found.shrinkage <= 2.0 and found.losses[found.shrinkage] < 0.95 * found.losses[math.inf]
    fresh, fresh_users = rows(WORDS, 6, 18)
    own = torch.from_numpy(np.stack([found.vector(user) for user in fresh_users]))
    shared = torch.from_numpy(found.shared).expand(len(fresh), -1)
    personal_loss = mean_loss(bound, Passes(base, fresh, first=0), own, 12)
    shared_loss = mean_loss(bound, Passes(base, fresh, first=0), shared, 12)
    assert (
        personal_loss
        < 0.97 * shared_loss
        < mean_loss(bound, Passes(base, fresh, first=0), torch.zeros_like(shared), 12)
    )
    assert np.array_equal(found.vector("nobody"), found.shared)


def test_users_who_do_not_differ_are_shrunk_to_the_shared(base: Any, bound: Any, rows: Any) -> None:
    """With answers that are noise, a vector of one's own can only fit the noise."""
    draw = np.random.default_rng(0)
    train, users = rows({f"u{n}": "red" for n in range(6)}, 2)
    words = ["red", "blue"]
    train = [replace(row, completion_ids=[*base.encode(words[draw.integers(2)]), base.stop_ids[0]]) for row in train]
    held, held_users = rows({f"u{n}": "red" for n in range(6)}, 6, 2)
    held = [replace(row, completion_ids=[*base.encode(words[draw.integers(2)]), base.stop_ids[0]]) for row in held]
    found = train_personal(base, bound, train, users, held, held_users, replace(PLAN, shared_epochs=60))
    assert found.shrinkage >= 8.0
    assert found.losses[found.shrinkage] == min(found.losses.values()) < found.losses[0.0]


def test_a_row_moves_its_own_user_alone(base: Any, bound: Any, rows: Any) -> None:
    train, users = rows(WORDS, 4)
    held, held_users = rows(WORDS, 2, 4)
    plan = replace(PLAN, epochs=1)
    one = train_personal(base, bound, train, users, held, held_users, plan)
    assert all(np.abs(part).sum() > 0 for part in one.own)
    few = [at for at, user in enumerate(users) if user != "cat"]
    two = train_personal(base, bound, [train[at] for at in few], [users[at] for at in few], held, held_users, plan)
    assert two.users == ("ann", "bob") and np.array_equal(two.vector("cat"), two.shared)
    again = train_personal(base, bound, train, users, held, held_users, plan)
    assert np.array_equal(one.own, again.own) and one.shrinkage == again.shrinkage


def test_shrinkage_follows_the_number_of_rows() -> None:
    assert weight(0, 8.0) == 0.0 and weight(8, 8.0) == 0.5 and weight(8, 0.0) == 1.0 and weight(8, math.inf) == 0.0
    assert [weight(n, 8.0) for n in (1, 3, 100)] == sorted(weight(n, 8.0) for n in (1, 3, 100))
    own = np.ones((1, 2), np.float32)
    made = Personal(("ann",), (8,), np.zeros(2, np.float32), own, 8.0, {}, 0, 0.0)
    assert made.vector("ann").tolist() == [0.5, 0.5] and made.vector("bob").tolist() == [0.0, 0.0]
    assert SHRINKAGES[-1] == math.inf


def test_nothing_to_learn_from_and_nan_are_told(base: Any, bound: Any, rows: Any, monkeypatch: Any) -> None:
    train, users = rows(WORDS, 2)
    with pytest.raises(TrainingError, match="needs rows"):
        train_personal(base, bound, [], [], train, users, PLAN)
    from whit.training import upper

    real = upper.loss_of
    monkeypatch.setattr(upper, "loss_of", lambda base, batch: real(base, batch) * math.nan)
    with pytest.raises(TrainingError, match="ann-0"):
        train_personal(base, bound, train, users, train, users, PLAN)


def test_a_basis_is_learned_for_all(base: Any, rows: Any) -> None:
    """Along learned directions two numbers say what along drawn ones they cannot; the file gives the same answers."""
    from whit.adapters import learned
    from whit.adapters.adapter import Adapter
    from whit.adapters.basis import basis_of
    from whit.adapters.tunable import bind

    train, users = rows(WORDS, 12)
    held, held_users = rows(WORDS, 6, 12)
    indices = [target.index for target in all_targets(name for name, _ in base.model.named_modules())]
    losses, found = {}, None
    for epochs in (0.0, 15.0):
        bound = tune_vector(base, tiny_spec(indices, 2, groups=1), number_type="float32")
        try:
            found = train_personal(
                base, bound, train, users, held, held_users, replace(PLAN, basis_epochs=epochs, basis_rate=0.1)
            )
            own = torch.from_numpy(np.stack([found.vector(user) for user in held_users]))
            losses[epochs] = mean_loss(bound, Passes(base, held, first=0), own, 12)
            assert bound.basis.learned is found.basis
        finally:
            bound.detach()
    assert losses[15.0] < 0.95 * losses[0.0]
    assert found is not None and found.basis is not None
    assert found.basis.P.shape == (len(indices), 2, 2, 2) and len(found.basis.to_bytes()) < 1000
    spec = tiny_spec(indices, 2, groups=1)
    adapter = Adapter.from_vector(spec, found.vector("ann"), found.basis.on(basis_of(base, 2)), number_type="float32")
    learned.remember(found.basis)
    back = bind(base, Adapter.from_bytes(adapter.to_bytes()))
    try:
        mine = [row for row, user in zip(held, held_users, strict=True) if user == "ann"]
        vectors = torch.from_numpy(found.vector("ann")).expand(len(mine), -1)
        with_file = mean_loss(back, Passes(base, mine, first=0), vectors, 12)
    finally:
        back.detach()
    assert with_file == pytest.approx(losses[15.0], rel=0.5)


def test_the_vectors_that_found_a_basis_are_kept(base: Any, rows: Any) -> None:
    """With next to no steps after it, users have their own already, as differences from the mean that all share."""
    train, users = rows(WORDS, 12)
    held, held_users = rows(WORDS, 6, 12)
    indices = [target.index for target in all_targets(name for name, _ in base.model.named_modules())]
    bound = tune_vector(base, tiny_spec(indices, 2, groups=1), number_type="float32")
    plan = replace(PLAN, basis_epochs=15, basis_rate=0.1, shared_epochs=0.01, epochs=0.01, learning_rate=1e-6)
    try:
        found = train_personal(base, bound, train, users, held, held_users, replace(plan, warmup=0.0))
    finally:
        bound.detach()
    assert found.losses[0.0] < 0.97 * found.losses[math.inf]
    moved = 2 * plan.personal_rate  # the one step, at most, of each number
    assert float(np.abs(found.own).max()) > moved and float(np.abs(found.own.mean(0)).max()) <= moved


def test_only_tiny_adapters_have_a_basis_to_learn(base: Any, bound: Any, rows: Any) -> None:
    train, users = rows(WORDS, 2)
    with pytest.raises(TrainingError, match="tiny"):
        train_personal(base, bound, train, users, train, users, replace(PLAN, basis_epochs=1.0))


def test_what_all_want_alike_is_learned_by_the_basis(base: Any, rows: Any) -> None:
    """Vectors that never move: what everybody wants is then in P, along the number that begins alike for all."""
    train, users = rows(dict.fromkeys(WORDS, "red"), 12)
    held, held_users = rows(dict.fromkeys(WORDS, "red"), 6, 12)
    indices = [target.index for target in all_targets(name for name, _ in base.model.named_modules())]
    bound = tune_vector(base, tiny_spec(indices, 4, groups=2), number_type="float32")
    plan = replace(PLAN, basis_epochs=15.0, basis_rate=0.1, learning_rate=0.0, personal_rate=0.0)
    try:
        before = mean_loss(bound, Passes(base, held, first=0), torch.zeros(len(held), 4), 12)
        found = train_personal(base, bound, train, users, held, held_users, plan)
        own = torch.from_numpy(np.stack([found.vector(user) for user in held_users]))
        assert found.shared.tolist() == [1.0, 0.0, 1.0, 0.0] and not np.any(found.own)
        assert mean_loss(bound, Passes(base, held, first=0), own, 12) < 0.9 * before
    finally:
        bound.detach()
