"""Stopping, resuming, extending, and every way in which a run may not go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models import checkpoint
from models.pretrain import Plan, pretrain
from whit.errors import DataError, Interrupted, TrainingError

ROOT = Path(__file__).resolve().parents[2]


def train(recipe, windows, folder, steps, **settings):
    return pretrain(recipe, windows, None, Plan(folder, steps, report_every=1, **settings))


def same(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class StopAt:
    """Windows that raise once a step is reached, as a killed process would."""

    def __init__(self, windows, step):
        self.windows, self.step, self.fingerprint = windows, step, windows.fingerprint
        self.per_epoch = windows.per_epoch

    def batch(self, step, size):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.windows.batch(step, size)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resumed_equals_unbroken_to_the_bit(recipe, windows, tmp_path, dtype):
    whole = train(recipe, windows, tmp_path / "whole", 12, dtype=dtype)
    with pytest.raises(Interrupted, match="step 6"):
        train(recipe, StopAt(windows, 5), tmp_path / "broken", 12, dtype=dtype)
    assert same(whole, train(recipe, windows, tmp_path / "broken", 12, dtype=dtype))
    first, second = ((tmp_path / n / "curve.csv").read_text().splitlines() for n in ("whole", "broken"))
    strip = [[row.split(",")[:5] for row in rows] for rows in (first, second)]  # all but the seconds
    assert strip[0] == strip[1] and len(first) == 13


def test_a_finished_run_is_extended_from_before_its_rate_fell(recipe, windows, tmp_path):
    train(recipe, windows, tmp_path / "short", 8)
    longer = train(recipe, windows, tmp_path / "short", 16)
    assert same(longer, train(recipe, windows, tmp_path / "long", 16))


def test_an_extension_may_itself_be_stopped_and_resumed(recipe, windows, tmp_path):
    train(recipe, windows, tmp_path / "short", 8)  # its checkpoint, 8, is later than where the extension begins
    with pytest.raises(Interrupted, match="step 7"):
        train(recipe, StopAt(windows, 6), tmp_path / "short", 16)
    assert [path.name for path in (tmp_path / "short").glob("checkpoint-*8.pt")] == []
    assert same(train(recipe, windows, tmp_path / "short", 16), train(recipe, windows, tmp_path / "long", 16))


def test_loss_falls(recipe, windows, tmp_path):
    train(recipe, windows, tmp_path, 40)
    losses = [float(row.split(",")[2]) for row in (tmp_path / "curve.csv").read_text().splitlines()[1:]]
    assert losses[-1] < losses[0] - 1.5


def test_the_earlier_checkpoint_is_used_where_the_last_is_cut(recipe, windows, tmp_path, capsys):
    for step in (2, 4):
        with pytest.raises(Interrupted):
            train(recipe, StopAt(windows, step - 1), tmp_path, 12)
    newest = checkpoint.path_of(tmp_path, 4)
    newest.write_bytes(newest.read_bytes()[:5000])
    (tmp_path / ".checkpoint-00000009.pt.0badf00d.partial").write_bytes(b"PK")
    fingerprint = torch.load(checkpoint.path_of(tmp_path, 2), weights_only=True)["fingerprint"]
    assert checkpoint.latest(tmp_path, fingerprint)[0] == 2
    assert "damaged" in capsys.readouterr().err


KILLED = """
import sys, os, signal, torch
sys.path[:0] = [{root!r}, {source!r}]
from pathlib import Path
from models import checkpoint
folder = Path({folder!r})
state = {{"x": torch.arange(2_000_000)}}
checkpoint.save(folder, 1, "f", state)
print("saved", flush=True)
real = os.fsync
def dying(descriptor):
    os.kill(os.getpid(), signal.SIGKILL)  # the bytes are written, the name is not yet given
os.fsync = dying
checkpoint.save(folder, 2, "f", state)
"""


def test_kill_in_the_middle_of_a_write_leaves_the_earlier_one(tmp_path):
    code = KILLED.format(root=str(ROOT), source=str(ROOT / "src"), folder=str(tmp_path))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.returncode == -signal.SIGKILL and "saved" in ended.stdout
    step, state = checkpoint.latest(tmp_path, "f")
    assert step == 1 and len(state["x"]) == 2_000_000


@pytest.mark.slow
def test_kill_at_any_moment_of_training_can_be_resumed(recipe, windows, tmp_path):
    """A real process, saving after each step, killed at an arbitrary moment."""
    code = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "src")!r}, {str(Path(__file__).parent)!r}]
import torch; torch.set_num_threads(1)
from pathlib import Path
from models import checkpoint
state = {{"x": torch.arange(300_000)}}
for step in range(100_000):
    checkpoint.save(Path({str(tmp_path)!r}), step, "f", state)
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("checkpoint-*.pt"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    step, state = checkpoint.latest(tmp_path, "f")
    assert step >= 1 and len(state["x"]) == 300_000


def test_only_the_last_two_checkpoints_are_kept(tmp_path):
    for step in range(5):
        checkpoint.save(tmp_path, step, "f", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-00000003.pt", "checkpoint-00000004.pt"]


def test_a_checkpoint_of_another_recipe_is_refused(recipe, windows, tmp_path):
    train(recipe, windows, tmp_path, 2)
    with pytest.raises(TrainingError, match="another recipe"):
        train(replace(recipe, seed=99), windows, tmp_path, 2)


def test_a_checkpoint_of_another_number_type_is_refused(recipe, windows, tmp_path):
    train(recipe, windows, tmp_path, 2)
    with pytest.raises(TrainingError, match="another recipe"):
        train(recipe, windows, tmp_path, 4, dtype="bfloat16")


def test_products_are_computed_in_the_number_type_asked_for(recipe, windows, tmp_path):
    one, other = (train(recipe, windows, tmp_path / dtype, 4, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert not same(one, other)
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert a.dtype == b.dtype == torch.float32 and (a - b).norm() < 0.1 * a.norm()


def test_micro_batches_do_not_make_another_recipe(recipe):
    assert replace(recipe, micro_batch=1).fingerprint() == recipe.fingerprint()
    assert replace(recipe, matrix_rate=0.5).fingerprint() != recipe.fingerprint()


def test_a_loss_that_is_not_finite_stops_with_the_last_good_state(recipe, windows, tmp_path):
    with pytest.raises(Interrupted):
        train(recipe, StopAt(windows, 2), tmp_path, 9)
    before = checkpoint.path_of(tmp_path, 3).read_bytes()
    bad = replace(recipe)  # the same recipe; the weights are spoiled by an infinite learning rate
    object.__setattr__(bad, "matrix_rate", float("inf"))
    object.__setattr__(bad, "fingerprint", recipe.fingerprint)
    with pytest.raises(TrainingError, match="last good state"):
        train(bad, windows, tmp_path, 9)
    assert checkpoint.path_of(tmp_path, 3).read_bytes() == before


def test_more_tokens_than_the_corpus_can_give_are_refused(recipe, windows, tmp_path):
    with pytest.raises(DataError, match="only"):
        train(recipe, windows, tmp_path, 10**6)


def test_a_lost_device_is_told_with_the_way_on(recipe, windows, tmp_path, monkeypatch):
    class Lost:
        fingerprint, per_epoch = windows.fingerprint, windows.per_epoch

        def batch(self, step, size):
            raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr("models.pretrain.Network.to", lambda self, device: self)
    with pytest.raises(TrainingError, match=r"device failed.*resumes"):
        train(recipe, Lost(), tmp_path, 3, device="cuda")
