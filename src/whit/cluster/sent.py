"""A run on a cluster as seen from where it was sent: open its desk, bring files, follow what is said, fetch the result.

The desk is found by the run's key, so that the same command finds its run again after an interrupt, or from another
machine. Nothing is lost by going away: only `close` ends a run. Knows nothing of what jobs are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from whit import errors
from whit.cluster.connection import NAMESPACE, Cluster, on_node
from whit.cluster.parcel import digest_of
from whit.errors import ClusterError, Interrupted, UsageError, WhitError
from whit.talk import Talk

_ANSWER = 60.0  # seconds that the desk may take to answer
_SEND = 600.0  # and to take a file
_EVERY = 0.5  # seconds between questions


class Sent:
    """A run with its desk. `found` says whether it was there already."""

    def __init__(self, cluster: Cluster, key: str, desk: Any, found: bool) -> None:
        self.cluster, self.key, self.found = cluster, key, found
        self._desk = desk
        self._heard = 0  # the last event that was repeated

    @classmethod
    def open(cls, cluster: Cluster, key: str, *, resume: bool) -> Sent:
        """The run of that key: found, or begun where there is none. Raises `UsageError` for one not asked for."""
        found = cls.find(cluster, key)
        if found is not None:
            if not resume:
                raise UsageError(
                    f"{cluster.address}: run {key} is there already; attach to it with the same command and --resume, "
                    "or end it with --stop"
                )
            return found
        from whit.cluster.desk import Desk

        where = {} if cluster.head is None else {"scheduling_strategy": on_node(cluster.head)}
        made = cluster.ray.remote(Desk).options(
            name=f"whit-{key}", namespace=NAMESPACE, lifetime="detached", num_cpus=0, max_concurrency=64, **where
        )
        return cls(cluster, key, made.remote(), found=False)

    @classmethod
    def find(cls, cluster: Cluster, key: str) -> Sent | None:
        """The run of that key, None where there is none."""
        try:
            return cls(cluster, key, cluster.ray.get_actor(f"whit-{key}", namespace=NAMESPACE), found=True)
        except ValueError:
            return None

    def bring(self, files: Mapping[str, bytes]) -> dict[str, str]:
        """Send those files that the desk has not yet; the digest of each by its name."""
        names = {name: digest_of(content) for name, content in files.items()}
        missing = set(self._ask(self._desk.missing.remote(sorted(set(names.values())))))
        for name, digest in names.items():
            if digest in missing:
                self._ask(self._desk.bring.remote(digest, files[name]), _SEND)
                missing.discard(digest)
        return names

    def submit(self, job: str, about: Mapping[str, Any]) -> str:
        """Begin a job unless it was begun; its state."""
        return str(self._ask(self._desk.submit.remote(job, json.dumps(dict(about)))))

    def follow(self, jobs: Sequence[str], talk: Talk) -> dict[str, dict[str, Any]]:
        """Repeat what the workers say until all these jobs have ended; the answer of each.

        An answer with `error` is one that failed. Raises `Interrupted`: the run goes on.
        """
        return dict(self.each(jobs, talk))

    def each(self, jobs: Sequence[str], talk: Talk) -> Iterator[tuple[str, dict[str, Any]]]:
        """As `follow`; every job with its answer, as they end."""
        since, ended = self._heard, set[str]()
        many = len(jobs) > 1
        try:
            while True:
                found = json.loads(self._ask(self._desk.poll.remote(since)))
                since = self._heard = int(found["n"])
                for event in found["events"]:
                    if event["job"] in jobs:
                        talk.say(f"[{event['job']}] {event['say']}" if many else event["say"])
                for event in found["progress"]:
                    if event["job"] in jobs:
                        what, done, total, seconds, note = event["progress"]
                        talk.progress(f"[{event['job']}] {what}" if many else what, done, total, seconds, note)
                for name in jobs:
                    one = found["jobs"].get(name, {})
                    if one.get("state") in ("done", "failed") and name not in ended:
                        ended.add(name)
                        yield name, one["answer"]
                if len(ended) == len(jobs):
                    return
                time.sleep(_EVERY)
        except KeyboardInterrupt as error:
            raise Interrupted(
                f"run {self.key} goes on at {self.cluster.address}; attach to it with the same command and --resume, "
                "or end it with --stop"
            ) from error

    def files(self, job: str) -> dict[str, bytes]:
        """The files that a job made."""
        return dict(self._ask(self._desk.files.remote(job), _SEND))

    def close(self) -> None:
        """End the run: its workers, its desk and what that keeps."""
        ray = self.cluster.ray
        try:
            ray.get(self._desk.stop.remote(), timeout=_ANSWER)
        finally:
            ray.kill(self._desk)

    def _ask(self, reference: Any, seconds: float = _ANSWER) -> Any:
        try:
            return self.cluster.ray.get(reference, timeout=seconds)
        except KeyboardInterrupt:
            raise
        except Exception as error:  # the desk's own errors, and all of Ray's
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise ClusterError(
                f"{self.cluster.address}: run {self.key} no longer answers ({type(error).__name__}: {first}); if the "
                "cluster is still there, attach with the same command and --resume"
            ) from error


def raise_if_failed(answer: Mapping[str, Any]) -> None:
    """Raise what a job failed with, as the error that it was there."""
    if "error" not in answer:
        return
    kind = getattr(errors, str(answer["error"]), ClusterError)
    known = isinstance(kind, type) and issubclass(kind, WhitError)
    raise (kind if known else ClusterError)(str(answer.get("message", ""))[:2000])
