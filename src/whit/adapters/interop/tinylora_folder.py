"""The files of a PEFT TinyLoRA folder, read with suspicion: sizes first, settings by allow-list, no pickles.

Promises that whatever stands in the folder either becomes finite float32 tensors of agreeing shapes, or is
refused with the reason. Knows nothing of bases.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.adapters.lora import CONFIG_NAME, WEIGHTS_NAME
from whit.adapters.vector import MAX_RANK
from whit.errors import DamagedAdapter

if TYPE_CHECKING:
    import torch

_LARGEST_CONFIG, _LARGEST_WEIGHTS = 1 << 20, 1 << 30
_MAX_U = 1 << 20
_MODULE = re.compile(r"base_model\.model\.([\w.]{1,200})\.tinylora_([ABP])")
_VECTOR = re.compile(r"base_model\.tinylora_v\.(0|[1-9]\d{0,5})")
# Settings that change what is computed, and the only values of them that whit reads.
_ONLY: dict[str, tuple[Any, ...]] = {
    "fan_in_fan_out": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
}


@dataclass(frozen=True)
class TinyLoraFolder:
    """A[name] (r, in), B[name] (out, r), P[name] (u, r, r) for each module, v[group] (u,); float32.

    P is empty where the folder leaves it to PEFT's seed. `about` is the safetensors file's own note.
    """

    rank: int
    u: int
    weight_tying: float
    seed: int
    A: Mapping[str, torch.Tensor]
    B: Mapping[str, torch.Tensor]
    P: Mapping[str, torch.Tensor]
    v: Mapping[int, torch.Tensor]
    about: Mapping[str, str]


def read_config(folder: Path) -> dict[str, Any]:
    """The settings as JSON, bounded and free of requests to run code. Raises `DamagedAdapter`."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise DamagedAdapter(f"{folder}: there is no {CONFIG_NAME} in it; it is no PEFT folder")
    if path.stat().st_size > _LARGEST_CONFIG:
        raise DamagedAdapter(
            f"{path}: {path.stat().st_size} bytes; an adapter's settings have {_LARGEST_CONFIG} at most"
        )
    try:
        config = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise DamagedAdapter(f"{path}: not JSON ({error})") from error
    if not isinstance(config, dict):
        raise DamagedAdapter(f"{path}: not a JSON object")
    if "auto_map" in config:
        raise DamagedAdapter(f"{path}: auto_map asks to run code from the folder; whit never does")
    return config


def read_folder(folder: Path) -> TinyLoraFolder:
    """Read a TinyLoRA folder. Raises `DamagedAdapter`."""
    config = read_config(folder)
    where = folder / CONFIG_NAME
    if config.get("peft_type") != "TINYLORA":
        raise DamagedAdapter(f"{where}: peft_type is {config.get('peft_type')!r}; whit imports TINYLORA and LORA")
    for key, allowed in _ONLY.items():
        if config.get(key) not in allowed:
            raise DamagedAdapter(f"{where}: {key} = {config[key]!r} is not supported; merge the adapter with PEFT")
    rank = _whole(config, "r", 1, MAX_RANK, where)
    u = _whole(config, "u", 1, _MAX_U, where)
    seed = _whole(config, "projection_seed", 0, (1 << 63) - 1, where)
    ratio = config.get("weight_tying", 0.0)
    if not isinstance(ratio, int | float) or isinstance(ratio, bool) or not 0 <= ratio <= 1:
        raise DamagedAdapter(f"{where}: weight_tying = {ratio!r} is no share")
    tensors, about = _read_tensors(folder / WEIGHTS_NAME, rank, u)
    parts: dict[str, dict[str, torch.Tensor]] = {"A": {}, "B": {}, "P": {}}
    v: dict[int, torch.Tensor] = {}
    for key, tensor in tensors.items():
        match, vector = _MODULE.fullmatch(key), _VECTOR.fullmatch(key)
        if match:
            parts[match[2]][match[1]] = tensor
        elif vector:
            v[int(vector[1])] = tensor
    A, B, P = parts["A"], parts["B"], parts["P"]
    if not A or A.keys() != B.keys() or (P and P.keys() != A.keys()):
        raise DamagedAdapter(f"{folder / WEIGHTS_NAME}: not every module has its A, B and P")
    return TinyLoraFolder(rank, u, float(ratio), seed, A, B, P, v, about)


def _read_tensors(path: Path, rank: int, u: int) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        pickled = path.with_name("adapter_model.bin").exists()
        hint = "; adapter_model.bin is a pickled file, which can run code when read, and is refused" if pickled else ""
        raise DamagedAdapter(f"{path.parent}: there is no {WEIGHTS_NAME}{hint}")
    if path.stat().st_size > _LARGEST_WEIGHTS:
        raise DamagedAdapter(f"{path}: {path.stat().st_size} bytes; at most {_LARGEST_WEIGHTS} are read")
    found: dict[str, torch.Tensor] = {}
    try:
        with safe_open(str(path), framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                shape = tuple(file.get_slice(key).get_shape())
                if not _fits(key, shape, rank, u):
                    raise DamagedAdapter(f"{path}: the tensor {key[:80]} of shape {shape} belongs to no such TinyLoRA")
                tensor = file.get_tensor(key)
                if not tensor.is_floating_point() or not bool(tensor.float().isfinite().all()):
                    raise DamagedAdapter(f"{path}: {key} holds numbers that are not finite")
                found[key] = tensor.float()
            about = file.metadata() or {}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DamagedAdapter(f"{path}: not a whole safetensors file ({error})") from error
    return found, about


def _fits(key: str, shape: tuple[int, ...], rank: int, u: int) -> bool:
    match = _MODULE.fullmatch(key)
    if match is None:
        return bool(_VECTOR.fullmatch(key)) and shape == (u,)
    if match[2] == "P":
        return shape == (u, rank, rank)
    return len(shape) == 2 and shape[0 if match[2] == "A" else 1] == rank


def _whole(config: Mapping[str, Any], key: str, least: int, most: int, where: Path) -> int:
    value = config.get(key)
    if type(value) is not int or not least <= value <= most:
        raise DamagedAdapter(f"{where}: {key} = {value!r} is no whole number from {least} to {most}")
    return value
