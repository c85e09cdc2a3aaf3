"""Checkpoints that survive a kill at any moment: written aside, renamed, the last two kept.

Promises that `latest` gives the newest one that is whole, and refuses one of another recipe. Knows nothing of what
the state means.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import torch

from whit.errors import TrainingError
from whit.files import atomic_write

KEEP = 2


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"checkpoint-{step:08d}.pt"


def save(folder: Path, step: int, fingerprint: str, state: dict[str, Any], *, name: Path | None = None) -> Path:
    """Write the state of a step; older ones but the last two go. Raises `StorageError`."""
    buffer = io.BytesIO()
    torch.save({"fingerprint": fingerprint, "step": step, "state": state}, buffer)
    path = name or path_of(folder, step)
    atomic_write(path, buffer.getvalue())
    for old in sorted(folder.glob("checkpoint-*.pt"))[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def rewind(folder: Path, step: int, fingerprint: str, state: dict[str, Any]) -> None:
    """Make the state of an earlier step the newest: it is written first, then the later ones go."""
    later = [path for path in folder.glob("checkpoint-*.pt") if path.name > path_of(folder, step).name]
    save(folder, step, fingerprint, state, name=folder / "rewound.pt")
    (folder / "rewound.pt").replace(path_of(folder, step))
    for path in later:
        path.unlink(missing_ok=True)


def read(path: Path, fingerprint: str | None = None) -> tuple[int, dict[str, Any]]:
    """(step, state) of one file, of any recipe where no `fingerprint` is given.

    Raises `TrainingError` where it is of another recipe, `ValueError` where damaged.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found, step, state = content["fingerprint"], content["step"], content["state"]
    except Exception as error:  # a cut zip raises many kinds; each means a damaged file
        raise ValueError(f"{path} is damaged: {error}") from error
    if fingerprint is not None and found != fingerprint:
        raise TrainingError(
            f"{path} was made by another recipe ({found[:12]}, now {fingerprint[:12]}); "
            "use another --cache folder, or the recipe that made it"
        )
    return step, state


def latest(folder: Path, fingerprint: str) -> tuple[int, dict[str, Any]] | None:
    """The newest whole checkpoint, or None where there is none; a damaged one is passed over with a warning."""
    for path in sorted(folder.glob("checkpoint-*.pt"), reverse=True):
        try:
            return read(path, fingerprint)
        except ValueError as error:
            print(f"warning: {error}; the earlier one is used", file=sys.stderr)
    return None
