"""One tiny base for all tests of training, rows encoded for it, and a cache folder of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from whit.adapters.targets import all_targets
from whit.adapters.tunable import Bound, tune_lora, tune_vector
from whit.adapters.vector import tiny_spec, xs_spec
from whit.bases import Base
from whit.data.rows import Row, Turn
from whit.data.templates import Encoded
from whit.testing import tiny_base


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder that no other test and no user shares; one thread, so that sums have one order."""
    folder = tmp_path_factory.mktemp("cache")
    before, threads = os.environ.get("WHIT_CACHE"), torch.get_num_threads()
    os.environ["WHIT_CACHE"] = str(folder)
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)
    if before is None:
        del os.environ["WHIT_CACHE"]
    else:
        os.environ["WHIT_CACHE"] = before


@pytest.fixture(scope="session")
def shared_base(cache: Path) -> Base:
    return tiny_base(layers=2, hidden=32, heads=2, kv_heads=1, ffn=64, vocab=320, context=128)


@pytest.fixture
def base(shared_base: Base) -> Iterator[Base]:
    """The tiny base; a test that changes a weight or leaves anything in the model fails."""
    before = {name: part.clone() for name, part in shared_base.model.state_dict().items()}
    yield shared_base
    after = shared_base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(part, after[name]) for name, part in before.items())
    assert not any(parameter.requires_grad for parameter in shared_base.model.parameters())


@pytest.fixture(scope="session")
def encode(shared_base: Base) -> Callable[..., list[Encoded]]:
    """`count` rows whose answer follows from their first word: red -> A, blue -> B."""

    def make(count: int) -> list[Encoded]:
        rows = []
        for number in range(count):
            word, answer = (("red", "A"), ("blue", "B"))[number % 2]
            text = f"{word} {'x' * (1 + number % 5)}{number}"
            rows.append(Row(id=f"r{number}", turns=(Turn("user", text),), completion=answer))
        prompts = shared_base.template.render_many([row.turns for row in rows])
        return [
            Encoded(row, shared_base.encode(str(text)), [*shared_base.encode(row.completion), shared_base.stop_ids[0]])
            for row, text in zip(rows, prompts, strict=True)
        ]

    return make


@pytest.fixture
def tune(base: Base) -> Iterator[Callable[..., Bound]]:
    """A fresh adapter of a kind; taken out after the test."""
    made: list[Bound] = []

    def fresh(kind: str, *, seed: int = 0, dropout: float = 0.0, rank: int = 4) -> Bound:
        targets = all_targets(name for name, _ in base.model.named_modules())
        indices = [target.index for target in targets]
        if kind == "lora":
            made.append(tune_lora(base, targets, rank=rank, alpha=2.0 * rank, dropout=dropout, seed=seed))
        else:
            spec = xs_spec(indices, rank) if kind == "xs" else tiny_spec(indices, 13, rank=2)
            made.append(tune_vector(base, spec))
        return made[-1]

    yield fresh
    for bound in reversed(made):
        bound.detach()
