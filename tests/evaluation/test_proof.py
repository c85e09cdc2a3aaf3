"""The proof's parts: one way to answer and score rows, few-shot examples, the null adapter, forgetting."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from importlib import resources

import numpy as np
import pytest
import torch

from whit.adapters.adapter import Adapter
from whit.adapters.targets import all_targets
from whit.adapters.tunable import bind, tune_lora, tune_vector
from whit.adapters.vector import xs_spec
from whit.bases import Base
from whit.data.rows import Row, Turn
from whit.errors import DataError, ScoreError
from whit.evaluation.decoding import Decoder
from whit.evaluation.proof import (
    PLAIN_TEXT,
    Examiner,
    best_shots,
    changed_nothing,
    forgetting,
    longest_answer,
    null_adapter,
    shots,
    stop_token,
)
from whit.evaluation.scoring import make_scorer
from whit.testing import tiny_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Base]:
    before = os.environ.get("WHIT_CACHE")
    os.environ["WHIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield tiny_base(layers=1, hidden=32, heads=2, kv_heads=1, ffn=32, vocab=320, context=128, tied=False)
    if before is None:
        del os.environ["WHIT_CACHE"]
    else:
        os.environ["WHIT_CACHE"] = before


@pytest.fixture(scope="module")
def adapter(base: Base) -> Callable[[str], Adapter]:
    def make(kind: str) -> Adapter:
        targets = all_targets(name for name, _ in base.model.named_modules())
        if kind == "lora":
            bound = tune_lora(base, targets, rank=2, alpha=8.0, dropout=0.0, seed=0)
        else:
            bound = tune_vector(base, xs_spec([target.index for target in targets], 2))  # type: ignore[assignment]
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in bound.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=draw))
        found = bound.export()
        bound.detach()
        return found

    return make


ROWS = [
    Row(id=f"r{number}", turns=(Turn("user", f"{word} {number}"),), completion="ABC"[number % 3])
    for number, word in enumerate(["red", "blue", "green", "grey"] * 6)
]


@pytest.fixture(scope="module")
def examiner(base: Base) -> Examiner:
    return Examiner(base, make_scorer("label", ROWS), "Which letter?", 4)


def test_every_system_answers_the_same_prompts(
    examiner: Examiner, base: Base, adapter: Callable[[str], Adapter]
) -> None:
    bare = examiner.system("the base", "base", ROWS)
    prompts = [row.prompt_ids for row in examiner.encode(ROWS)]
    answers = Decoder(base).answers(prompts, most=4)
    assert list(bare.answers) == [base.decode(found) for found in answers]
    assert [score.value for score in bare.scores] == [
        examiner.scorer.score(answer, row).value for answer, row in zip(bare.answers, ROWS, strict=True)
    ]
    bound = bind(base, adapter("xs"))
    tuned = examiner.system("the adapter", "adapter", ROWS, bound=bound)
    bound.detach()
    assert not changed_nothing(bare, tuned) and changed_nothing(bare, bare)
    assert len(tuned.readings) == len(ROWS) and tuned.seconds is not None
    with pytest.raises(ScoreError, match="same rows"):
        changed_nothing(bare, examiner.system("fewer", "base", ROWS[:3]))


def test_the_instruction_and_the_examples_stand_in_the_prompt(examiner: Examiner, base: Base) -> None:
    (plain,), (shown,) = examiner.encode(ROWS[:1]), examiner.encode(ROWS[:1], examples=ROWS[4:6])
    assert "Which letter?" in base.decode(plain.prompt_ids)
    text = base.decode(shown.prompt_ids)
    assert "red 4" in text and "blue 5" in text and text.rindex("red 0") > text.rindex("blue 5")
    assert plain.completion_ids == [*base.encode("A"), examiner.stop_id]


def test_room_is_kept_for_the_answer(examiner: Examiner, base: Base) -> None:
    long = Row(id="long", turns=(Turn("user", "x" * 90),), completion="A")
    length = len(examiner.encode([long], learn=True)[0].prompt_ids)
    tight = copy.copy(base)
    tight.context = length + 2  # the answer and its end
    assert Examiner(tight, examiner.scorer, "Which letter?", 1).encode([long])
    with pytest.raises(DataError, match="long"):
        Examiner(tight, examiner.scorer, "Which letter?", 9).encode([long])


def test_an_answer_has_room_beyond_the_longest_known(base: Base) -> None:
    rows = [Row(id="r", turns=(Turn("user", "?"),), completion="q" * 20)]
    tokens = len(base.encode("q" * 20))
    assert longest_answer(rows, base) == tokens + tokens // 2 + 4
    assert longest_answer([Row(id="r", turns=(), completion="q" * 900)], base) == base.context // 2


def test_the_stop_token_is_one_that_the_base_stops_at(base: Base) -> None:
    assert stop_token(base) == base.tokenizer.eos_token_id and stop_token(base) in base.stop_ids
    other = copy.copy(base)
    other.stop_ids = (7, 9)
    assert stop_token(other) == 9


def test_shots_are_drawn_by_seed_and_label_by_label() -> None:
    assert shots(ROWS, 5, seed=1) == shots(ROWS, 5, seed=1) != shots(ROWS, 5, seed=2)
    balanced = shots(ROWS, 6, labels=("A", "B", "C"), seed=3)
    assert sorted(row.completion for row in balanced) == ["A", "A", "B", "B", "C", "C"]
    assert {row.completion for row in balanced[:3]} == {"A", "B", "C"}
    assert len({row.id for row in balanced}) == 6
    assert len(shots(ROWS, 99, labels=("A", "B", "C"))) == len(ROWS)


def test_the_count_of_shots_is_chosen_on_validation(examiner: Examiner, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def answer(self: Examiner, encoded: list[object], bound: object = None, on_done: object = None) -> list[str]:
        asked.append(len(encoded))
        right = {0: 3, 1: 7, 2: 7}[len(asked) - 1]
        return [row.completion if place < right else "?" for place, row in enumerate(ROWS[:8])]

    monkeypatch.setattr(Examiner, "answer", answer)
    count, examples, scores = best_shots(examiner, ROWS[8:], ROWS[:8], (3, 1, 2, 2), seed=0)
    assert scores == {1: 3 / 8, 2: 7 / 8, 3: 7 / 8} and asked == [8, 8, 8]
    assert count == 2 and len(examples) == 2 and not {row.id for row in examples} & {row.id for row in ROWS[:8]}


def test_counts_that_cannot_be_are_passed_over(examiner: Examiner) -> None:
    assert best_shots(examiner, ROWS[:2], ROWS[8:12], (3,), seed=0) == (0, [], {})
    assert best_shots(examiner, ROWS * 20, ROWS[:2], (200,), seed=0) == (0, [], {})  # beyond the context
    assert best_shots(examiner, ROWS, [], (1,), seed=0) == (0, [], {})


@pytest.mark.parametrize("kind", ["xs", "lora"])
def test_the_null_adapter_has_the_shape_and_size_of_the_tuned_one(
    base: Base, adapter: Callable[[str], Adapter], kind: str
) -> None:
    tuned = adapter(kind)
    null = null_adapter(tuned, seed=3)

    def flat(adapter: Adapter) -> np.ndarray:
        if adapter.vector is not None:
            return adapter.vector
        assert adapter.lora is not None
        parts = (*adapter.lora.A.values(), *adapter.lora.B.values())
        return np.concatenate([part.float().numpy().ravel() for part in parts])

    one, other = flat(tuned), flat(null)
    assert one.shape == other.shape and null.describe() == tuned.describe()
    assert np.sqrt(np.mean(other**2)) == pytest.approx(np.sqrt(np.mean(one**2)), rel=0.01)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.4
    assert np.array_equal(flat(null_adapter(tuned, seed=3)), other)
    assert not np.array_equal(flat(null_adapter(tuned, seed=4)), other)
    bind(base, null).detach()  # it fits where the tuned one fits


def test_forgetting_is_the_change_of_the_models_own_loss(base: Base, adapter: Callable[[str], Adapter]) -> None:
    text = resources.files("whit.evaluation").joinpath(PLAIN_TEXT).read_text("utf-8")
    ids = base.encode(text)

    def loss() -> float:
        total = 0.0
        for start in range(0, len(ids) - 1, base.context):
            part = torch.tensor([ids[start : start + base.context + 1]])
            labels = part[:, 1:]
            with torch.no_grad():
                logits = base.model(input_ids=part[:, :-1]).logits
                total += float(torch.nn.functional.cross_entropy(logits[0], labels[0], reduction="sum"))
        return total / (len(ids) - 1)

    bound = bind(base, adapter("xs"))
    found = forgetting(base, bound)
    assert found.tokens == len(ids) - 1 and found.before == pytest.approx(loss(), rel=1e-5)
    with bound.active():
        assert found.after == pytest.approx(loss(), rel=1e-5)
    assert found.after != found.before
    bound.detach()
