"""A real Ray cluster of two nodes on this machine, a tiny base and rows; skipped where Ray is absent."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# How soon a node that was killed is noticed; by default Ray takes its time.
_QUICK = {"health_check_period_ms": 1000, "health_check_failure_threshold": 8}


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder that no other test and no user shares; the cluster's workers inherit it."""
    folder = tmp_path_factory.mktemp("cache")
    given = {"WHIT_CACHE": str(folder), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    yield folder
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def cluster(cache: Path) -> Iterator[Any]:
    """The cluster: a head with one CPU; tests add nodes and kill them. `client` is the address for who is no node."""
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {
        "num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 << 20, "_system_config": _QUICK,
        "ray_client_server_port": port,
    }  # fmt: skip
    for turn in range(3):
        try:
            made = Cluster(initialize_head=True, head_node_args=given)
            break
        except Exception:  # Ray gives a node 30 s to come up, which a busy machine may not do
            if turn == 2:
                raise
    made.client = f"ray://127.0.0.1:{port}"
    yield made
    made.shutdown()


def killed(cluster: Any, node: Any) -> None:
    """End a node as a power cut does: its workers too, which by themselves would look around for a while."""
    raylet = node.all_processes["raylet"][0].process.pid
    children = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
    cluster.remove_node(node, allow_graceful=False)
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGKILL)


@pytest.fixture
def kill(cluster: Any) -> Callable[[Any], None]:
    """Kills a node."""
    return functools.partial(killed, cluster)


@pytest.fixture
def second(cluster: Any) -> Iterator[Callable[..., Any]]:
    """Adds a node; what a test leaves is taken away."""
    added: list[Any] = []

    def add(**more: Any) -> Any:
        added.append(cluster.add_node(object_store_memory=100 << 20, **{"num_cpus": 1, **more}))
        return added[-1]

    yield add
    for node in added:
        if node in cluster.worker_nodes:
            killed(cluster, node)


@pytest.fixture(scope="session")
def little(base: Path) -> dict[str, Any]:
    """Options with which training takes a second or two."""
    return {
        "base": str(base), "dtype": "float32", "instruction": "card or cash?", "batch": 8, "kind": "xs",
        "learning_rate": 0.05, "epochs": 1.0, "evaluations": 2, "shots": (), "baselines": False,
    }  # fmt: skip
