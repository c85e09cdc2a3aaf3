"""Which number type this machine computes fastest in.

`auto` is measured once and remembered, so that two runs on one machine use the same type: on a CPU
bfloat16 is taken only where it is clearly faster, since it rounds more coarsely. Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import json
import platform
import time
from typing import TYPE_CHECKING

from whit.bases.cache import cache_folder
from whit.errors import StorageError, UsageError
from whit.files import atomic_write

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "bfloat16")
#: bfloat16 must be at least this many times as fast as float32
_GAIN = 1.2
#: A base below so many parameters is small: its products are so short that on a processor conversions outweigh them.
SMALL = 20_000_000


def require_device(device: str) -> str:
    """The kind of device that `cpu`, `cuda` or `cuda:N` names. Raises `UsageError` where it is not here."""
    import torch

    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise UsageError(f"the device {device!r} is not known; use cpu, or cuda or cuda:N where there is one.")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("there is no CUDA device here (or this torch was built without CUDA); use cpu.")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"there is no device {device} here; the last is cuda:{torch.cuda.device_count() - 1}.")
    return found.type


def choose_dtype(dtype: str, device: str, parameters: int | None = None) -> torch.dtype:
    """The torch type for `dtype` (one of `DTYPES`) on `device`, for so many parameters. Raises `UsageError`."""
    import torch

    if dtype not in DTYPES:
        raise UsageError(f"the number type {dtype!r} is not known; use one of {', '.join(DTYPES)}.")
    kind = require_device(device)
    if dtype == "auto" and kind == "cpu" and parameters is not None and parameters < SMALL:
        dtype = "float32"
    if dtype == "auto":
        dtype = fastest_dtype(device)
    return torch.bfloat16 if dtype == "bfloat16" else torch.float32


def fastest_dtype(device: str = "cpu") -> str:
    """`float32` or `bfloat16`, whichever this machine multiplies matrices faster in."""
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    machine = [
        platform.node(),
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
        torch.__version__,
    ]
    place = cache_folder() / "dtype.json"
    with contextlib.suppress(OSError, ValueError, AttributeError):
        known = json.loads(place.read_text(encoding="utf-8"))
        if known.get("machine") == machine and known.get("dtype") in DTYPES[1:]:
            return str(known["dtype"])
    seconds = {name: _measure(getattr(torch, name)) for name in DTYPES[1:]}
    best = "bfloat16" if seconds["bfloat16"] * _GAIN < seconds["float32"] else "float32"
    with contextlib.suppress(StorageError):
        atomic_write(place, json.dumps({"machine": machine, "dtype": best, "seconds": seconds}))
    return best


def _measure(dtype: torch.dtype) -> float:
    """Seconds of a small base's projection, the best of several: other programs only ever slow it down."""
    import torch

    x, W = torch.ones(256, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        torch.nn.functional.linear(x, W)
        best = min(best, time.perf_counter() - start)
    return best
