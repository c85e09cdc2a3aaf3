"""A store of a million 13-number adapters: its file, and the time of a look-up.

    python benchmarks/store.py --adapters 1000000

Each adapter has other numbers and a name of its own; they are added a thousand to a transaction. Look-ups are by
name, in random order, one at a time, from a store that was opened anew; memory is this process's, before and after.
"""

from __future__ import annotations

import argparse
import random
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from common import report

from whit.adapters.compact import pack
from whit.adapters.vector import tiny_spec
from whit.serving.store import Item, open_store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=1_000_000)
    parser.add_argument("--lookups", type=int, default=20_000)
    options = parser.parse_args()
    spec = tiny_spec(range(210), 13)
    vectors = np.random.default_rng(0).normal(0, 0.02, (1000, 13)).astype(np.float32)
    some = [pack(spec, v, number_type="bfloat16", base="0" * 16, basis="0" * 16, layers=30) for v in vectors]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "whit.db"
        began = time.perf_counter()
        with open_store(path) as store:
            for start in range(0, options.adapters, 1000):
                count = min(1000, options.adapters - start)
                items = [Item(f"user/{start + at:07}", some[at], {"base": "smollm2"}) for at in range(count)]
                store.add_many(items, by="benchmark")
        added = time.perf_counter() - began
        size = path.stat().st_size
        draw = random.Random(0)
        with open_store(path) as store:
            before = _memory()
            times = []
            for _ in range(options.lookups):
                name = f"user/{draw.randrange(options.adapters):07}"
                began = time.perf_counter()
                held = store.find(name)
                times.append(1000 * (time.perf_counter() - began))
                assert held.payload == some[int(name[-3:])]
            after = _memory()
    times.sort()
    report(
        [
            {
                "adapters": options.adapters,
                "file_mb": round(size / 1e6, 1),
                "bytes_each": round(size / options.adapters, 1),
                "seconds_to_add": round(added, 1),
                "lookups": options.lookups,
                "lookup_ms_p50": round(times[len(times) // 2], 4),
                "lookup_ms_p99": round(times[int(0.99 * len(times))], 4),
                "lookup_ms_most": round(times[-1], 3),
                "memory_mb_added": round(after - before, 1),
            }
        ]
    )


def _memory() -> float:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == "__main__":
    main()
