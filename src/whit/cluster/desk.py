"""A run's desk on the cluster: it hands out jobs, keeps their checkpoints, and waits for whoever asks for the result.

A `Desk` is a detached actor on the head node, known by its key: the machine that sent the work may go and come back.
Each job is done by one worker somewhere, which sends its words and its checkpoints here. A job whose worker is lost
goes on elsewhere from its last checkpoint; one that is lost again and again without getting any further is given up,
and so is one that does not fit into a worker's memory. A job that was submitted once is not begun twice.

What crosses is text and bytes. Knows nothing of what jobs are; `whit.cluster.work` finds that out in the worker.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_LOSSES = 3  # workers lost without a new checkpoint between, before a job is given up
_MOST_EVENTS = 5000
_SLOW_START = 20.0  # seconds after which it is said that a job waits for room
_PAUSE = 0.5  # seconds before a lost job is begun anew
_LOOK = 5.0  # seconds between looks at the nodes
_DEAD_LOOKS = 3  # looks at which a node was dead, before its worker counts as lost


class NodeLost(Exception):
    """The node on which a job was at work is gone, though nobody said so of its worker."""


class NoRoom(Exception):
    """No node has so many CPUs any more."""


@dataclass
class Job:
    """A job: its description, where it is, and what came of it."""

    about: dict[str, Any]
    state: str = "waiting"  # waiting, running, done, failed
    attempt: int = 0
    kept: dict[str, bytes] = field(default_factory=dict)  # its checkpoint files
    saves: int = 0
    lost: int = 0
    answer: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    ref: Any = None
    node: str = ""  # where it is at work


class Desk:
    """See the module. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._blobs: dict[str, Any] = {}  # references of what was sent, by SHA-256
        self._events: deque[dict[str, Any]] = deque(maxlen=_MOST_EVENTS)
        self._progress: dict[str, dict[str, Any]] = {}
        self._count = 0
        self._stopped = False

    # -- called by who sent the work

    def missing(self, digests: list[str]) -> list[str]:
        """Those of these files that are not here yet."""
        with self._lock:
            return [each for each in digests if each not in self._blobs]

    def bring(self, digest: str, content: bytes) -> None:
        """Take a file; it lies in this node's store, where every worker can fetch it."""
        import ray

        with self._lock:
            if digest not in self._blobs:
                self._blobs[digest] = ray.put(content)

    def submit(self, key: str, about: str) -> str:
        """Begin a job, unless it was begun; one that failed is begun anew, from its last checkpoint. Its state."""
        with self._lock:
            job = self._jobs.get(key)
            if job is not None and job.state != "failed":
                return job.state
            if job is None:
                job = self._jobs[key] = Job(json.loads(about))
            job.state, job.lost, job.answer = "waiting", 0, {}
        threading.Thread(target=self._see_through, args=(key, job), daemon=True).start()
        return "waiting"

    def poll(self, since: int) -> str:
        """What was said after event `since`, the last progress of each job, and the state of every job; as JSON."""
        with self._lock:
            said = [event for event in self._events if event["n"] > since]
            progress = [event for event in self._progress.values() if event["n"] > since]
            jobs = {
                key: {
                    "state": job.state, "attempt": job.attempt, "saves": job.saves,
                    **({"answer": job.answer} if job.answer else {}),
                }
                for key, job in self._jobs.items()
            }  # fmt: skip
            return json.dumps({"n": self._count, "events": said, "progress": progress, "jobs": jobs})

    def files(self, key: str) -> dict[str, bytes]:
        """The files that a job which is done made."""
        with self._lock:
            return dict(self._jobs[key].files)

    def stop(self) -> None:
        """End all workers; nothing is begun any more."""
        import ray

        with self._lock:
            self._stopped = True
            refs = [job.ref for job in self._jobs.values() if job.ref is not None and job.state == "running"]
        for ref in refs:
            ray.cancel(ref, force=True)

    # -- called by workers

    def keep(self, key: str, attempt: int, files: dict[str, bytes]) -> None:
        """A worker's checkpoint. That of a worker which was given up is not taken."""
        with self._lock:
            job = self._jobs[key]
            if attempt == job.attempt and files:
                job.kept, job.saves, job.lost = files, job.saves + 1, 0

    def told(self, key: str, attempt: int, event: str) -> None:
        """A worker's word: JSON with `say` or `progress`."""
        with self._lock:
            job = self._jobs[key]
            if attempt == job.attempt:
                job.state = "running"
                heard = json.loads(event)
                job.node = heard.pop("node", job.node)
                self._tell(key, heard)

    # -- within

    def _tell(self, key: str, event: Mapping[str, Any]) -> None:
        self._count += 1
        whole = {**event, "n": self._count, "job": key}
        if "progress" in event:
            self._progress[key] = whole
        else:
            self._progress.pop(key, None)
            self._events.append(whole)

    def _say(self, key: str, text: str) -> None:
        with self._lock:
            self._tell(key, {"say": text})

    def _see_through(self, key: str, job: Job) -> None:
        """Begin a job, and again where its worker is lost, until it is done or given up."""
        while not self._stopped:
            with self._lock:
                job.attempt += 1
                job.node = ""
            try:
                about, files = self._attempt(key, job)
            except Exception as error:
                end = self._after(key, job, error)
                if end is None:
                    time.sleep(_PAUSE)
                    continue
                about, files = end, {}
            with self._lock:
                job.answer, job.files = about, files
                job.state = "failed" if "error" in about else "done"
                if job.state == "done":
                    job.kept = {}
            return

    def _attempt(self, key: str, job: Job) -> tuple[dict[str, Any], dict[str, bytes]]:
        import ray

        from whit.cluster.work import work

        cpus = min(int(job.about["cpus"]), max(_alive().values(), default=0)) or 1
        with self._lock:
            files = {name: self._blobs[digest] for name, digest in job.about["files"].items()}
            kept, attempt = dict(job.kept), job.attempt
        # A node may vanish; what it did is done anew from the checkpoint, by this desk and not by Ray.
        send = ray.remote(work).options(num_cpus=cpus, max_retries=0, scheduling_strategy="SPREAD")
        me = ray.get_runtime_context().current_actor
        job.ref = send.remote(me, key, attempt, json.dumps({**job.about, "cpus": cpus}), files, kept)
        self._wait(key, job, cpus)
        about, made = ray.get(job.ref)
        return json.loads(about), dict(made)

    def _wait(self, key: str, job: Job, cpus: int) -> None:
        """Until there is an outcome. Ray tells of a worker that ended, not of one that is cut off or frozen."""
        import ray

        began, told, dead = time.monotonic(), False, 0
        while not ray.wait([job.ref], timeout=_LOOK, fetch_local=False)[0]:
            there = _alive()
            if job.state != "running":
                if max(there.values(), default=0) < cpus:
                    ray.cancel(job.ref, force=True)
                    raise NoRoom
                if not told and time.monotonic() - began > _SLOW_START:
                    self._say(key, f"waiting for a node with {cpus} free CPU{'s' if cpus > 1 else ''}")
                    told = True
            dead = dead + 1 if job.node and job.node not in there else 0
            if dead >= _DEAD_LOOKS:
                raise NodeLost

    def _after(self, key: str, job: Job, error: Exception) -> dict[str, Any] | None:
        """What a failed attempt comes to: an answer that ends the job, or None where it is worth another one."""
        from ray import exceptions as lost

        name = type(error).__name__
        with self._lock:
            job.state = "waiting"
            job.lost += not isinstance(error, NoRoom)
            times = job.lost
        if self._stopped:
            return {"error": "ClusterError", "message": "the run was stopped"}
        if isinstance(error, lost.OutOfMemoryError):
            if times < 2:  # once may have been a neighbour's doing
                self._say(key, "its worker ran out of memory; once more, from the last checkpoint")
                return None
            return {"error": "ClusterError", "message": (
                "the worker ran out of memory, and Ray ended it; try --quantize nf4, --checkpointing, --accumulate N, "
                "a smaller --batch, or nodes with more memory"
            )}  # fmt: skip
        if isinstance(error, NoRoom):
            return None
        gone = (
            NodeLost, lost.WorkerCrashedError, lost.NodeDiedError, lost.ObjectLostError, lost.RaySystemError,
            lost.TaskUnschedulableError, lost.RayActorError, lost.LocalRayletDiedError,
        )  # fmt: skip
        if isinstance(error, gone) and not isinstance(error, lost.RayTaskError):
            if times < MOST_LOSSES:
                self._say(key, f"its worker was lost ({name}); it goes on from the last checkpoint")
                return None
            return {"error": "ClusterError", "message": (
                f"its worker was lost {times} times without getting any further ({name}); is a node short of memory, "
                "or does it end processes?"
            )}  # fmt: skip
        first = (str(error).strip().splitlines() or [name])[-1][:300]
        return {"error": "ClusterError", "message": f"its worker failed: {first}"}


def _alive() -> dict[str, int]:
    """The CPUs of each living node."""
    import ray

    return {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]}
