"""Answers: greedy, sampled, stopped; streamed piece by piece; many at once."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from tests.engine.adapters import random_numbers
from whit.engine import Engine
from whit.engine.answers import advance
from whit.errors import UsageError

PROMPT = [1, 40, 300, 7, 91]


def greedy(engine: Any, prompt: list[int], count: int, adapter: int = -1) -> list[int]:
    """The same by hand: read everything again for every token."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(engine.logits(ids, adapter=adapter)[-1].argmax()))
        if ids[-1] == engine.sizes.eos:
            return ids[len(prompt) : -1]
    return ids[len(prompt) :]


def test_greedy_takes_the_likeliest_token(engine: Any) -> None:
    answer = engine.ask(PROMPT, most=20)
    pieces = []
    while not answer.done:
        advance([answer])
        pieces.append(answer.take())
    expected = greedy(engine, PROMPT, 20)
    assert answer.tokens == expected
    assert "".join(pieces) == engine.decode(expected)
    assert answer.reason == ("length" if len(expected) == 20 else "end")


def test_a_long_prompt_is_read_in_blocks(engine: Any) -> None:
    prompt = [(7 * i) % 380 for i in range(150)]
    answer = engine.ask(prompt, most=5)
    steps = 0
    while engine.call("whit_answer_progress", answer.handle) < len(prompt):
        advance([answer])
        steps += 1
    assert steps == 3
    while not answer.done:
        advance([answer])
    assert answer.tokens == greedy(engine, prompt, 5)


def test_answers_in_one_batch_are_those_they_would_be_alone(engine: Any) -> None:
    adapter = engine.lora_adapter(2, 4.0, list(range(14)))
    engine.set_numbers(adapter, random_numbers(len(engine.numbers(adapter)), seed=1, scale=0.2))
    asked = [(PROMPT, -1), (PROMPT, adapter), ([(5 * i) % 300 for i in range(80)], adapter), ([9], -1)]
    answers = [engine.ask(prompt, adapter=handle, most=12) for prompt, handle in asked]
    while advance(answers):
        pass
    found = [answer.tokens for answer in answers]
    assert found == [greedy(engine, prompt, 12, handle) for prompt, handle in asked]
    assert found[0] != found[1]


def test_the_seed_decides_and_settings_count(engine: Any) -> None:
    def run(**settings: Any) -> str:
        return engine.ask(PROMPT, most=30, **settings).text()

    assert run(temperature=1.0, seed=4) == run(temperature=1.0, seed=4)
    assert len({run(temperature=1.0, seed=seed) for seed in range(5)}) == 5
    assert run(temperature=1.0, top_p=1e-6, seed=1) == run() == run(temperature=1.0, min_p=1.0, seed=2)


def test_stop_strings_end_an_answer_and_never_show(engine: Any) -> None:
    whole = engine.ask(PROMPT, most=80, temperature=1.0, seed=11).text()
    run = max(re.findall("[ -~]+", whole), key=len)  # random bytes are mostly no text; take what is
    assert len(run) >= 5
    for stop in (run[1], run[1:3], run[:5]):
        answer = engine.ask(PROMPT, most=80, temperature=1.0, seed=11, stops=["never there", stop])
        pieces = []
        while not answer.done:
            advance([answer])
            pieces.append(answer.take())
        assert "".join(pieces) == whole[: whole.index(stop)]
        assert answer.reason == "stop"


def test_no_piece_ends_within_a_character(engine: Any) -> None:
    # Single bytes are tokens of the tiny vocabulary: sampled at random they make many broken characters.
    answer = engine.ask(engine.encode("é"), most=200, temperature=3.0, seed=1)
    pieces = list(answer.pieces())
    answer = engine.ask(engine.encode("é"), most=200, temperature=3.0, seed=1)
    while not answer.done:
        advance([answer])
    whole = answer.take()
    assert "".join(pieces) == whole


def test_what_cannot_be_asked_is_told(engine: Any) -> None:
    for prompt in ([], [1] * 256):
        with pytest.raises(UsageError, match="a prompt of"):
            engine.ask(prompt)
    with pytest.raises(UsageError, match="no adapter 9"):
        engine.ask(PROMPT, adapter=9)
    answer = engine.ask([1] * 250, most=50)
    while not answer.done:
        advance([answer])
    assert len(answer.tokens) <= 6
    answer.close()
    answer.close()
    with pytest.raises(UsageError, match="no answer"):
        engine.call("whit_answer_text", 0)


def test_memory_comes_back(engine: Engine) -> None:
    for _ in range(3):
        engine.ask(PROMPT, most=50).text()
    size = engine._memory.data_len(engine._store)
    for _ in range(40):
        engine.ask(PROMPT, most=50).text()
        np.asarray(engine.logits(PROMPT))
    assert engine._memory.data_len(engine._store) == size
