"""The 8-bit step compiled for this machine: PyTorch's up to rounding, each row by itself; or a reason."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whit.serving import native
from whit.serving.int8 import Int8Model, _rounded
from whit.serving.payload import to_payload
from whit.serving.pool import Pool

from .conftest import maker

NONE = native.Library(None, "not wanted")


@pytest.fixture(scope="module")
def library(cache: Path) -> native.Library:
    found = native.load()
    if found.code is None:
        pytest.skip(found.why)
    return found


@pytest.fixture(scope="module", params=[128, 96], ids=["blocks of 64", "blocks of 32"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Any:
    """The tiny base; with an inner width of 96 the inputs of down are turned in blocks of 32."""
    from whit.testing import tiny_base

    return tiny_base(tmp_path_factory.mktemp("base") / "tiny", layers=2, context=256, ffn=request.param)


@pytest.fixture(scope="module")
def pool(base: Any) -> Pool:
    return Pool(base, ranks=(2, 3))


@pytest.fixture(scope="module")
def mixed(base: Any) -> list[Any]:
    make = maker(base)
    vectors = [make("tiny", 1), make("xs", 2), make("tiny", 5, rank=3), None, make("xs", 6, rank=3)]
    return [None, *vectors, make("lora", 3, rank=2), make("lora", 4, rank=5)]


def filled(base: Any, pool: Pool, adapters: list[Any], library: native.Library, *, first: int = 0) -> Int8Model:
    """A model whose slots from `first` on have these adapters and some tokens each, the same for every library."""
    model = Int8Model(base, first + len(adapters), 64, pool.bases, library=library, kept=torch.bfloat16)
    for slot, adapter in enumerate(adapters, start=first):
        model.put(slot, adapter and pool.ready(to_payload(adapter)))
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 100, (3 + row,), generator=draw).tolist() for row in range(len(adapters))]
    for slot, prompt in enumerate(prompts, start=first):
        model.forward(slot, [prompt], [0])
    return model


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 21), inputs=st.integers(1, 9), columns=st.integers(1, 7), seed=st.integers(0, 999))
def test_a_product_is_exact(library: native.Library, rows: int, inputs: int, columns: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 16 * inputs, generator=draw) * 10.0 ** torch.randint(-3, 3, (rows, 1), generator=draw)
    x[0] *= seed % 3  # sometimes nothing but zeros
    W, scale = _rounded(torch.randn(16 * columns, 16 * inputs, generator=draw))
    packed = native.Packed(library.code, W, scale, len(W))
    sizes = x.abs().amax(-1, keepdim=True).mul_(1 / 127).clamp_(min=1e-30)
    wanted = ((x / sizes).round().double() @ W.double().mT).float() * sizes
    assert torch.equal(packed.times(x, scaled=False), wanted)
    assert torch.equal(packed.times(x, scaled=True), wanted * scale)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 21), columns=st.integers(1, 150), threads=st.integers(1, 3), odd=st.integers(0, 3),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_the_likeliest_is_the_first_of_the_largest(
    library: native.Library, rows: int, columns: int, threads: int, odd: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 32, generator=draw) * (seed % 4)  # sometimes nothing but zeros: all are alike
    W = torch.randn(columns, 32, generator=draw)
    W[columns // 2 :] = W[: columns - columns // 2].clone()  # each twice
    if odd:  # all below zero, so that what a product is filled up with would be above them
        x[:, 0], W[:, 0] = 9.0, -9.0
    rounded, scale = _rounded(W)
    packed = native.Packed(library.code, rounded, scale, columns)
    wanted = packed.times(x, scaled=True)[:, :columns].argmax(1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(packed.likeliest(x), wanted)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("first", [0, 3])
def test_a_step_is_pytorchs(base: Any, pool: Pool, mixed: list[Any], library: native.Library, first: int) -> None:
    """As near as rounding to 8 bits lets two ways of summing be: a change of 1e-6 of the inputs moves as much."""
    rows = len(mixed)
    tokens, places = [[50 + row] for row in range(rows)], [3 + row for row in range(rows)]
    with torch.inference_mode():
        models = {
            name: filled(base, pool, mixed, which, first=first)
            for name, which in (("own", library), ("torch", NONE), ("moved", NONE))
        }
        assert models["own"]._steps is not None and models["torch"]._steps is None
        assert "compiled" in models["own"].how and "not wanted" in models["torch"].how
        noise = torch.randn(models["moved"]._embed.shape, generator=torch.Generator().manual_seed(1))
        models["moved"]._embed = models["moved"]._embed * (1 + 1e-6 * noise)
        kept = models["torch"]._kv.clone()
        found = {}
        for name, model in models.items():
            model._kv.copy_(kept)
            found[name] = model.logits(model.forward(first, tokens, places).flatten(0, 1)), model._kv
    logits, kv = found["torch"]
    own, own_kv = found["own"]
    assert torch.allclose(own_kv[0].float(), kv[0].float(), rtol=1e-2, atol=1e-5), "before anything was rounded twice"
    written = [own_kv[1][0, first + row, :, places[row]] for row in range(rows)]
    assert all(bool(each.abs().sum() > 0) for each in written)
    hidden = models["own"].forward(first, tokens, places).flatten(0, 1)
    assert torch.equal(models["own"].likeliest(hidden), models["own"].logits(hidden).argmax(-1))
    allowed = max(float((found["moved"][0] - logits).abs().max()), 1e-4)
    assert float((own - logits).abs().max()) <= 4 * allowed
    # An adapter that were left out would be seen.
    with torch.inference_mode():
        bare = filled(base, pool, [None] * rows, library, first=first)
        bare._kv.copy_(kept)
        alone = bare.logits(bare.forward(first, tokens, places).flatten(0, 1))
    for row, adapter in enumerate(mixed):
        gap = float((alone[row] - own[row]).abs().max())
        assert gap > 8 * allowed if adapter is not None else gap == 0, row


def test_no_row_depends_on_those_beside_it_nor_on_threads(
    base: Any, pool: Pool, mixed: list[Any], library: native.Library
) -> None:
    tokens, places = [[50 + row] for row in range(len(mixed))], [3 + row for row in range(len(mixed))]
    threads = torch.get_num_threads()
    try:
        with torch.inference_mode():
            model = filled(base, pool, mixed, library)
            kept = model._kv.clone()
            torch.set_num_threads(2)
            together = model.forward(0, tokens, places).clone()
            torch.set_num_threads(1)
            model._kv.copy_(kept)
            assert torch.equal(model.forward(0, tokens, places), together)
            model._kv.copy_(kept)
            for row in reversed(range(len(mixed))):
                assert torch.equal(model.forward(row, [tokens[row]], [places[row]])[0], together[row])
    finally:
        torch.set_num_threads(threads)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 39), max_size=4, unique=True), threads=st.integers(1, 2), company=st.booleans())
def test_a_prompt_is_the_same_read_in_any_parts_and_in_any_company(
    base: Any, pool: Pool, mixed: list[Any], library: native.Library, cuts: list[int], threads: int, company: bool
) -> None:
    """To the last bit: at once, in parts, or a token at a time; alone, or beside others."""
    draw = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, 100, (40 - row,), generator=draw).tolist() for row in range(len(mixed))]
    whole: list[torch.Tensor] = []
    before = torch.get_num_threads()
    try:
        with torch.inference_mode():
            torch.set_num_threads(threads)
            one, other = (filled(base, pool, mixed, library) for _ in range(2))
            for row, prompt in enumerate(prompts):
                parts = [0, *sorted(cut for cut in cuts if cut < len(prompt)), len(prompt)]
                wanted = torch.cat([one.forward(row, [[token]], [at]) for at, token in enumerate(prompt)], 1)
                if not company:
                    spans = pairwise(parts)
                    found = torch.cat([other.forward(row, [prompt[at:end]], [at]) for at, end in spans], 1)
                    assert torch.equal(found, wanted)
                whole.append(wanted[0])
            if company:
                found = other.forward(0, prompts, [0] * len(prompts))
                for row, prompt in enumerate(prompts):
                    assert torch.equal(found[row, : len(prompt)], whole[row])
                    assert not found[row, len(prompt) :].any()
            assert torch.equal(one._kv, other._kv)
    finally:
        torch.set_num_threads(before)


def test_more_tokens_than_are_taken_at_a_time(base: Any, pool: Pool, mixed: list[Any], library: native.Library) -> None:
    draw = torch.Generator().manual_seed(4)
    prompts = [torch.randint(3, 100, (length,), generator=draw).tolist() for length in (150, 1, 119, 90)]
    assert len(prompts[0]) > native._TOKENS
    with torch.inference_mode():
        model = Int8Model(base, len(prompts), 160, pool.bases, library=library)
        for slot, adapter in enumerate(mixed[: len(prompts)]):
            model.put(slot, adapter and pool.ready(to_payload(adapter)))
        together = model.forward(0, prompts, [0] * len(prompts))
        kept = model._kv.clone()
        for slot, prompt in enumerate(prompts):
            for at in range(0, len(prompt), 64):
                part = model.forward(slot, [prompt[at : at + 64]], [at])
                assert torch.equal(part[0], together[slot, at : min(at + 64, len(prompt))])
        assert torch.equal(model._kv, kept)


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], native.Library]:
    """`load` as if for the first time, with a cache folder of its own."""
    monkeypatch.setenv("WHIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "_features", lambda: native._NEEDED)
    return native.load.__wrapped__


def compiler(folder: Path, script: str) -> Path:
    folder.mkdir()
    (folder / "gcc").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "gcc").chmod(0o755)
    return folder


def test_reasons_are_told(anew: Callable[[], native.Library], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert anew().why == "there is no C compiler (gcc)"
    monkeypatch.setenv("PATH", f"{compiler(tmp_path / 'bad', 'echo what is this >&2; exit 1')}:/bin:/usr/bin")
    assert "cannot be used" in anew().why
    odd = compiler(tmp_path / "odd", "while [ $# -gt 1 ] && [ $1 != -o ]; do shift; done; echo nonsense > $2")
    monkeypatch.setenv("PATH", f"{odd}:/bin:/usr/bin")
    assert "cannot be used" in anew().why
    monkeypatch.setenv("WHIT_NATIVE", "0")
    assert anew().why == "WHIT_NATIVE is 0"
    monkeypatch.delenv("WHIT_NATIVE")
    monkeypatch.setattr(native, "_features", frozenset)
    assert "lacks avx512" in anew().why


def test_a_folder_that_others_may_write_to_is_not_trusted(anew: Callable[[], native.Library], tmp_path: Path) -> None:
    (tmp_path / "cache" / "native").mkdir(parents=True)
    (tmp_path / "cache" / "native").chmod(0o777)
    found = anew()
    assert found.code is None and ("open to others" in found.why or "compiler" in found.why or "for Linux" in found.why)
