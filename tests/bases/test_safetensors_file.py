"""safetensors files: read right, and refused with a reason when they are damaged or hostile."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from whit.bases.safetensors_file import SafetensorsFile
from whit.errors import BaseError


def file_of(path: Path, header: Any, data: bytes = b"") -> Path:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    return path


def entry(begin: int, end: int, shape: Any = (4,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_reads_what_was_written(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"b": torch.randn(3, 5).to(dtype), "a": torch.randn(7).to(dtype), "c": torch.tensor(2.0).to(dtype)}
    save_file(tensors, str(tmp_path / "x.safetensors"))
    found = SafetensorsFile(tmp_path / "x.safetensors")
    for name, W in tensors.items():
        assert found.tensors[name].shape == tuple(W.shape)
        assert torch.equal(found.read(name), W.float())


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        (b"{", b"", "header"),
        (b"not json at all", b"", "not JSON"),
        (b"[1, 2]", b"", "not a JSON object"),
        (b"[" * 100_000, b"", "not JSON"),
        ({"a": entry(0, 16)}, b"\0" * 12, "truncated"),
        ({"a": entry(0, 16)}, b"\0" * 20, "truncated"),
        ({"a": entry(0, 16), "b": entry(8, 24)}, b"\0" * 24, "overlaps"),
        ({"a": entry(4, 20)}, b"\0" * 20, "gap"),
        ({"a": entry(0, 2**62, (2**60,))}, b"\0" * 16, "does not fit"),
        ({"a": entry(0, 16, (2**40, 2**40))}, b"\0" * 16, "does not fit"),
        ({"a": entry(0, 16, (-4,))}, b"\0" * 16, "whole numbers"),
        ({"a": entry(0, 16, (True, 4))}, b"\0" * 16, "whole numbers"),
        ({"a": entry(0, 16, (4.0,))}, b"\0" * 16, "whole numbers"),
        ({"a": entry(16, 0)}, b"\0" * 16, "does not fit"),
        ({"a": entry(0, 16, (16,), "I8")}, b"\0" * 16, "number type 'I8'"),
        ({"a": {"dtype": "F32"}}, b"\0" * 16, "lacks"),
        ({"a": 5}, b"\0" * 16, "lacks"),
        ({"a": {"dtype": [], "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 16, "number type"),
    ],
)
def test_a_hostile_header_is_refused(tmp_path: Path, header: Any, data: bytes, reason: str) -> None:
    with pytest.raises(BaseError, match=reason):
        SafetensorsFile(file_of(tmp_path / "hostile.safetensors", header, data))


@pytest.mark.parametrize("prefix", [b"", b"\1\2\3", struct.pack("<Q", 2**63), struct.pack("<Q", 0)])
def test_an_absurd_header_length_is_refused(tmp_path: Path, prefix: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(prefix + b"{}")
    with pytest.raises(BaseError, match="header"):
        SafetensorsFile(path)


def test_random_damage_never_raises_anything_else(tmp_path: Path) -> None:
    good = tmp_path / "good.safetensors"
    save_file({name: torch.randn(4, 4) for name in "abcdef"}, str(good))
    content, dice = good.read_bytes(), random.Random(0)
    header = 8 + struct.unpack("<Q", content[:8])[0]
    damaged, refused = tmp_path / "damaged.safetensors", 0
    for _ in range(400):
        changed = bytearray(content)
        for _ in range(dice.choice([1, 2, 8])):
            changed[dice.randrange(header)] = dice.randrange(256)
        damaged.write_bytes(changed)
        try:
            found = SafetensorsFile(damaged)
            for name in found.tensors:
                found.read(name)
        except BaseError:
            refused += 1
    assert refused > 0
