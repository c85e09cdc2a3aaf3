"""How much memory a base takes, and how much there is.

Estimates from sizes alone, before anything is loaded; a base that cannot fit is refused with advice. Knows nothing of
training: what that adds is in `whit.training.memory`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from whit.bases.quantize import BYTES
from whit.errors import BaseError

if TYPE_CHECKING:
    import torch

    from whit.bases.source import Source

_CGROUP = Path("/sys/fs/cgroup")


def weight_bytes(source: Source, width: int, quantize: str | None) -> int:
    """Bytes of a base's weights in memory; `width` is that of a number which is not quantised."""
    total = 0.0
    for name, shape in source.shapes.items():
        projection = name.startswith("model.layers.") and len(shape) == 2
        total += math.prod(shape) * (BYTES[quantize] if quantize and projection else width)
    return round(total)


def available_bytes(device: str = "cpu") -> int | None:
    """Memory that can still be taken on a device; None where the system does not say."""
    if device.startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    found = []
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
        most, used = ((_CGROUP / name).read_text("ascii").strip() for name in ("memory.max", "memory.current"))
        if most != "max":
            found.append(max(0, int(most) - int(used)))
    except (OSError, ValueError, IndexError):
        pass  # not Linux, or no limit of its own
    return min(found) if found else None


def require_memory(source: Source, dtype: torch.dtype, quantize: str | None, device: str, name: str) -> None:
    """Raise `BaseError` where the weights alone do not fit in what is left of the memory."""
    there = available_bytes(device)
    needed = weight_bytes(source, dtype.itemsize, quantize)
    if there is None or needed <= there:
        return
    smaller = [
        f"--quantize {method} ({gigabytes(weight_bytes(source, dtype.itemsize, method))})"
        for method in ("int8", "nf4")
        if quantize is None and weight_bytes(source, dtype.itemsize, method) <= there
    ]
    if dtype.itemsize > 2 and weight_bytes(source, 2, quantize) <= there:
        smaller.append("--dtype bfloat16")
    advice = f"try {' or '.join(smaller)}" if smaller else "choose a smaller base, or a machine with more memory"
    raise BaseError(
        f"{name}: its weights take {gigabytes(needed)}, and {gigabytes(there)} of memory are free; {advice}."
    )


def gigabytes(count: float) -> str:
    """`1.25 GB`."""
    return f"{count / 1e9:.2f} GB"
