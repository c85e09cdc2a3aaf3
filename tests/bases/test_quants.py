"""Dequantisation gives ggml's reference values, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whit.bases.quants import TYPES, dequantise

OWN = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "TQ2_0"]
BY_NAME = {kind.name: kind for kind in TYPES.values()}


@pytest.mark.parametrize("code", sorted(TYPES))
def test_block_sizes_are_those_of_ggml(code: int) -> None:
    kind = TYPES[code]
    assert gguf.GGMLQuantizationType(code).name == kind.name
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(code)] == (kind.block, kind.bytes)


@pytest.mark.parametrize("name", sorted(BY_NAME))
@given(seed=st.integers(0, 2**32 - 1))
def test_any_bytes_give_the_reference_values(name: str, seed: int) -> None:
    kind = BY_NAME[name]
    raw = np.random.default_rng(seed).integers(0, 256, 3 * 2 * kind.bytes, dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw.reshape(3, -1), gguf.GGMLQuantizationType[name])
        found = dequantise(raw, kind, (3, 2 * kind.block))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32) if name == "F32" else found, _bits(name, expected))


def _bits(name: str, values: np.ndarray) -> np.ndarray:
    # NaNs of raw float32 must keep their bits; elsewhere one NaN is as good as another.
    return np.ascontiguousarray(values, dtype=np.float32).view(np.uint32) if name == "F32" else values


@pytest.mark.parametrize("name", OWN)
def test_quantised_weights_come_back_near(name: str) -> None:
    W = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
    raw = gguf.quants.quantize(W, gguf.GGMLQuantizationType[name])
    found = dequantise(np.frombuffer(raw.tobytes(), dtype=np.uint8).copy(), BY_NAME[name], (4, 256))
    error = np.abs(found - W).max()
    assert error <= {"F32": 0, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 0.03, "Q4_1": 0.3, "Q4_0": 0.5, "TQ2_0": 4}[name]
