"""The pre-training loop: packed windows in, checkpoints and a loss curve out.

Promises that stopping and resuming changes no bit on one device, that a loss that is not finite stops the run with
the last good checkpoint kept, and that a finished run can be extended: the state before the learning rate fell is
kept as `stable.pt`. Knows nothing of files of the corpus.
"""

from __future__ import annotations

import hashlib
import math
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from models import checkpoint
from models.config import Recipe
from models.network import Network
from models.optimiser import Muon, trapezoid
from whit.errors import DataError, Interrupted, TrainingError
from whit.files import atomic_write

MAX_EPOCHS = 40  # beyond this a tiny corpus is learned by heart


@dataclass(frozen=True)
class Validation:
    """Held-out windows [count, sequence + 1] and how many bytes of text a token stands for."""

    windows: np.ndarray
    bytes_per_token: float


@dataclass(frozen=True)
class Plan:
    """How long, where, and what products are computed in (`float32` or `bfloat16`)."""

    folder: Path
    steps: int
    device: str = "cpu"
    dtype: str = "float32"
    save_seconds: float = 240.0
    report_every: int = 20
    validate_every: int = 250


def optimisers(network: Network, recipe: Recipe, dtype: torch.dtype = torch.float32) -> list[torch.optim.Optimizer]:
    """Muon for the projections, AdamW for the embedding and the norms."""
    matrices = [p for n, p in network.named_parameters() if p.dim() == 2 and not n.startswith("embed")]
    vectors = [p for n, p in network.named_parameters() if p.dim() < 2 or n.startswith("embed")]
    return [
        Muon(matrices, lr=recipe.matrix_rate, weight_decay=recipe.matrix_decay, dtype=dtype),
        torch.optim.AdamW(vectors, lr=recipe.vector_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=False),
    ]


@torch.no_grad()
def validation_bits(network: Network, validation: Validation, device: str) -> float:
    """Bits per byte on the held-out windows."""
    total, count = 0.0, 0
    for first in range(0, len(validation.windows), 4):
        ids = torch.from_numpy(validation.windows[first : first + 4]).to(device)
        total += network.loss(ids[:, :-1], ids[:, 1:]).item() * len(ids)
        count += len(ids)
    return total / count / math.log(2) / validation.bytes_per_token


def _step(network: Network, recipe: Recipe, inputs: torch.Tensor, labels: torch.Tensor, plan: Plan) -> float:
    """Gradients of one batch, summed over micro-batches. Returns the mean loss in nats over learned positions."""
    total, counted = 0.0, max(1, int((labels != -100).sum()))
    for ids, learned in zip(inputs.split(recipe.micro_batch), labels.split(recipe.micro_batch), strict=True):
        with torch.autocast(plan.device.split(":")[0], torch.bfloat16, enabled=plan.dtype == "bfloat16"):
            loss = network.loss(ids, learned, reduction="sum") / counted
        loss.backward()
        total += loss.item()
    return total


class Source(Protocol):
    """Where batches come from: `Windows` of plain text, or chats."""

    per_epoch: int
    fingerprint: str

    def batch(self, step: int, size: int) -> tuple[np.ndarray, np.ndarray]: ...


def pretrain(
    recipe: Recipe,
    windows: Source,
    validation: Validation | None,
    plan: Plan,
    *,
    initial: Mapping[str, torch.Tensor] | None = None,
) -> Network:
    """Train to `plan.steps`, from the newest checkpoint where there is one. Returns the network.

    `initial` gives the weights to begin with in place of random ones (for a later stage).

    Raises `TrainingError` (not finite, lost device, another recipe's checkpoint), `DataError` (too little text),
    `Interrupted` (SIGINT or SIGTERM; the state is saved).
    """
    if plan.steps * recipe.batch > MAX_EPOCHS * windows.per_epoch:
        have = windows.per_epoch * recipe.sequence
        raise DataError(
            f"{plan.steps * recipe.batch * recipe.sequence} tokens are asked for, but an epoch of this corpus has "
            f"only {have}; give more text or at most --tokens {have * MAX_EPOCHS}"
        )
    network = Network(recipe.shape)
    network.initialise(recipe.seed)
    identity = recipe.fingerprint() + windows.fingerprint
    if plan.dtype != "float32":
        identity += plan.dtype
    if initial is not None:
        network.load_state_dict(initial)
        identity += hashlib.sha256(b"".join(t.numpy(force=True).tobytes() for t in initial.values())).hexdigest()
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()
    network.to(plan.device)
    chosen = optimisers(network, recipe, getattr(torch, plan.dtype))
    step, history, spent = 0, [], 0.0
    decay_start = plan.steps - max(1, round(plan.steps * recipe.decay_share))
    found = checkpoint.latest(plan.folder, fingerprint)
    stable = plan.folder / "stable.pt"
    if found and found[1]["planned"] != plan.steps and found[0] > found[1]["decay_start"] and stable.exists():
        found = checkpoint.read(stable, fingerprint)
        checkpoint.rewind(plan.folder, found[0], fingerprint, found[1])
        print(f"the run is planned anew: on from step {found[0]}, before its rate fell", file=sys.stderr)
    if found:
        step, state = found
        network.load_state_dict(state["network"])
        for optimiser, saved in zip(chosen, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        history, spent = state["history"], state["seconds"]
    stop: list[int] = []
    before = {s: signal.signal(s, lambda number, _: stop.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    started = saved_at = time.monotonic()

    def keep(name: Path | None = None) -> None:
        state = {
            "network": network.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in chosen],
            "history": history,
            "seconds": spent + time.monotonic() - started,
            "planned": plan.steps,
            "decay_start": decay_start,
        }
        checkpoint.save(plan.folder, step, fingerprint, state, name=name)
        _write_curve(plan.folder, history)

    try:
        while step < plan.steps:
            if step == decay_start:
                keep(stable)
            share = trapezoid(step, plan.steps, recipe.warmup_steps, recipe.decay_share)
            for optimiser, rate in zip(chosen, (recipe.matrix_rate, recipe.vector_rate), strict=True):
                optimiser.param_groups[0]["lr"] = rate * share
            inputs, labels = (torch.from_numpy(part).to(plan.device) for part in windows.batch(step, recipe.batch))
            loss = _step(network, recipe, inputs, labels, plan)
            norm = torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip).item()
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise TrainingError(
                    f"step {step}: the loss is {loss} and the gradient norm {norm}; the last good state is the newest "
                    f"checkpoint in {plan.folder}; lower matrix_rate or vector_rate, or check the corpus"
                )
            for optimiser in chosen:
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            step += 1
            seconds = spent + time.monotonic() - started
            if step % plan.report_every == 0 or step == plan.steps:
                row = {"step": step, "tokens": step * recipe.batch * recipe.sequence, "loss": round(loss, 4)}
                row |= {"norm": round(norm, 3), "rate": round(share, 4), "seconds": round(seconds, 1)}
                if validation and (step % plan.validate_every < plan.report_every or step == plan.steps):
                    row["held_out_bits_per_byte"] = round(validation_bits(network, validation, plan.device), 4)
                history.append(row)
                print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
            if stop:
                keep()
                raise Interrupted(f"stopped at step {step}; the same command goes on from there")
            if time.monotonic() - saved_at > plan.save_seconds:
                keep()
                saved_at = time.monotonic()
        keep()
    except RuntimeError as error:
        # CUDA reports a lost device as a RuntimeError of some later call.
        if not plan.device.startswith("cuda"):
            raise
        raise TrainingError(f"step {step}: the device failed ({error}); the same command resumes") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return network


def _write_curve(folder: Path, history: list[dict[str, Any]]) -> None:
    columns = ["step", "tokens", "loss", "norm", "rate", "seconds", "held_out_bits_per_byte"]
    lines = [",".join(columns)] + [",".join(str(row.get(c, "")) for c in columns) for row in history]
    atomic_write(folder / "curve.csv", "\n".join(lines) + "\n")
