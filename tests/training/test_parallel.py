"""Data parallel training: the same adapter as one process's, and what happens when one is gone."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from whit.adapters.targets import all_targets
from whit.adapters.tunable import Bound, tune_lora, tune_vector
from whit.adapters.vector import xs_spec
from whit.bases import Base, load_base
from whit.data.rows import Row, Turn
from whit.data.templates import Encoded
from whit.errors import Interrupted, TrainingError, UsageError
from whit.testing import write_tiny_base
from whit.training.parallel import Team, team_of, train_together
from whit.training.sft import Plan, Progress, train

PLAN = Plan(epochs=2.0, batch=8, learning_rate=0.02, evaluations=2, patience=9)
ROWS = 19  # the last step of a pass has 3 rows, and with batch 9 a single one


def made(folder: str, kind: str) -> tuple[Base, Bound, list[Encoded]]:
    """The same base, adapter and rows in every process."""
    torch.set_num_threads(1)
    base = load_base(folder, dtype="float32")
    targets = all_targets(name for name, _ in base.model.named_modules())
    bound: Bound
    if kind == "lora":
        bound = tune_lora(base, targets, rank=2, alpha=4.0, dropout=0.0, seed=0)
    else:
        bound = tune_vector(base, xs_spec([target.index for target in targets], 2), number_type="float32")
    rows = []
    for number in range(ROWS):
        row = Row(
            f"r{number}", (Turn("user", f"word {'x' * (number % 5)} {number}"),), "AB"[number % 2] * (1 + number % 3)
        )
        prompt = base.encode(str(base.template.render(row.turns)))
        rows.append(Encoded(row, prompt, [*base.encode(row.completion), base.stop_ids[0]]))
    return base, bound, rows


def numbers(bound: Bound) -> Any:
    return torch.cat([part.detach().flatten() for part in bound.parameters()]).numpy()


def work(rank: int, size: int, port: int, folder: str, kind: str, plan: Plan, out: str, stop: int | None) -> None:
    """One process of a team; writes its numbers and the losses that it was told."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        WORLD_SIZE=str(size),
        WHIT_CACHE=f"{out}/cache-{rank}",
    )
    base, bound, rows = made(folder, kind)
    losses: list[float] = []

    def watch(progress: Progress) -> None:
        losses.append(progress.loss)
        if stop is not None and progress.step == stop:
            raise Interrupted("here")

    with team_of(1, []) as team:
        try:
            done = train_together(
                base, bound, rows, plan, lambda: team.mean_score(10, lambda places: [at / 10 for at in places]), team,
                watch=watch,
            )  # fmt: skip
        except Interrupted:
            return
    np.savez(f"{out}/{rank}.npz", v=numbers(bound), losses=losses, score=[done.best.score], tokens=[done.tokens])


def together(size: int, folder: Path, kind: str, plan: Plan, out: Path, stop: int | None = None) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out.mkdir(exist_ok=True)
    context = multiprocessing.get_context("spawn")
    started = [
        context.Process(target=work, args=(rank, size, port, str(folder), kind, plan, str(out), stop))
        for rank in range(size)
    ]
    for each in started:
        each.start()
    for each in started:
        each.join(240)
        assert each.exitcode == 0
    return [] if stop is not None else [np.load(out / f"{rank}.npz") for rank in range(size)]


@pytest.fixture(scope="module")
def folder(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(
        tmp_path_factory.mktemp("base") / "tiny",
        layers=2,
        hidden=32,
        heads=2,
        kv_heads=1,
        ffn=64,
        vocab=320,
        context=128,
    )


def alone(folder: Path, kind: str, plan: Plan) -> tuple[Any, list[float]]:
    base, bound, rows = made(str(folder), kind)
    losses: list[float] = []
    train(base, bound, rows, plan, lambda: 0.45, watch=lambda progress: losses.append(progress.loss))
    return numbers(bound), losses


@pytest.mark.slow
@pytest.mark.parametrize(("size", "kind", "batch"), [(2, "xs", 8), (3, "lora", 9)])
def test_it_is_what_one_process_gives(folder: Path, tmp_path: Path, size: int, kind: str, batch: int) -> None:
    plan = replace(PLAN, batch=batch)
    expected, losses = alone(folder, kind, plan)
    found = together(size, folder, kind, plan, tmp_path / "out")
    for one in found:
        assert (one["v"] == found[0]["v"]).all(), "not every process has the same numbers"
        assert np.allclose(one["v"], expected, atol=2e-3 * np.abs(expected).max())
        assert np.allclose(one["losses"], losses, rtol=1e-3)
        assert one["score"][0] == pytest.approx(0.45) and one["tokens"][0] == found[0]["tokens"][0]


@pytest.mark.slow
def test_a_stopped_team_goes_on_to_the_same_numbers_alone_or_together(folder: Path, tmp_path: Path) -> None:
    plan = replace(PLAN, run="r", checkpoint=tmp_path / "run.safetensors")
    whole = together(2, folder, "xs", replace(plan, checkpoint=None), tmp_path / "whole")[0]["v"]
    together(2, folder, "xs", plan, tmp_path / "stopped", stop=3)
    assert plan.checkpoint is not None
    kept = plan.checkpoint.read_bytes()
    assert (together(2, folder, "xs", plan, tmp_path / "again")[0]["v"] == whole).all()
    plan.checkpoint.write_bytes(kept)
    found, _ = alone(folder, "xs", plan)
    assert np.allclose(found, whole, atol=2e-3 * np.abs(whole).max())


def test_one_process_is_a_team_of_its_own(folder: Path) -> None:
    with team_of(1, []) as team:
        assert team.first and team.mine(3) == [0, 1, 2]
        assert team.mean_score(4, lambda places: [1.0] * len(places)) == 1.0
    deal = [Team(rank, 3).mine(8) for rank in range(3)]
    assert sorted(at for one in deal for at in one) == list(range(8)) and Team(2, 3).mine(2) == []
    base, bound, rows = made(str(folder), "xs")
    expected, _ = alone(folder, "xs", PLAN)
    train_together(base, bound, rows, PLAN, lambda: 0.45, Team())
    assert np.allclose(numbers(bound), expected, atol=1e-6)


def test_what_cannot_be_shared_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, bound, rows = made(str(folder), "xs")
    with pytest.raises(UsageError, match="natural is not shared among processes"):
        train_together(base, bound, rows, replace(PLAN, optimizer="natural"), lambda: 0.5, Team())
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="--processes 2, but torchrun started 3"), team_of(2, []):
        pass


def test_a_process_that_dies_ends_the_run_and_not_in_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = """
import os, torch.distributed as dist
dist.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=2)
os._exit(9)
"""
    with (
        pytest.raises(TrainingError, match=r"another of the 2 processes ended .* go on with the same command"),
        team_of(2, [sys.executable, "-c", worker]) as team,
    ):
        for _ in range(50):
            team.sum(torch.ones(3))
    assert all(each.poll() == 9 for each in team.others)


def test_a_nan_that_was_computed_for_nothing_is_not_summed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, encode: Callable[..., list[Encoded]]
) -> None:
    from whit.training.parallel import _Shared

    base, bound, rows = made(str(folder), "xs")
    run = _Shared(base, bound, rows, PLAN, lambda: 0.5, lambda progress: None, Team(1, 2))
    summed: list[torch.Tensor] = []
    monkeypatch.setattr(Team, "sum", lambda self, values: summed.append(values) or values)
    run.share = 0.0
    for parameter in bound.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    run.refuse_nan(float("nan"), [], [])
    assert bool((summed[0] == 0).all())
