"""Checkpoints: everything a run needs to go on to the same result, in one safetensors file.

Written aside and renamed, the earlier one kept until then: a run killed at any moment finds one whole file.
Never pickled. A checkpoint of other settings, data or base is refused. Knows nothing of what it holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.errors import TrainingError
from whit.files import atomic_write

if TYPE_CHECKING:
    import torch

FILE_NAME = "state.safetensors"
_LARGEST = 8 << 30


def save_checkpoint(path: Path, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and plain values. Raises `StorageError`; the earlier checkpoint is then still there."""
    from safetensors.torch import save

    whole = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    atomic_write(path, save(whole, metadata={"about": json.dumps(dict(about), sort_keys=True)}))


def load_checkpoint(path: Path, *, run: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Read a checkpoint of the run whose key is `run`; None where there is none.

    Raises `TrainingError` where it is damaged, or of another run (other settings, rows or base).
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    if path.stat().st_size > _LARGEST:
        raise TrainingError(
            f"{path}: {path.stat().st_size} bytes are no checkpoint of whit; remove it or choose another --out"
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise TrainingError(f"{path}: damaged checkpoint ({error}); remove it and train again") from error
    if about.get("run") != run:
        raise TrainingError(
            f"{path}: this checkpoint belongs to a run with other settings, rows or base; "
            "use the same ones to resume, or another --out to start anew"
        )
    return tensors, about


def reached(path: Path | None, *, run: str) -> tuple[int, int] | None:
    """The step that a checkpoint of that run is at, and its steps in all; None where there is none to go on from."""
    from safetensors import SafetensorError, safe_open

    if path is None or not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {})["about"])
        return (int(about["step"]), int(about["steps"])) if about["run"] == run else None
    except (SafetensorError, OSError, KeyError, ValueError):
        return None  # told when it is loaded
