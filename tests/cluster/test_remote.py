"""`whit train --ray`: the same adapter as here, and what happens when workers, nodes and drivers go."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import whit
from whit.errors import ClusterError, DataError, UsageError
from whit.settings import TrainSettings
from whit.talk import Talk
from whit.verbs.remote import train_remote


class Heard(Talk):
    """Keeps what was said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, what: str, done: int, total: int, seconds: float, note: str = "", *, every: float = 5.0) -> None:
        self.lines.append(f"{what} {done}/{total}")


@pytest.fixture
def longer(little: dict[str, Any]) -> dict[str, Any]:
    """Options with which training takes long enough to be disturbed."""
    return {**little, "epochs": 56.0, "evaluations": 8, "patience": 99, "learning_rate": 0.005, "validation_rows": 4}


@pytest.mark.slow
def test_what_comes_back_is_what_training_here_makes(
    cluster: Any, rows: Path, little: dict[str, Any], tmp_path: Path
) -> None:
    heard = Heard()
    away = train_remote(TrainSettings(data=rows, out=tmp_path / "away", ray=cluster.address, **little), talk=heard)
    here = whit.train(rows, out=tmp_path / "here", threads=1, **little)
    assert np.array_equal(away.adapter.vector, here.adapter.vector)
    assert away.card.base == here.card.base and away.card.result == here.card.result
    assert away.card.command == here.card.command.removesuffix(" --threads 1").replace("--out here", "--out away")
    assert sorted(each.name for each in away.folder.iterdir()) == sorted(each.name for each in here.folder.iterdir())
    assert any(line.startswith("training") for line in heard.lines), heard.lines


class Disturbing(Heard):
    """Does something once, after a few evaluations."""

    def __init__(self, disturb: Callable[[], object], share: float = 0.25) -> None:
        super().__init__()
        self.share = share
        self._disturb: Callable[[], object] | None = disturb

    def progress(self, what: str, done: int, total: int, seconds: float, note: str = "", *, every: float = 5.0) -> None:
        super().progress(what, done, total, seconds, note)
        if self._disturb is not None and done > total * self.share:
            disturb, self._disturb = self._disturb, None
            disturb()


def wait_for_a_checkpoint() -> None:
    """Until the desk of the only run there has one; a node that is lost before has nothing to go on from."""
    import ray
    from ray.util import list_named_actors

    from whit.cluster.connection import NAMESPACE

    (name,) = [each["name"] for each in list_named_actors(all_namespaces=True) if each["name"].startswith("whit-")]
    desk = ray.get_actor(name, namespace=NAMESPACE)
    for _ in range(600):
        job = json.loads(ray.get(desk.poll.remote(0)))["jobs"]["train"]
        assert job["state"] == "running", job
        if job["saves"]:
            return
        time.sleep(0.05)
    raise AssertionError("no checkpoint within half a minute")


@pytest.mark.slow
def test_a_node_lost_in_the_middle_costs_what_was_not_kept_yet(
    cluster: Any,
    second: Callable[..., Any],
    kill: Callable[[Any], None],
    rows: Path,
    longer: dict[str, Any],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    node = second(num_cpus=2)

    def lose() -> None:
        wait_for_a_checkpoint()
        kill(node)

    heard = Disturbing(lose, share=0.05)
    settings = TrainSettings(data=rows, out=tmp_path / "away", ray=cluster.address, threads=2, **longer)
    away = train_remote(settings, talk=heard)
    said = "\n".join(heard.lines)
    assert "it goes on from the last checkpoint" in said
    assert "with 1 threads, from its last checkpoint" in said
    assert capfd.readouterr().out == "", "stdout is for the answer"
    here = whit.train(rows, out=tmp_path / "here", threads=1, **longer)
    assert np.allclose(away.adapter.vector, here.adapter.vector, atol=1e-3)
    assert away.card.cost is not None and here.card.cost is not None and away.card.cost.steps == here.card.cost.steps


@pytest.mark.slow
def test_a_driver_that_was_killed_finds_its_run_again(
    cluster: Any, rows: Path, longer: dict[str, Any], tmp_path: Path
) -> None:
    settings = TrainSettings(data=rows, out=tmp_path / "away", ray=cluster.address, **longer)
    driver = (
        "import sys, json; from whit.verbs.remote import train_remote; from whit.verbs.worker import settings_from; "
        "from whit.talk import Talk; train_remote(settings_from(sys.argv[1]), talk=Talk())"
    )
    from whit.settings import as_plain

    with subprocess.Popen(
        [sys.executable, "-c", driver, json.dumps({**as_plain(settings), "ray": cluster.client})],
        stderr=subprocess.PIPE,
        text=True,
    ) as started:
        assert started.stderr is not None
        said = next(line for line in started.stderr if line.startswith("run "))
        next(line for line in started.stderr if line.startswith("training "))
        started.send_signal(signal.SIGKILL)
    assert not (tmp_path / "away" / "card.json").exists()
    with pytest.raises(UsageError, match=r"run \w{12} is there already; attach to it .* --resume"):
        train_remote(settings)
    from dataclasses import replace

    heard = Heard()
    result = train_remote(replace(settings, resume=True), talk=heard)
    assert said.split()[1].rstrip(";") in "\n".join(heard.lines) and not any("sending" in line for line in heard.lines)
    assert any("at work on" in line for line in heard.lines) and not any("from its" in line for line in heard.lines)
    assert result.card.verdict and (tmp_path / "away" / "card.json").exists()
    # What was fetched is kept there no longer, and another run of the same command is a new one.
    found = train_remote(replace(settings, stop=True))
    assert found.to_json()["stopped"] is False


@pytest.mark.slow
def test_a_run_can_be_ended(cluster: Any, rows: Path, longer: dict[str, Any], tmp_path: Path) -> None:
    from dataclasses import replace

    from whit.errors import Interrupted

    settings = TrainSettings(data=rows, out=tmp_path / "away", ray=cluster.address, **{**longer, "epochs": 600.0})

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=r"run \w{12} goes on at .* --resume, or end it with --stop"):
        train_remote(settings, talk=Disturbing(interrupt, share=0.002))
    found = train_remote(replace(settings, stop=True))
    assert found.to_json()["stopped"] is True
    assert train_remote(replace(settings, stop=True)).to_json()["stopped"] is False


@pytest.mark.slow
def test_another_whit_there_is_refused(
    cluster: Any, second: Callable[..., Any], rows: Path, little: dict[str, Any], tmp_path: Path
) -> None:
    other = tmp_path / "other" / "whit-9.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: whit\nVersion: 9.9\n")
    second(env_vars={"PYTHONPATH": str(other.parent)})
    with pytest.raises(ClusterError, match=r"there is whit 9\.9 on 1 of 2 nodes, and whit 0\.1\.0 here"):
        train_remote(TrainSettings(data=rows, out=tmp_path / "away", ray=cluster.address, **little))


@pytest.mark.slow
def test_errors_of_the_work_come_back_as_what_they_are(
    cluster: Any, rows: Path, little: dict[str, Any], tmp_path: Path
) -> None:
    given = {**little, "instruction": "so long " * 400}
    with pytest.raises(DataError, match="context"):
        train_remote(TrainSettings(data=rows, out=tmp_path / "away", ray=cluster.address, **given))
    assert not (tmp_path / "away").exists()


# -- without a cluster


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(4)
        yield server.getsockname()[1]


@pytest.mark.parametrize("way", ["", "ray://"])
def test_an_address_that_does_not_answer_is_told_soon(
    rows: Path, little: dict[str, Any], tmp_path: Path, silent: int, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setattr("whit.cluster.connection._PATIENCE", 1.0)
    began = time.monotonic()
    with pytest.raises(ClusterError, match="does not answer as Ray does"):
        train_remote(TrainSettings(data=rows, out=tmp_path / "away", ray=f"{way}127.0.0.1:{silent}", **little))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ClusterError, match=r"no cluster there \(Connection refused\); is it up"):
        train_remote(TrainSettings(data=rows, out=tmp_path / "away", ray=f"{way}127.0.0.1:{port}", **little))
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"ray": "nowhere"}, "give HOST:PORT"),
        ({"ray": "h:99999999"}, "give HOST:PORT"),
        ({"reward": ("exact",)}, "--ray trains on answers"),
        ({"kind": "auto"}, "--ray trains on answers"),
        ({"processes": 2}, "--processes is for this machine"),
        ({"score": "mine:score"}, "no code is sent to a cluster"),
    ],
)
def test_what_cannot_be_sent_is_refused(
    rows: Path, little: dict[str, Any], tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    given = {**little, "data": rows, "out": tmp_path / "away", "ray": "127.0.0.1:1", **more}
    with pytest.raises(UsageError, match=said):
        train_remote(TrainSettings(**given))


def test_nothing_of_ray_is_imported_unless_asked_for() -> None:
    code = "import sys, whit.cli, whit.cluster, whit.verbs.remote, whit.verbs.train, whit.verbs.serve; "
    done = subprocess.run(
        [sys.executable, "-c", code + "print([n for n in sys.modules if n.partition('.')[0] in ('ray', 'grpc')])"],
        capture_output=True, text=True, check=True, env={**os.environ},
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
