"""The way to a Ray cluster: reached in bounded time, and of the same whit, or an error that says what is wrong.

An address is `HOST:PORT` of a cluster whose nodes this machine can reach and belongs to, `ray://HOST:PORT` of its
client server for any other machine, or `auto` for the cluster that runs here. Knows nothing of what the cluster is to
do.

Trust: Ray has no users. Whoever reaches its ports runs code there, and what comes back from a cluster is unpickled by
Ray here. So a cluster must be trusted as this machine is, and stand behind a network that only its owner reaches.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from whit.errors import ClusterError, UsageError

NAMESPACE = "whit"
_PATIENCE = 10.0  # seconds to wait for a port and for its first word
_PROBE = 90.0  # seconds for every node to say what it has: a worker is started on each
_ADDRESS = re.compile(r"(?:(ray)://)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


@dataclass(frozen=True)
class Cluster:
    """A cluster that is connected: Ray's module, and the CPUs of each living node."""

    ray: Any
    address: str
    cpus: tuple[int, ...]
    head: str | None

    def threads(self, asked: int | None, jobs: int = 1) -> int:
        """Threads for each of `jobs` that run at once. Raises `UsageError` for more than any node has."""
        most = max(self.cpus)
        if asked is not None:
            if asked > most:
                raise UsageError(f"--threads {asked}: no node of {self.address} has more than {most} CPUs")
            return asked
        return max(1, min(most, sum(self.cpus) // jobs))


@contextlib.contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """The cluster at `address` for the length of a block. Raises `UsageError` or `ClusterError`."""
    ray = _ray()
    _require_answer(address)
    with contextlib.ExitStack() as stack:
        # Ray tells of lost nodes on stdout, which is for the answer.
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield _joined(ray, address, stack)


def _joined(ray: Any, address: str, stack: contextlib.ExitStack) -> Cluster:
    try:
        _join(ray, address)
    except (Exception, SystemExit) as error:  # Ray raises all kinds, and leaves on some
        # A client's server over there is started for it, and has little time to come up on a busy machine.
        if not isinstance(error, ConnectionError) or not address.startswith("ray://"):
            raise ClusterError(f"{address}: {_reason(error)}") from error
        try:
            _join(ray, address)
        except (Exception, SystemExit) as again:
            raise ClusterError(f"{address}: {_reason(again)}") from again
    stack.callback(_leave, ray)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    cpus = tuple(int(node["Resources"].get("CPU", 0)) for node in nodes)
    if not any(cpus):
        raise ClusterError(f"{address}: none of its {len(nodes)} nodes has a CPU to offer; start nodes with some")
    head = next((node["NodeID"] for node in nodes if "node:__internal_head__" in node["Resources"]), None)
    found = Cluster(ray, address, cpus, head)
    _require_same_whit(found, [node["NodeID"] for node in nodes])
    return found


def _join(ray: Any, address: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Where whit is one of a cluster's own processes it is connected already.
        ray.init(
            address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True
        )


def _leave(ray: Any) -> None:
    with contextlib.suppress(Exception):
        ray.shutdown()


def on_node(node: str, *, soft: bool = False) -> Any:
    """Ray's way to say that something is to run on this node."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=soft)


def _ray() -> Any:
    # Ray reports how it is used to its makers, unless told otherwise before it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UsageError("--ray needs Ray: pip install 'whit[ray]'") from error
    return ray


def _require_answer(address: str) -> None:
    """Ray itself waits for minutes, and then ends the process: ask the port first."""
    if address == "auto":
        return
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match[3]) > 65535:
        raise UsageError(f"--ray {address}: give HOST:PORT, ray://HOST:PORT, or auto for the cluster on this machine")
    host, port = match[2].strip("[]"), int(match[3])
    try:
        socket.create_connection((host, port), timeout=_PATIENCE).close()
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise ClusterError(
            f"{address}: no cluster there ({why}); is it up, and is this the port of "
            f"{'its client server (10001)' if match[1] else 'its head (6379)'}?"
        ) from error
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return
    try:
        import grpc
    except ImportError as error:
        raise UsageError("--ray needs grpcio beside Ray: pip install 'whit[ray]'") from error
    channel = grpc.insecure_channel(f"{match[2]}:{port}", options=[("grpc.enable_http_proxy", 0)])
    try:
        grpc.channel_ready_future(channel).result(timeout=_PATIENCE)
    except grpc.FutureTimeoutError as error:
        raise ClusterError(f"{address}: something listens there, but it does not answer as Ray does") from error
    finally:
        channel.close()


def _reason(error: BaseException) -> str:
    """What Ray said, in one line."""
    if isinstance(error, SystemExit):
        return "the cluster does not answer"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines) or type(error).__name__
    if "ersion mismatch" in text or "different version" in text.lower():
        return f"the cluster has another Ray or Python than this machine; install the same ({text[:300]})"
    return f"could not be joined ({text[:300]})"


def _require_same_whit(cluster: Cluster, nodes: Sequence[str]) -> None:
    """Every node must have this whit: what crosses is settings and files, and they must mean the same there."""
    ray, here = cluster.ray, version("whit")

    # Within this function, so that it is sent as it is: the other side may have no whit to find it in.
    def whit_there() -> str:
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as version_of

        try:
            return str(version_of("whit"))
        except PackageNotFoundError:
            return ""

    ask = ray.remote(whit_there)
    asked = [
        ask.options(num_cpus=0, max_retries=0, scheduling_strategy=on_node(node, soft=False)).remote() for node in nodes
    ]
    from ray import exceptions as lost

    # A node that has just gone may still be listed: what cannot be asked any more need not have whit.
    gone = (lost.TaskUnschedulableError, lost.NodeDiedError, lost.WorkerCrashedError, lost.LocalRayletDiedError)
    found, why = list[str](), "no node is left"
    until = time.monotonic() + _PROBE
    for each in asked:
        try:
            found.append(ray.get(each, timeout=max(0.1, until - time.monotonic())))
        except gone as error:
            why = _first(error)
        except Exception as error:  # another Python, a node without memory, or none of them answers
            raise ClusterError(f"{cluster.address}: not every node says which whit it has ({_first(error)})") from error
    if not found:
        raise ClusterError(f"{cluster.address}: no node says which whit it has ({why})")
    other = [each for each in found if each != here]
    if other:
        what = f"whit {other[0]}" if other[0] else "no whit"
        where = "" if len(found) == 1 else f" on {len(other)} of {len(found)} nodes"
        raise ClusterError(
            f"{cluster.address}: there is {what}{where}, and whit {here} here; install that one there: "
            f"pip install 'whit[ray]=={here}' (Python {sys.version_info[0]}.{sys.version_info[1]})"
        )


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
