"""The desk of a run: what is begun anew, what is given up, and what is not taken from a worker that was given up."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed")

from ray import exceptions as lost

from whit.cluster import desk as module
from whit.cluster.desk import Desk, Job
from whit.cluster.parcel import ADAPTER_FILES, unpack
from whit.errors import ClusterError


class Acting(Desk):
    """A desk whose attempts end as it is told."""

    def __init__(self, *outcomes: Any) -> None:
        super().__init__()
        self.outcomes = list(outcomes)

    def _attempt(self, key: str, job: Job) -> tuple[dict[str, Any], dict[str, bytes]]:
        found = self.outcomes.pop(0)
        if callable(found):
            found = found(self, key, job)
        if isinstance(found, Exception):
            raise found
        return found, {"card.json": b"{}"}


def end_of(desk: Acting, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    desk.submit("train", json.dumps({"cpus": 1, "files": {}}))
    until = time.monotonic() + 10
    while time.monotonic() < until:
        job: dict[str, Any] = json.loads(desk.poll(0))["jobs"]["train"]
        if job["state"] in ("done", "failed"):
            return job
        time.sleep(0.01)
    raise AssertionError("no end")


def out_of_memory() -> Exception:
    return lost.OutOfMemoryError("the node was running low on memory")


def gone() -> Exception:
    return lost.WorkerCrashedError()


def test_a_worker_out_of_memory_is_tried_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    found = end_of(Acting(out_of_memory(), {"verdict": "helped"}), monkeypatch)
    assert found["state"] == "done" and found["attempt"] == 2
    found = end_of(Acting(out_of_memory(), out_of_memory()), monkeypatch)
    assert found["state"] == "failed" and found["answer"]["error"] == "ClusterError"
    assert "ran out of memory" in found["answer"]["message"] and "--quantize nf4" in found["answer"]["message"]


def test_a_worker_lost_again_and_again_is_given_up_unless_it_gets_on(monkeypatch: pytest.MonkeyPatch) -> None:
    found = end_of(Acting(gone(), gone(), gone()), monkeypatch)
    assert found["state"] == "failed" and "lost 3 times without getting any further" in found["answer"]["message"]

    def gets_on(desk: Acting, key: str, job: Job) -> Exception:
        desk.keep(key, job.attempt, {"run.safetensors": b"x" * job.attempt})
        return gone()

    desk = Acting(*[gets_on] * 6, {"verdict": "helped"})
    found = end_of(desk, monkeypatch)
    assert found["state"] == "done" and found["attempt"] == 7
    assert desk.files("train") == {"card.json": b"{}"}


def test_a_worker_on_a_dead_node_is_lost_though_nobody_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    desk, job = Desk(), Job({}, attempt=1, state="running", node="gone")
    monkeypatch.setattr(ray, "wait", lambda *given, **more: ([], []))
    monkeypatch.setattr(module, "_alive", lambda: {"head": 1})
    with pytest.raises(module.NodeLost):
        desk._wait("train", job, 1)
    # One that was not begun, and fits nowhere any more, is begun anew with what there is; that is no loss.
    cancelled = []
    monkeypatch.setattr(ray, "cancel", lambda ref, force: cancelled.append(ref))
    waiting = Job({}, attempt=1, ref="ref")
    with pytest.raises(module.NoRoom):
        desk._wait("train", waiting, 2)
    assert cancelled == ["ref"]
    assert desk._after("train", waiting, module.NoRoom()) is None and waiting.lost == 0
    assert desk._after("train", job, module.NodeLost()) is None and job.lost == 1


def test_an_error_of_the_work_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Acting({"error": "DataError", "message": "no rows"})
    found = end_of(desk, monkeypatch)
    assert found["state"] == "failed" and found["attempt"] == 1
    desk.outcomes = [{"verdict": "helped"}]
    # What failed is begun anew when it is submitted again; what is done is not.
    assert end_of(desk, monkeypatch)["state"] == "done"
    assert desk.submit("train", "{}") == "done"
    found = end_of(Acting(RuntimeError("no such module")), monkeypatch)
    assert found["answer"] == {"error": "ClusterError", "message": "its worker failed: no such module"}


def test_a_worker_that_was_given_up_is_not_heard() -> None:
    desk = Desk()
    desk._jobs["train"] = Job({}, attempt=2)
    desk.told("train", 1, json.dumps({"say": "late"}))
    desk.keep("train", 1, {"run.safetensors": b"late"})
    assert json.loads(desk.poll(0))["events"] == [] and desk._jobs["train"].kept == {}
    desk.told("train", 2, json.dumps({"say": "now"}))
    desk.told("train", 2, json.dumps({"progress": ["training", 1, 2, 0.1, ""]}))
    found = json.loads(desk.poll(0))
    assert [event["say"] for event in found["events"]] == ["now"] and len(found["progress"]) == 1
    assert json.loads(desk.poll(found["n"]))["progress"] == []


@pytest.mark.parametrize(
    "name", ["adapter.bin", "../card.json", "/etc/passwd", "a/card.json", "adapter_model.pkl", "card.json\0"]
)
def test_only_an_adapters_files_are_kept(tmp_path: Any, name: str) -> None:
    with pytest.raises(ClusterError, match="none of an adapter's"):
        unpack({"README.md": b"x", name: b"x"}, tmp_path / "out", allowed=ADAPTER_FILES)
    assert not (tmp_path / "out").exists()
