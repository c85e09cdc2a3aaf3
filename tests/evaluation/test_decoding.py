"""Decoding in batches answers as one prompt at a time does, by full forward passes without a cache."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from whit.adapters.targets import all_targets
from whit.adapters.tunable import Bound, BoundVector, tune_lora, tune_vector
from whit.adapters.vector import xs_spec
from whit.bases import Base, load_base
from whit.errors import DataError
from whit.evaluation.decoding import PREFILL_TOKENS, ROWS, Decoder, Sampling, _batches
from whit.testing import tiny_base, write_tokenizer

SHAPE = {"layers": 2, "hidden": 32, "heads": 2, "kv_heads": 1, "ffn": 64, "vocab": 300, "context": 48, "tied": False}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = os.environ.get("WHIT_CACHE")
    os.environ["WHIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["WHIT_CACHE"]
    else:
        os.environ["WHIT_CACHE"] = before


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny_base(**SHAPE)


def one_by_one(base: Base, prompt: Sequence[int], most: int) -> list[int]:
    """Greedy decoding as the definition has it: the whole text anew for every token."""
    text, answer = list(prompt), []
    while len(answer) < most and len(text) <= base.context:
        with torch.no_grad():
            token = int(base.model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1].argmax())
        if token in base.stop_ids:
            break
        answer.append(token)
        text.append(token)
    return answer


def prompts(count: int, seed: int = 0, *, shared: int = 0, longest: int = 20) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    first = draw.integers(3, 300, size=shared).tolist()
    return [first + draw.integers(3, 300, size=draw.integers(1, longest)).tolist() for _ in range(count)]


def stopping(base: Base, asked: list[list[int]]) -> Base:
    """The same base with stop tokens chosen so that rows end at different steps."""
    answers = [one_by_one(base, prompt, 12) for prompt in asked]
    stops = copy.copy(base)
    stops.stop_ids = tuple({answer[2 + place % 7] for place, answer in enumerate(answers) if place % 2})
    return stops


@pytest.fixture
def adapters(base: Base) -> Iterator[Callable[[str], Bound]]:
    made: list[Bound] = []

    def make(kind: str) -> Bound:
        targets = all_targets(name for name, _ in base.model.named_modules())
        if kind == "lora":
            made.append(tune_lora(base, targets, rank=2, alpha=8.0, dropout=0.0, seed=0))
        else:
            made.append(tune_vector(base, xs_spec([target.index for target in targets], 2)))
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in made[-1].parameters():
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=draw))
        return made[-1]

    yield make
    for bound in reversed(made):
        bound.detach()


@pytest.mark.parametrize("shared", [0, 13], ids=["no prefix", "a shared prefix"])
def test_a_batch_answers_as_each_prompt_alone(base: Base, shared: int) -> None:
    asked = prompts(9, shared=shared)
    expected = [one_by_one(base, prompt, 10) for prompt in asked]
    assert Decoder(base).answers(asked, most=10) == expected
    assert len({tuple(answer) for answer in expected}) > 3  # or the test would show nothing


def test_one_prompt_may_be_the_prefix_of_the_others(base: Base) -> None:
    first = prompts(1, shared=12)[0]
    asked = [first, first, [*first, 7, 8], [*first, 9]]
    assert Decoder(base).answers(asked, most=8) == [one_by_one(base, prompt, 8) for prompt in asked]


def test_rows_finish_at_different_steps(base: Base) -> None:
    asked = prompts(12, seed=3, shared=9)
    stops = stopping(base, asked)
    expected = [one_by_one(stops, prompt, 12) for prompt in asked]
    assert len({len(answer) for answer in expected}) > 3
    told: dict[int, list[int]] = {place: [] for place in range(len(asked))}
    done: list[int] = []
    answers = Decoder(stops).answers(
        asked, most=12, on_token=lambda place, token: told[place].append(token), on_done=done.append
    )
    assert answers == expected and list(told.values()) == expected
    assert done[-1] == len(asked)


@pytest.mark.parametrize("kind", ["xs", "lora"])
def test_with_an_adapter(base: Base, adapters: Callable[[str], Bound], kind: str) -> None:
    asked = prompts(6, seed=1, shared=10)
    bare = [one_by_one(base, prompt, 8) for prompt in asked]
    bound = adapters(kind)
    with bound.active():
        expected = [one_by_one(base, prompt, 8) for prompt in asked]
    assert expected != bare
    assert Decoder(base, bound).answers(asked, most=8) == expected
    assert Decoder(base).answers(asked, most=8) == bare  # outside of its block the base is bare


def test_with_a_vector_for_every_row(base: Base, adapters: Callable[[str], Bound]) -> None:
    bound = adapters("xs")
    assert isinstance(bound, BoundVector)
    asked = prompts(7, seed=2)
    asked[3] = list(asked[2])  # the same prompt under two vectors
    stops = stopping(base, asked)
    vectors = 0.5 * torch.randn(len(asked), bound.numbers, generator=torch.Generator().manual_seed(4))
    expected = []
    for prompt, vector in zip(asked, vectors, strict=True):
        with bound.rows(vector[None]):
            expected.append(one_by_one(stops, prompt, 10))
    assert Decoder(stops, bound, vectors=vectors).answers(asked, most=10) == expected
    assert len({len(answer) for answer in expected}) > 1 and expected[2] != expected[3]


def test_vectors_are_for_vector_adapters(base: Base, adapters: Callable[[str], Bound]) -> None:
    with pytest.raises(TypeError, match="vector"):
        Decoder(base, adapters("lora"), vectors=torch.zeros(2, 3)).answers([[5], [6]], most=2)


def test_the_context_ends_an_answer_alike_in_any_company(base: Base) -> None:
    draw = np.random.default_rng(5)
    asked = [draw.integers(3, 300, size=length).tolist() for length in (47, 46, 40, 5)]
    expected = [one_by_one(base, prompt, 20) for prompt in asked]
    assert [len(answer) for answer in expected] == [2, 3, 9, 20]
    assert Decoder(base).answers(asked, most=20) == expected


@pytest.mark.parametrize("length", [0, 48, 500])
def test_a_prompt_that_leaves_no_room_is_refused(base: Base, length: int) -> None:
    with pytest.raises(DataError, match=rf"prompt 1 has {length} tokens; .* takes 1 to 47"):
        Decoder(base).answers([[5, 6], [7] * length], most=3)


def test_no_prompts_no_answers(base: Base) -> None:
    assert Decoder(base).answers([], most=3) == []


def test_draws_are_each_prompts_own(base: Base) -> None:
    asked = prompts(8, seed=6)
    sampling = Sampling(temperature=1.5, seed=11)
    together = Decoder(base).answers(asked, most=8, sampling=sampling)
    assert together == Decoder(base).answers(asked, most=8, sampling=sampling)
    assert together != Decoder(base).answers(asked, most=8, sampling=Sampling(temperature=1.5, seed=12))
    # A prompt keeps its draws when the others' lengths put it into another batch or order.
    longer = [asked[0], *([prompt * 2 for prompt in asked[1:]])]
    assert Decoder(base).answers(longer, most=8, sampling=sampling)[0] == together[0]
    assert Decoder(base).answers(asked[:1], most=8, sampling=sampling)[0] == together[0]


def test_top_p_draws_from_the_likeliest_only(base: Base) -> None:
    prompt = prompts(1, seed=7)[0]
    with torch.no_grad():
        logits = base.model(input_ids=torch.tensor([prompt])).logits[0, -1]
    chances, order = torch.softmax(logits / 2.0, -1).sort(descending=True)
    top_p = float(chances[:3].sum()) - 1e-4  # reached by the third token
    decoder = Decoder(base)
    drawn = {
        answer[0]
        for seed in range(5)
        for answer in decoder.answers([prompt] * 20, most=1, sampling=Sampling(2.0, top_p, seed))
    }
    assert drawn == set(order[:3].tolist())
    greedy = decoder.answers([prompt], most=6)
    assert decoder.answers([prompt], most=6, sampling=Sampling(0.3, 0.01, 1)) == greedy


def test_draws_follow_the_models_chances(base: Base) -> None:
    prompt = prompts(1, seed=8)[0]
    with torch.no_grad():
        chances = torch.softmax(base.model(input_ids=torch.tensor([prompt])).logits[0, -1] / 0.5, -1)
    answers = Decoder(base).answers([prompt] * 400, most=1, sampling=Sampling(0.5))
    counts = torch.bincount(
        torch.tensor([answer[0] if answer else base.stop_ids[0] for answer in answers]), minlength=300
    )
    likeliest = int(chances.argmax())
    share, sigma = float(counts[likeliest] / 400), float((chances[likeliest] * (1 - chances[likeliest]) / 400).sqrt())
    assert abs(share - float(chances[likeliest])) < 4 * sigma + 1e-9


def test_batches_hold_every_prompt_once_and_are_bounded() -> None:
    lengths = np.random.default_rng(0).integers(1, 3000, size=500).tolist()
    batches = _batches(lengths, 0)
    assert sorted(place for batch in batches for place in batch) == list(range(500))
    for batch in batches:
        assert len(batch) <= ROWS
        assert len(batch) == 1 or len(batch) * max(lengths[place] for place in batch) <= PREFILL_TOKENS


def write_gemma3(folder: Path, *, window: int) -> Path:
    """A random Gemma 3 with two layers of sliding and one of full attention."""
    from safetensors.torch import save_file
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    folder.mkdir(parents=True)
    specials = write_tokenizer(folder, vocab=300, context=64)
    config = Gemma3TextConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=64, sliding_window=window,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"], query_pre_attn_scalar=16,
        bos_token_id=specials["<|im_start|>"], eos_token_id=specials["<|im_end|>"],
        pad_token_id=specials["<|endoftext|>"], tie_word_embeddings=True, dtype="float32",
        architectures=["Gemma3ForCausalLM"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(config)
    tensors = {name: 0.15 * torch.randn(part.shape) for name, part in model.state_dict().items()}
    tensors.pop("lm_head.weight", None)
    config.save_pretrained(folder)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("shared", [0, 11], ids=["no prefix", "a shared prefix"])
def test_sliding_windows(tmp_path: Path, shared: int) -> None:
    base = load_base(str(write_gemma3(tmp_path / "gemma", window=6)), dtype="float32")
    assert base.model.config.sliding_window == 6
    asked = prompts(6, seed=9, shared=shared, longest=25)
    expected = [one_by_one(base, prompt, 12) for prompt in asked]
    assert len({tuple(answer) for answer in expected}) > 2
    assert Decoder(base).answers(asked, most=12) == expected
    # The window matters: without it the answers would be others.
    decoder = Decoder(base)
    decoder._window = 1000
    assert decoder.answers(asked, most=12) != expected
