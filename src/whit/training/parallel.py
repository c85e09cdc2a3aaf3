"""Data parallel training: several processes share each step's rows, and agree on its gradient.

Every process holds the base and the adapter. A step's rows are dealt out, each process takes the gradient of its own,
and the sum crosses the network: the adapter's numbers and one more, whatever the size of the base. What follows (the
optimiser, the mean, evaluations, stopping) is the same computation on the same numbers everywhere, so that nothing
else needs to be sent; the result is one process's but for the order of sums. Validation rows are dealt out too.

Where the base itself does not fit, its layers may be shared too (`share_layers`: PyTorch's FSDP, Zhao et al., 2023,
arXiv 2304.11277): each process keeps its part of every layer, and a layer is put together while it computes. Then all
processes must compute the same passes, or they wait for each other for ever: every one answers all validation rows, a
step is one pass of each, and the proof is made by all of them.

`Team` is who takes part. It is made by torchrun's variables, or by `whit train --processes N`, which starts the others
itself. Only the first process writes anything. Knows nothing of settings, splits or verdicts.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from whit.adapters.tunable import Bound
from whit.bases import Base
from whit.data.templates import Encoded
from whit.errors import TrainingError, UsageError
from whit.training.batching import Batch
from whit.training.loop import Trained
from whit.training.sft import Plan, Supervised, Watch, unshared

PATIENCE = timedelta(minutes=30)  # a process may be so far behind the others (a cold cache, a slow disk)
_GRACE = 10.0  # seconds that the others are given to end


@dataclass
class Team:
    """The processes of a run: `rank` of `size`; `others` are those that this one started."""

    rank: int = 0
    size: int = 1
    others: list[subprocess.Popen[bytes]] = field(default_factory=list)
    sharded: bool = False

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def mine(self, count: int) -> list[int]:
        """This process's places of `count`; all of them together are every place, once."""
        return list(range(count))[self.rank :: self.size]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over the team, the same bits everywhere. Raises `TrainingError` where a process is gone."""
        if self.size == 1:
            return values
        try:
            dist.all_reduce(values)
        except RuntimeError as error:
            why = (str(error).splitlines() or [""])[0][:120]
            raise TrainingError(
                f"another of the {self.size} processes ended ({why}); the last checkpoint is kept: go on with the same "
                "command and --resume"
            ) from error
        return values

    def mean_score(self, count: int, score: Callable[[list[int]], Sequence[float]]) -> float:
        """The mean of `count` scores, each process giving those of its own places (all, where layers are shared)."""
        if self.sharded:
            return float(sum(score(list(range(count))))) / count
        mine = self.mine(count)
        total = torch.tensor(sum(score(mine)) if mine else 0.0, dtype=torch.float64)
        return float(self.sum(total)) / count


@contextlib.contextmanager
def team_of(processes: int, worker: Sequence[str]) -> Iterator[Team]:
    """The team for the length of a block.

    Under torchrun (its variables are set) this process joins that team. Else, with `processes` above 1, that many
    less one are started as `worker` (a command line), and stopped when the block ends. Raises `UsageError`.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1:
        if processes not in (1, size):
            raise UsageError(f"--processes {processes}, but torchrun started {size}; leave the option out")
        with _joined(int(os.environ["RANK"]), size) as team:
            yield team
    elif processes > 1:
        with _started(processes, worker) as team:
            yield team
    else:
        yield Team()


@contextlib.contextmanager
def _joined(rank: int, size: int) -> Iterator[Team]:
    dist.init_process_group("gloo", rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield Team(rank, size)
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _started(size: int, worker: Sequence[str]) -> Iterator[Team]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = str(max(1, torch.get_num_threads() // size))
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    before, own = torch.get_num_threads(), {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    saved = {name: os.environ.get(name) for name in own}
    others = [
        # A session of its own: an interrupt from the terminal reaches the first process, which then ends the others.
        subprocess.Popen(
            worker, env={**shared, "RANK": str(rank), "OMP_NUM_THREADS": threads}, stdout=sys.stderr,
            start_new_session=True,
        )
        for rank in range(1, size)
    ]  # fmt: skip
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(others, ended), daemon=True)
    try:
        os.environ.update(own)
        torch.set_num_threads(int(threads))
        watcher.start()
        with _joined(0, size) as team:
            team.others = others
            yield team
    finally:
        ended.set()
        _end(others)
        torch.set_num_threads(before)
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def share_layers(team: Team, load: Callable[[], Base]) -> Base:
    """The base, of whose layers each process keeps its part. They load it in turn, so that one is whole at a time.

    What needs whole weights (the basis) must be made by `load`. On CPU by gloo, through torch's `fully_shard`:
    accelerate's own way to it takes a CPU for DDP.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (team.size,))
    for turn in range(team.size):
        if turn == team.rank:
            base = load()
            for layer in base.model.get_decoder().layers:
                fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        dist.barrier()
    team.sharded = True
    with torch.no_grad():
        # The first pass makes the tensors that layers are put together in; made while answering, they could not learn.
        base.model.get_decoder()(input_ids=torch.zeros((1, 1), dtype=torch.long), use_cache=False)
    return base


def _watch(others: Sequence[subprocess.Popen[bytes]], ended: threading.Event) -> None:
    """End everyone once one has failed: the first process would wait for it at the next sum."""
    while not ended.wait(0.5):
        if any(each.poll() not in (None, 0) for each in others):
            _end(others, at_once=True)
            return


def _end(others: Sequence[subprocess.Popen[bytes]], *, at_once: bool = False) -> None:
    until = time.monotonic() + (0 if at_once else _GRACE)
    for each in others:
        with contextlib.suppress(subprocess.TimeoutExpired):
            each.wait(max(0.0, until - time.monotonic()))
        if each.poll() is None:
            each.kill()
            each.wait()


def train_together(
    base: Base,
    bound: Bound,
    rows: Sequence[Encoded],
    plan: Plan,
    score: Callable[[], float],
    team: Team,
    *,
    watch: Watch | None = None,
) -> Trained:
    """`sft.train` by a team; every process calls it with the same rows and plan, and gets the same adapter."""
    if plan.optimizer != "adam":
        raise UsageError(f"--optimizer {plan.optimizer} is not shared among processes; use adam")
    return _Shared(base, bound, rows, plan, score, watch or (lambda progress: None), team).go()


class _Shared(Supervised):
    """A supervised run that takes its share of each step's rows, and everyone's gradient."""

    def __init__(
        self,
        base: Base,
        bound: Bound,
        rows: Sequence[Encoded],
        plan: Plan,
        score: Callable[[], float],
        watch: Watch | Callable[[Any], None],
        team: Team,
    ) -> None:
        super().__init__(base, bound, rows, plan, score, watch)
        self.team, self.share = team, 1.0

    def places(self) -> list[int]:
        """This process's rows of the step; `share` is their part of the step's tokens that are learned."""
        everyone = super().places()
        mine = [everyone[at] for at in self.team.mine(len(everyone))]
        tokens = sum(len(self.rows[at].completion_ids) for at in everyone)
        self.share = sum(len(self.rows[at].completion_ids) for at in mine) / tokens
        # A step of fewer rows than processes: who has none computes one for nothing.
        return mine or everyone[:1]

    def refuse_nan(self, loss: float, rows: Sequence[torch.Tensor], names: Sequence[str]) -> None:
        """First everyone's gradient and loss: then all see the same, and stop together."""
        parameters = self.bound.parameters()
        parts = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        numbers = [part.detach().float().cpu().flatten() for part in parts]
        flat = torch.cat([torch.tensor([loss], dtype=torch.float32), *numbers])
        # A share of none must not bring in a NaN that it computed for nothing.
        flat = self.team.sum(flat * self.share if self.share else torch.zeros_like(flat))
        self.together = float(flat[0])
        at = 1
        for each, part in zip(parameters, parts, strict=True):
            each.grad = flat[at : at + part.numel()].view_as(part).to(part.device, part.dtype)
            at += part.numel()
        super().refuse_nan(self.together, rows, names)

    def accumulate(
        self, part: Batch, targets: int, rows: int, gradients: list[torch.Tensor]
    ) -> tuple[float, list[str]]:
        """One pass, where layers are shared: a shared prefix is one more for some and none for others."""
        return super().accumulate(unshared(part) if self.team.sharded else part, targets, rows, gradients)

    def advance(self) -> None:
        """A step; its loss is everyone's, and so are the tokens."""
        before = self.tokens
        super().advance()
        self.loss = self.losses[-1] = self.together
        self.tokens = before + sum(self.lengths[at] for at in super().places())

    def save(self) -> None:
        """By the first process alone."""
        if self.team.first:
            super().save()
