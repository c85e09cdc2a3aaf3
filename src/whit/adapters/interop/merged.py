"""Merged weights: a transformers folder of the base with the adapter's update added to its matrices.

W + ΔW is added in float32 from the weights as the base's file stores them (where a base is quantised when it is
loaded, from those that it computes with), and then rounded to the number type that the file uses, if that keeps the
update: an update is often far smaller than bfloat16's steps at W (about W/256), so that rounding may swallow it. How
much is measured, and beyond `MOST_LOST` the folder is float32.
Knows nothing of running the result; the folder has the base's tokenizer and chat template.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from whit.errors import StorageError, UsageError

if TYPE_CHECKING:
    from whit.adapters.lora import LoraWeights
    from whit.bases import Base

#: the largest share of an update that rounding may take before float32 is written instead
MOST_LOST = 0.02
NUMBER_TYPES = ("auto", "float32", "float16", "bfloat16")
_SHARD_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Merge:
    """What was written: its files, the number type, and the share of the update that rounding to it took.

    `stored` is the smallest type that holds the base's own weights exactly; `lost_stored` what it would have taken.
    """

    files: tuple[Path, ...]
    number_type: str
    lost: float
    stored: str
    lost_stored: float


def merge(base: Base, weights: LoraWeights, folder: str | Path, *, number_type: str = "auto") -> Merge:
    """Write `base` with `weights` merged into it to `folder`, which must be new or empty.

    Raises `UsageError` for a folder that is in use or an unknown number type, `StorageError` where the disk refuses.
    """
    if number_type not in NUMBER_TYPES:
        raise UsageError(f"unknown number type {number_type!r}; there are {', '.join(NUMBER_TYPES)}")
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is there already; name a new folder")
    stored = _stored_type(base)
    lost_stored = _lost(base, weights, stored)
    chosen = number_type
    if chosen == "auto":
        chosen = stored if lost_stored <= MOST_LOST else "float32"
    lost = lost_stored if chosen == stored else _lost(base, weights, chosen)
    aside = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        _write(base, weights, aside, chosen)
        if target.exists():
            target.rmdir()
        aside.rename(target)
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Merge(tuple(sorted(target.iterdir())), chosen, lost, stored, lost_stored)


def merged_weight(base: Base, weights: LoraWeights, name: str) -> torch.Tensor:
    """The tensor `name` of the base, with the update added where it is an adapted matrix; float32."""
    W = _own(base, name)
    module = name.removesuffix(".weight")
    if module in weights.A:
        W = W + _update(weights, module)
    return W


def _own(base: Base, name: str) -> torch.Tensor:
    """The tensor `name` that the base computes with, float32."""
    module = name.removesuffix(".weight")
    return base.weight(module) if module in base.packed else base.source.read(name)


def _update(weights: LoraWeights, module: str) -> torch.Tensor:
    return weights.scale * (weights.B[module].float() @ weights.A[module].float())


def _stored_type(base: Base) -> str:
    """The smallest type that holds every weight of the base."""
    candidates = ["bfloat16", "float16"]
    for name in base.source.shapes:
        W = _own(base, name)
        candidates = [kind for kind in candidates if torch.equal(W.to(getattr(torch, kind)).float(), W)]
        if not candidates:
            return "float32"
    return candidates[0]


def _lost(base: Base, weights: LoraWeights, number_type: str) -> float:
    """‖round(W + ΔW) - (W + ΔW)‖ / ‖ΔW‖ over all adapted matrices together (Frobenius)."""
    if number_type == "float32":
        return 0.0
    lost = whole = 0.0
    for module in weights.A:
        update = _update(weights, module)
        W = base.weight(module) + update
        lost += float((W.to(getattr(torch, number_type)).float() - W).norm()) ** 2
        whole += float(update.norm()) ** 2
    return (lost / whole) ** 0.5 if whole else 0.0


def _write(base: Base, weights: LoraWeights, folder: Path, number_type: str) -> None:
    from safetensors.torch import save_file

    dtype = getattr(torch, number_type)
    config = base.model.config
    described = {**config.to_dict(), "architectures": [type(base.model).__name__], "dtype": number_type}
    described.pop("torch_dtype", None)
    described.pop("_name_or_path", None)
    shards = list(_shards(base.source.shapes.items(), dtype.itemsize))
    index: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: merged_weight(base, weights, name).to(dtype).contiguous() for name in names}
        with _as_os_error():
            save_file(tensors, str(folder / file), metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
    if len(shards) > 1:
        content: dict[str, Any] = {"metadata": {}, "weight_map": index}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    with _as_os_error():
        base.tokenizer.save_pretrained(str(folder))
    (folder / "config.json").write_text(json.dumps(described, indent=2, default=str) + "\n", "utf-8")


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """What safetensors and tokenizers raise where the disk refuses is of kinds of their own."""
    try:
        yield
    except Exception as error:
        raise OSError(str(error)) from error


def _shards(shapes: Iterable[tuple[str, tuple[int, ...]]], width: int) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, shape in sorted(shapes):
        part = width
        for side in shape:
            part *= side
        if names and size + part > _SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += part
    if names:
        yield names
