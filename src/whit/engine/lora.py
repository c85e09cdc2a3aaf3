"""A LoRA's PEFT folder into the engine, without torch: safetensors are read by their published layout.

Promises that every length is checked before it is used. What a LoRA's settings may say is what
`whit.adapters.lora` allows; knows nothing else of adapters.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from whit.adapters.lora import WEIGHTS_NAME, lora_config
from whit.adapters.targets import PROJECTIONS, all_targets
from whit.errors import DamagedAdapter

if TYPE_CHECKING:
    from whit.engine.runtime import Engine

_LARGEST = 1 << 30
_PREFIX = "base_model.model."


def load_lora(engine: Engine, folder: str | Path) -> int:
    """Put the LoRA of a PEFT folder into the engine; its handle. Raises `DamagedAdapter`."""
    path = Path(folder)
    config = lora_config(path)
    rank, alpha = int(config["r"]), float(config.get("lora_alpha", config["r"]))
    tensors = _read(path / WEIGHTS_NAME)
    names = {key.removeprefix(_PREFIX).rpartition(".lora_")[0] for key in tensors}
    targets = all_targets(names)
    if len(targets) != len(names) or not targets or max(t.index for t in targets) >= 7 * engine.sizes.layers:
        raise DamagedAdapter(f"{path}: it adapts modules that this base has not")
    parts = []
    for target in targets:
        out, wide = _shape(engine, target.index)
        for side, shape in (("A", (rank, wide)), ("B", (out, rank))):
            W = tensors.get(f"{_PREFIX}{target.name}.lora_{side}.weight")
            if W is None or W.shape != shape or not np.isfinite(W).all():
                raise DamagedAdapter(f"{path}: {target.name} does not fit this base, or holds NaN: is it of another?")
            parts.append(W if side == "A" else W.T)
    handle = engine.lora_adapter(rank, alpha, [target.index for target in targets])
    engine.set_numbers(handle, np.concatenate([part.reshape(-1) for part in parts]).astype(np.float32))
    return handle


def _shape(engine: Engine, module: int) -> tuple[int, int]:
    """(out, in) of a module."""
    s = engine.sizes
    q, kv = s.heads * s.head, s.kv_heads * s.head
    shapes = ((q, s.dim), (kv, s.dim), (kv, s.dim), (s.dim, q), (s.ffn, s.dim), (s.ffn, s.dim), (s.dim, s.ffn))
    return shapes[module % len(PROJECTIONS)]


def _read(path: Path) -> dict[str, NDArray[np.float32]]:
    damaged = DamagedAdapter(f"{path}: not a whole safetensors file; fetch or copy the adapter again")
    if not path.is_file() or path.stat().st_size > _LARGEST:
        raise DamagedAdapter(f"{path}: there is no such file, or it is too large for an adapter")
    content = path.read_bytes()
    if len(content) < 8:
        raise damaged
    (length,) = struct.unpack_from("<Q", content)
    if length > len(content) - 8:
        raise damaged
    try:
        head: dict[str, Any] = json.loads(content[8 : 8 + length])
        found = {}
        for key, entry in head.items():
            if key != "__metadata__":
                start, end = entry["data_offsets"]
                if not 0 <= start <= end <= len(content) - 8 - length:
                    raise damaged
                part = content[8 + length + start : 8 + length + end]
                found[key] = _widen(part, entry["dtype"]).reshape(entry["shape"])
        return found
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged from error


def _widen(part: bytes, dtype: str) -> NDArray[np.float32]:
    if dtype == "F32":
        return np.frombuffer(part, "<f4")
    if dtype == "F16":
        return np.frombuffer(part, "<f2").astype(np.float32)
    if dtype == "BF16":
        return (np.frombuffer(part, "<u2").astype("<u4") << 16).view("<f4")
    raise ValueError(dtype)
