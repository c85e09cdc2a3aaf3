"""GGUF files: read right, and refused with a reason when they are damaged or hostile."""

from __future__ import annotations

import random
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from whit.bases.gguf_file import GgufFile
from whit.errors import BaseError


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def file_of(
    path: Path,
    *,
    metadata: list[bytes] = (),  # type: ignore[assignment]
    tensors: list[bytes] = (),  # type: ignore[assignment]
    data: bytes = b"",
    version: int = 3,
    tensor_count: int | None = None,
    metadata_count: int | None = None,
) -> Path:
    head = b"GGUF" + struct.pack(
        "<IQQ",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(metadata) if metadata_count is None else metadata_count,
    )
    body = head + b"".join(metadata) + b"".join(tensors)
    path.write_bytes(body + b"\0" * (-len(body) % 32) + data)
    return path


def tensor(name: str, sizes: list[int], kind: int = 0, offset: int = 0, dimensions: int | None = None) -> bytes:
    count = len(sizes) if dimensions is None else dimensions
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", count, *sizes, kind, offset)


def test_reads_what_the_reference_reads(tiny_gguf: Callable[[str], Path]) -> None:
    path = tiny_gguf("Q4_1")
    reader, found = gguf.GGUFReader(path), GgufFile(path)
    assert {item.name for item in reader.tensors} == set(found.tensors)
    for item in reader.tensors:
        expected = gguf.quants.dequantize(item.data, item.tensor_type)
        np.testing.assert_array_equal(found.read(item.name).numpy(), expected)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            assert found.metadata[key] == field.contents()


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tiny_gguf: Callable[[str], Path], tmp_path: Path, share: float) -> None:
    content = tiny_gguf("F32").read_bytes()
    short = tmp_path / "short.gguf"
    short.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BaseError, match=r"short\.gguf"):
        GgufFile(short)


def test_every_byte_missing_is_noticed(tiny_gguf: Callable[[str], Path], tmp_path: Path) -> None:
    content = tiny_gguf("F32").read_bytes()
    short = tmp_path / "short.gguf"
    short.write_bytes(content[:-33])  # the last tensor's padding may go, its content may not
    with pytest.raises(BaseError, match="truncated"):
        GgufFile(short)


HUGE = 2**63
F32_4 = tensor("a", [4])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: file_of(p, version=1), "version 1"),
        (lambda p: file_of(p, version=0x03000000), "version"),
        (lambda p: file_of(p, tensor_count=HUGE), "tensors"),
        (lambda p: file_of(p, metadata_count=HUGE), "metadata"),
        (lambda p: file_of(p, metadata_count=99_999), "ends at"),
        (lambda p: file_of(p, metadata=[struct.pack("<Q", HUGE)]), "bytes long"),
        (lambda p: file_of(p, metadata=[struct.pack("<Q", 5000) + b"x"]), "ends at"),
        (lambda p: file_of(p, metadata=[text("k") + struct.pack("<I", 77)]), "unknown value type 77"),
        (lambda p: file_of(p, metadata=[text("k") + struct.pack("<IIQ", 9, 4, HUGE)]), "more than the file"),
        (lambda p: file_of(p, metadata=[text("k") + struct.pack("<IIQ", 9, 8, 2**40)]), "more than the file"),
        (lambda p: file_of(p, metadata=[text("k") + struct.pack("<IIQ", 9, 9, 2**40)]), "more than the file"),
        (lambda p: file_of(p, metadata=[text("k") + b"\t\0\0\0" + struct.pack("<IQ", 9, 1) * 40]), "value type"),
        (lambda p: file_of(p, metadata=[text("k") + struct.pack("<IB", 0, 1)] * 2), "twice"),
        (
            lambda p: file_of(p, metadata=[text("general.alignment") + struct.pack("<II", 4, 0)]),
            "power of two",
        ),
        (lambda p: file_of(p, tensors=[tensor("a", [4], kind=99)], data=b"\0" * 64), "unknown quantisation 99"),
        (lambda p: file_of(p, tensors=[tensor("a", [2**40, 2**40])], data=b"\0" * 64), "truncated"),
        (lambda p: file_of(p, tensors=[tensor("a", [2**63, 2**63, 2])], data=b"\0" * 64), "truncated"),
        (lambda p: file_of(p, tensors=[tensor("a", [4, 0])], data=b"\0" * 64), "empty"),
        (lambda p: file_of(p, tensors=[tensor("a", [33], kind=8)], data=b"\0" * 64), "no multiple"),
        (lambda p: file_of(p, tensors=[tensor("a", [4], dimensions=9)], data=b"\0" * 64), "9 dimensions"),
        (lambda p: file_of(p, tensors=[tensor("a", [4], offset=HUGE)], data=b"\0" * 64), "truncated"),
        (lambda p: file_of(p, tensors=[tensor("a", [4], offset=4)], data=b"\0" * 64), "not aligned"),
        (lambda p: file_of(p, tensors=[F32_4, F32_4], data=b"\0" * 64), "twice"),
        (lambda p: file_of(p, tensors=[F32_4, tensor("b", [4])], data=b"\0" * 64), "overlaps"),
    ],
)
def test_a_hostile_header_is_refused(tmp_path: Path, make: Callable[[Path], Path], reason: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BaseError, match=reason):
        GgufFile(make(tmp_path / "hostile.gguf"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def test_a_good_small_file_is_read(tmp_path: Path) -> None:
    data = np.arange(4, dtype="<f4").tobytes()
    found = GgufFile(file_of(tmp_path / "good.gguf", tensors=[tensor("a", [2, 2])], data=data))
    assert found.read("a").tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("content", [b"", b"GGUF", b"\x80\x04pickle" * 100, b"not a model\n" * 100])
def test_what_is_no_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "no.gguf"
    path.write_bytes(content)
    with pytest.raises(BaseError, match=r"no\.gguf"):
        GgufFile(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BaseError, match=r"absent\.gguf"):
        GgufFile(tmp_path / "absent.gguf")


def test_random_damage_never_raises_anything_else(tiny_gguf: Callable[[str], Path], tmp_path: Path) -> None:
    content = tiny_gguf("F32").read_bytes()
    header = len(content) - sum(item.nbytes for item in GgufFile(tiny_gguf("F32")).tensors.values())
    damaged, dice = tmp_path / "damaged.gguf", random.Random(0)
    refused = 0
    for _ in range(300):
        changed = bytearray(content)
        for _ in range(dice.choice([1, 1, 2, 8])):
            at = dice.randrange(header)
            changed[at] = dice.randrange(256)
        damaged.write_bytes(changed)
        try:
            found = GgufFile(damaged)
            for name in list(found.tensors)[:3]:
                found.read(name)
        except BaseError:
            refused += 1
    assert refused > 0
