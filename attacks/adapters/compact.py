"""Compact files that lie. The checksum is no secret, so each is sealed with the right one.

What they try: an allocation of gigabytes from 64 bytes (through `numbers`, `rank` or P), modules that no base has,
two spellings of one adapter, numbers that are not finite, and a fuzz run. Compare: GGUF loaders whose sizes
overflowed (CVE-2026-27940, CVE-2026-33298). Run: python attacks/adapters/compact.py [rounds]
"""

from __future__ import annotations

import resource
import struct
import sys
import zlib

import numpy as np

from whit.adapters.adapter import Adapter
from whit.errors import DamagedAdapter


def sealed(
    *, kind: int = 1, rank: int = 2, mask: int = 127, layers: int = 30, groups: int = 1, numbers: int = 13,
    payload: bytes = bytes(26), extra: bytes = b"",
) -> bytes:  # fmt: skip
    """A compact file with these claims and a right checksum."""
    head = struct.pack(
        "<4sBBBBBBHHI8s8s", b"whit", 1, kind, 1, rank, mask, layers, 0, groups, numbers, bytes(8), bytes(8)
    )
    body = head + extra + payload
    return body + struct.pack("<I", zlib.crc32(body))


ATTACKS = {
    "4 G numbers in 64 bytes": sealed(numbers=0xFFFFFFFF),
    "4 M numbers in 64 bytes": sealed(numbers=1 << 22),
    "a rank of 255": sealed(rank=255),
    "P of 60 GB: rank 64, 4,096 numbers for 1,785 modules": sealed(
        rank=64, layers=255, numbers=4096, payload=bytes(8192)
    ),
    "more numbers than its group can move by": sealed(numbers=13, groups=13, rank=1, mask=1, layers=1),
    "no groups": sealed(groups=0),
    "no modules": sealed(mask=0),
    "a map beyond the file": sealed(mask=0x80, extra=b"\xff\xff", payload=b""),
    "a map beyond the layers": sealed(mask=0x80, layers=1, extra=b"\x02\x00\x00\x01"),
    "another spelling": sealed(mask=0x80, layers=1, numbers=1, extra=b"\x02\x00\x05\x00", payload=bytes(2)),
    "NaN": sealed(payload=b"\xc0\x7f" * 13),
    "infinity": sealed(payload=b"\x80\x7f" * 13),
    "nothing": b"",
    "zeros": bytes(64),
}


def main(rounds: int) -> int:
    """Run all; returns the exit code."""
    failed = 0
    for name, content in ATTACKS.items():
        try:
            Adapter.from_bytes(content)
        except DamagedAdapter as error:
            print(f"refused  {name}: {error}")
        except Exception as error:
            failed += 1
            print(f"FAILED   {name}: {type(error).__name__}: {error}")
        else:
            failed += 1
            print(f"FAILED   {name}: it was taken")
    rng = np.random.default_rng(0)
    taken = 0
    for _ in range(rounds):
        noise = rng.integers(0, 256, rng.integers(0, 200), dtype=np.uint8).tobytes()
        body = b"whit\x01" + noise if rng.random() < 0.7 else noise
        content = body + struct.pack("<I", zlib.crc32(body)) if rng.random() < 0.7 else body
        try:
            Adapter.from_bytes(content)
            taken += 1
        except DamagedAdapter:
            pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{rounds} random files: {taken} taken, none raised anything but DamagedAdapter; peak memory {peak:.0f} MB")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000))
