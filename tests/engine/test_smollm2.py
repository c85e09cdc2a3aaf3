"""SmolLM2 from its own file: the same answers as transformers in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.models import cosine, logits_of
from whit.engine import Engine
from whit.engine.answers import advance

QUESTIONS = [
    "What is the capital of France?",
    "Name three uses of a paper clip.",
    "Is this movie review positive or negative? A charming and often affecting journey.",
    "Write a haiku about the sea.",
    "What is 17 plus 25?",
    "Explain photosynthesis to a child.",
    "Translate 'good morning' into Spanish.",
    "Turn the command into JSON: book a table for two in Rome tomorrow.",
    "Give me a recipe for pancakes.",
    "Who wrote Pride and Prejudice?",
    "My card was stolen. What should I do?",
    "List the planets of the solar system in order.",
    "Write a short apology to a customer whose parcel is late.",
    "What does the Python function zip do?",
    "Why is the sky blue?",
    "Summarise: The quick brown fox jumps over the lazy dog, then sleeps in the sun all day.",
    "Tell a story about a dragon who was afraid of fire.",
    "What are the symptoms of a cold?",
    "How do I boil an egg?",
    "Correct the grammar: she go to school every days.",
]


@pytest.fixture(scope="module")
def both(smollm2: Path) -> tuple[Engine, Any]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32)
    return Engine.open(smollm2), model.eval()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_greedy_answers_and_logits_are_those_of_transformers(both: tuple[Engine, Any]) -> None:
    engine, model = both
    same, cosines = 0, []
    for question in QUESTIONS:
        text = (
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        )
        prompt = engine.encode(text)
        answer = engine.ask(prompt, most=64)
        while not answer.done:
            advance([answer])
        tokens = answer.tokens + ([engine.sizes.eos] if answer.reason == "end" else [])
        # One pass over the whole text: the engine's answer is greedy if each token is the likeliest after its own past.
        expected = logits_of(model, prompt + tokens)
        same += bool((expected[len(prompt) - 1 : -1].argmax(-1) == tokens).all())
        cosines.append(cosine(engine.logits(prompt), expected[: len(prompt)]))
    print(f"same greedy answers: {same} of {len(QUESTIONS)}; least cosine {min(cosines):.7f}")
    assert same >= 18 and min(cosines) >= 0.999


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_gradients_of_a_lora_on_smollm2(both: tuple[Engine, Any]) -> None:
    from tests.engine.adapters import lora_in, random_numbers

    engine, model = both
    targets = [0, 2, 100, 206, 209]
    handle = engine.lora_adapter(2, 2.0, targets)
    numbers = random_numbers(len(engine.numbers(handle)), seed=1, scale=0.02)
    engine.set_numbers(handle, numbers)
    prompt, completion = engine.encode("The weather today is"), engine.encode(" sunny and warm.")
    trainer = engine.trainer(handle)
    loss = trainer.learn([(prompt, completion)])
    leaf = torch.from_numpy(numbers).requires_grad_()
    model.requires_grad_(False)
    with lora_in(model, targets, 2, 1.0, leaf):
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(completion))
        expected.backward()
    assert loss[0] / len(completion) == pytest.approx(float(expected.detach()), rel=1e-3)
    found = trainer.state("gradient")
    grad = leaf.grad.numpy()
    assert np.linalg.norm(found - grad) < 1e-3 * np.linalg.norm(grad)
