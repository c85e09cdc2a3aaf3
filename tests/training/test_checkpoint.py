"""Checkpoints: whole or absent, of one run only, never pickled."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from whit.errors import StorageError, TrainingError
from whit.training.checkpoint import load_checkpoint, save_checkpoint

TENSORS = {"now.0": torch.arange(6.0).reshape(2, 3), "optimizer.count": torch.tensor(3.0, dtype=torch.float64)}


def test_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    path = tmp_path / "state" / "run.safetensors"
    losses = [0.1, 1 / 3, 2.0**-40]
    save_checkpoint(path, {**TENSORS, "view": torch.arange(6.0).reshape(2, 3).T}, {"run": "k", "losses": losses})
    found = load_checkpoint(path, run="k")
    assert found is not None
    tensors, about = found
    assert about["losses"] == losses
    for name, part in TENSORS.items():
        assert torch.equal(tensors[name], part) and tensors[name].dtype == part.dtype
    assert torch.equal(tensors["view"], torch.arange(6.0).reshape(2, 3).T)


def test_none_where_there_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "run.safetensors", run="k") is None


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    save_checkpoint(path, TENSORS, {"run": "one"})
    with pytest.raises(TrainingError, match="other settings, rows or base"):
        load_checkpoint(path, run="other")


@pytest.mark.parametrize("content", [b"", b"\x00" * 40, b"\xff" * 64, b"PK\x03\x04pickle", b"\x80\x04."])
def test_damage_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.safetensors"
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=r"damaged checkpoint.*remove it"):
        load_checkpoint(path, run="k")


@pytest.mark.parametrize("keep", [5, 60, -1])
def test_a_cut_checkpoint_is_damaged(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "run.safetensors"
    save_checkpoint(path, TENSORS, {"run": "k"})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TrainingError, match="damaged checkpoint"):
        load_checkpoint(path, run="k")


def test_a_file_without_the_runs_note_is_damaged(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "run.safetensors"
    for note in ({}, {"about": "no json"}):
        save_file(TENSORS, str(path), metadata=note)
        with pytest.raises(TrainingError, match="damaged checkpoint"):
            load_checkpoint(path, run="k")
    save_file(TENSORS, str(path), metadata={"about": json.dumps({"step": 1})})
    with pytest.raises(TrainingError, match="other settings"):
        load_checkpoint(path, run="k")


def test_an_absurd_size_is_refused_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    with path.open("wb") as file:
        file.truncate(9 << 30)  # sparse
    with pytest.raises(TrainingError, match="no checkpoint of whit"):
        load_checkpoint(path, run="k")


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_failure_while_writing_keeps_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "run.safetensors"
    save_checkpoint(path, TENSORS, {"run": "k", "step": 1})

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(StorageError, match="disk is full"):
        save_checkpoint(path, TENSORS, {"run": "k", "step": 2})
    monkeypatch.undo()
    found = load_checkpoint(path, run="k")
    assert found is not None and found[1]["step"] == 1
    assert [item.name for item in tmp_path.iterdir()] == ["run.safetensors"]
