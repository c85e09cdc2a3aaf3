"""The compact file and its text form: round trips, sizes, and refusal of whatever was not written by `pack`."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from whit.adapters.compact import (
    MAX_NUMBERS,
    NUMBER_TYPES,
    TEXT_PREFIX,
    Compact,
    from_text,
    pack,
    round_to,
    to_text,
    unpack,
)
from whit.adapters.vector import VectorSpec, tiny_spec, xs_spec
from whit.errors import DamagedAdapter, UsageError

BASE, BASIS = "0123456789abcdef", "fedcba9876543210"


@st.composite
def held(draw: st.DrawFn) -> Compact:
    """Any adapter that can be: kinds, number types, masks and maps of modules, special numbers."""
    layers = draw(st.integers(1, 255))
    if draw(st.booleans()):  # whole projections in every layer: a mask
        mask = draw(st.integers(1, 127))
        targets = tuple(index for index in range(7 * layers) if mask >> index % 7 & 1)
    else:  # any modules: a map
        targets = tuple(sorted(draw(st.sets(st.integers(0, 7 * layers - 1), min_size=1, max_size=40))))
    rank = draw(st.integers(1, 3))
    if draw(st.booleans()):
        spec = xs_spec(targets, rank)
    else:
        groups = draw(st.integers(1, min(len(targets), 20)))
        u = draw(st.integers(1, min(30, len(targets) // groups * rank * rank)))
        spec = VectorSpec("tiny", rank, groups * u, groups, targets, draw(st.integers(0, 65535)))
    number_type = draw(st.sampled_from(list(NUMBER_TYPES)))
    widest = 60_000.0 if number_type == "float16" else 2.0**127
    some = st.floats(-widest, widest, width=32) | st.sampled_from([0.0, -0.0, 1e-40, 2.0**-24, -1.0])
    numbers = np.resize(np.array(draw(st.lists(some, min_size=1, max_size=50)), dtype=np.float32), spec.numbers)
    return Compact(spec, number_type, BASE, BASIS, layers, numbers)


def _pack(item: Compact) -> bytes:
    return pack(
        item.spec, item.vector, number_type=item.number_type, base=item.base, basis=item.basis, layers=item.layers
    )


@settings(max_examples=250, deadline=None)
@given(held())
def test_round_trip(item: Compact) -> None:
    content = _pack(item)
    again = unpack(content)
    assert (again.spec, again.number_type, again.layers) == (item.spec, item.number_type, item.layers)
    assert (again.base, again.basis) == (BASE, BASIS)
    assert again.vector.tobytes() == round_to(item.vector, item.number_type).tobytes()
    assert _pack(again) == content
    text = to_text(content)
    assert from_text(text) == content
    assert text.removeprefix(TEXT_PREFIX).replace("-", "").replace("_", "").isalnum() and text.isascii()


def test_rounding_is_that_of_torch() -> None:
    import torch

    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 20_000, dtype=np.uint64).astype(np.uint32)
    numbers = bits.view(np.float32)
    numbers = numbers[np.isfinite(numbers)]
    ties = (rng.integers(0, 1 << 15, 500).astype(np.uint32) << 17 | 0x8000).view(np.float32)
    for values in (numbers, ties[np.isfinite(ties)]):
        for name in ("bfloat16", "float16", "float32"):
            expected = torch.from_numpy(values.copy()).to(getattr(torch, name)).float().numpy()
            assert np.array_equal(round_to(values, name), expected), name


def _thirteen() -> bytes:
    vector = np.linspace(-1, 1, 13, dtype=np.float32)
    spec = tiny_spec(range(210), 13)
    return pack(spec, vector, number_type="bfloat16", base=BASE, basis=BASIS, layers=30)


def _mapped() -> bytes:
    spec = xs_spec([3, 8, 20], 1)
    return pack(spec, np.ones(3, np.float32), number_type="float16", base=BASE, basis=BASIS, layers=3)


def test_thirteen_numbers_fit() -> None:
    content = _thirteen()
    assert len(content) <= 64
    assert len(to_text(content)) <= 100
    assert len(content) - 34 - 4 == 26  # payload: two bytes a number


@pytest.mark.parametrize("make", [_thirteen, _mapped])
def test_every_corrupted_byte_is_refused(make: object) -> None:
    content = make()  # type: ignore[operator]
    for place in range(len(content)):
        for change in (1, 0x80, 0xFF):
            damaged = bytearray(content)
            damaged[place] ^= change
            with pytest.raises(DamagedAdapter):
                unpack(bytes(damaged))


@pytest.mark.parametrize("make", [_thirteen, _mapped])
def test_every_truncation_and_extension_is_refused(make: object) -> None:
    content = make()  # type: ignore[operator]
    for length in range(len(content)):
        with pytest.raises(DamagedAdapter):
            unpack(content[:length])
    with pytest.raises(DamagedAdapter):
        unpack(content + b"\0")


def _seal(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


@settings(max_examples=600, deadline=None)
@given(st.binary(max_size=120), st.booleans(), st.booleans())
@example(b"", False, False)
def test_random_bytes_are_damaged_and_nothing_else(noise: bytes, headed: bool, sealed: bool) -> None:
    content = b"whit\x01" + noise if headed else noise
    content = _seal(content) if sealed else content
    try:
        unpack(content)
    except DamagedAdapter:
        return
    raise AssertionError("random bytes were taken for an adapter")


def test_a_whole_header_at_random() -> None:
    """The checksum is no secret: a file whose header lies, sealed, must be refused or be one that `pack` writes."""
    rng = np.random.default_rng(0)
    for content in (_thirteen(), _mapped()):
        for _ in range(2000):
            damaged = bytearray(content[:-4])
            for _ in range(rng.integers(1, 4)):
                damaged[rng.integers(4, len(damaged))] = rng.integers(0, 256)
            sealed = _seal(bytes(damaged))
            try:
                item = unpack(sealed)
            except DamagedAdapter:
                continue
            assert _pack(item) == sealed


def _header(**changes: int) -> bytes:
    fields = {
        "version": 1, "kind": 1, "number": 1, "rank": 2, "mask": 127, "layers": 30,
        "seed": 0, "groups": 1, "numbers": 13,
    } | changes  # fmt: skip
    return struct.pack("<4sBBBBBBHHI8s8s", b"whit", *fields.values(), bytes(8), bytes(8))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"PK\x03\x04" + bytes(60), "letters whit"),
        (b"whit", "truncated"),
        (_seal(_header(version=2) + bytes(26)), "version 2"),
        (_seal(_header(kind=4) + bytes(26)), "unknown"),
        (_seal(_header(number=0) + bytes(26)), "unknown"),
        (_seal(_header(numbers=MAX_NUMBERS + 1) + bytes(26)), "claims 4194305 numbers"),
        (_seal(_header(numbers=0xFFFFFFFF) + bytes(26)), "claims"),
        (_seal(_header(numbers=MAX_NUMBERS) + bytes(26)), "calls for"),
        (_seal(_header(rank=0) + bytes(26)), "contradicts"),
        (_seal(_header(rank=255) + bytes(26)), "contradicts"),
        (_seal(_header(layers=0) + bytes(26)), "contradicts"),
        (_seal(_header(mask=0) + bytes(26)), "contradicts"),
        (_seal(_header(groups=2) + bytes(26)), "contradicts"),
        (_seal(_header(groups=0) + bytes(26)), "contradicts"),
        (_seal(_header(kind=2) + bytes(26)), "contradicts"),
        (_seal(_header() + b"\xc0\x7f" * 13), "NaN"),
        (_seal(_header() + b"\x80\x7f" * 13), "NaN or infinite"),
        (_seal(_header(mask=0x80) + b"\xff\xff"), "map of modules"),
        (_seal(_header(mask=0x80) + b"\x01\x00\x01" + bytes(26)), "contradicts"),
        (
            _seal(_header(mask=0x80, layers=1, numbers=1) + b"\x01\x00\x80" + bytes(2)),
            "module 7 of a base with 1 layers",
        ),
        (_seal(_header(mask=0x80, layers=1, numbers=1) + b"\x02\x00\x05\x00" + bytes(2)), "spells"),
        (_seal(_header(mask=0x80, layers=1, numbers=1) + b"\x01\x00\x7f" + bytes(2)), "spells"),
        (_seal(_header(mask=0x81, layers=1, numbers=1) + b"\x01\x00\x05" + bytes(2)), "spells"),
    ],
)
def test_each_lie_has_its_reason(content: bytes, reason: str) -> None:
    with pytest.raises(DamagedAdapter, match=reason):
        unpack(content)


def test_oversized_is_refused_before_anything_is_allocated() -> None:
    too_long, text = b"whit\x01" + bytes(40_000_000), TEXT_PREFIX + "A" * 40_000_000
    lying = _seal(_header(numbers=MAX_NUMBERS))
    for call, limit in (
        (lambda: unpack(too_long), 100_000),
        (lambda: unpack(lying), 100_000),
        (lambda: from_text(text), len(text) + 100_000),  # the text's body is copied once
    ):
        tracemalloc.start()
        try:
            with pytest.raises(DamagedAdapter):
                call()
            assert tracemalloc.get_traced_memory()[1] < limit
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    "text",
    [
        *("", "whit1_", "whit2_AAAA", "whit1_AAA", "whit1_####", "whit1_é"),
        *("whit1_AAAA====", "whit1_A A A", "WHIT1_AAAA", "whit1_" + "A" * 50),
    ],
)  # fmt: skip
def test_texts_that_are_no_adapter(text: str) -> None:
    with pytest.raises(DamagedAdapter):
        unpack(from_text(text))


@settings(max_examples=400, deadline=None)
@given(st.text(max_size=100))
def test_random_text_is_damaged_and_nothing_else(noise: str) -> None:
    for text in (noise, TEXT_PREFIX + noise):
        with pytest.raises(DamagedAdapter):
            unpack(from_text(text))


def test_every_changed_character_is_refused() -> None:
    text = to_text(_thirteen())
    for place in range(len(text)):
        for other in "A_z":
            if text[place] != other:
                with pytest.raises(DamagedAdapter):
                    unpack(from_text(text[:place] + other + text[place + 1 :]))


SPEC = tiny_spec(range(14), 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"number_type": "int8"}, "int8"),
        ({"vector": np.zeros(5, np.float32)}, "shape"),
        ({"vector": np.array([0, 0, 0, np.nan], np.float32)}, "NaN"),
        ({"vector": np.array([0, 0, 0, np.inf], np.float32)}, "infinite"),
        ({"vector": np.array([0, 0, 0, 3.4e38], np.float32)}, "too large"),
        ({"vector": np.array([0, 0, 0, 7e4], np.float32), "number_type": "float16"}, "too large"),
        ({"layers": 1}, "module 13 is none"),
        ({"layers": 256}, "does not fit"),
        ({"base": "no hex at all!!!"}, "does not fit"),
    ],
)
def test_what_cannot_be_packed(changes: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "vector": np.ones(4, np.float32), "number_type": "bfloat16", "base": BASE, "basis": BASIS, "layers": 2
    } | changes  # fmt: skip
    with pytest.raises(UsageError, match=message):
        pack(SPEC, **arguments)  # type: ignore[arg-type]
