"""A 13-number adapter: its file, its text, the time to load and apply it; and the basis of a base.

    python benchmarks/compact.py --base smollm2

The peer is PEFT's TinyLoRA checkpoint of the same adapter. Load-and-apply is from the file's bytes to matrices R in
the model's layers, with base and basis in memory.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from common import open_base, report

from whit.adapters.adapter import Adapter
from whit.adapters.basis import compute_basis
from whit.adapters.interop.peft_tinylora import export_peft_tinylora
from whit.adapters.targets import all_targets
from whit.adapters.tunable import tune_vector
from whit.adapters.vector import tiny_spec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--numbers", type=int, default=13)
    options = parser.parse_args()
    base = open_base(options.base, "float32")
    began = time.perf_counter()
    compute_basis(base, 2)
    basis_seconds = time.perf_counter() - began
    indices = [target.index for target in all_targets(name for name, _ in base.model.named_modules())]
    bound = tune_vector(base, tiny_spec(indices, options.numbers))
    with torch.no_grad():
        bound.v.normal_(0.0, 0.02, generator=torch.Generator().manual_seed(0))
    adapter = bound.export()
    content = adapter.to_bytes()
    times = []
    for _ in range(50):
        began = time.perf_counter()
        bound.load(Adapter.from_bytes(content))
        bound.slots.set(bound.expansion(bound.v.detach()))
        times.append(1000 * (time.perf_counter() - began))
    bound.detach()
    with tempfile.TemporaryDirectory() as folder:
        export_peft_tinylora(adapter, base, Path(folder) / "peft")
        peft = (Path(folder) / "peft" / "adapter_model.safetensors").stat().st_size
    report(
        [
            {
                "numbers": adapter.numbers,
                "payload_bytes": adapter.payload_bytes,
                "file_bytes": len(content),
                "text_characters": len(adapter.to_text()),
                "peft_bytes": peft,
                "times_smaller": round(peft / len(content)),
                "load_and_apply_ms": round(statistics.median(times), 2),
                "most_ms": round(max(times), 2),
                "basis_seconds": round(basis_seconds, 2),
            }
        ]
    )


if __name__ == "__main__":
    main()
