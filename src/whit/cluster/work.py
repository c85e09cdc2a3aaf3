"""What a worker of the cluster does: one job in a folder of its own, its words and checkpoints sent to the desk.

A job names a function of whit, `module:function`, which is called with the settings, a `Talk` and the job's
description in a folder that holds the files which were sent, and which says what folder it made. Errors that whit
explains come back as such. Runs where Ray puts it; nothing here is called on the machine that sent the work.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from whit.cluster.parcel import all_in, digest_of, packed, unpack
from whit.errors import ClusterError, WhitError
from whit.files import is_private
from whit.talk import Talk

VERBS = frozenset({"whit.verbs.remote:train_here", "whit.verbs.trial:trial_here", "whit.verbs.trial:prove_here"})
STATE = "state"  # the folder within the adapter's in which a run keeps its checkpoints
_LOOK = 0.25  # seconds between looks for a new checkpoint


class Reporting(Talk):
    """Talk that is heard where the work was sent from."""

    def __init__(self, desk: Any, key: str, attempt: int) -> None:
        super().__init__()
        self._desk, self._key, self._attempt, self._at = desk, key, attempt, 0.0

    def say(self, text: str, **more: str) -> None:
        """A line of its own; `more` is for the desk alone."""
        self._send({"say": text, **more})

    def progress(self, what: str, done: int, total: int, seconds: float, note: str = "", *, every: float = 5.0) -> None:
        """Where a long piece of work is."""
        now = time.monotonic()
        if done < total and now - self._at < 0.5:
            return
        self._at = now
        self._send({"progress": [what, done, total, seconds, note]})

    def _send(self, event: dict[str, Any]) -> None:
        self._desk.told.remote(self._key, self._attempt, json.dumps(event))


def work(
    desk: Any, key: str, attempt: int, about: str, files: Mapping[str, Any], kept: Mapping[str, bytes]
) -> tuple[str, dict[str, bytes]]:
    """Do a job; its answer as JSON, and the files of the folder it made. `kept` is its last checkpoint."""
    job = json.loads(about)
    talk = Reporting(desk, key, attempt)
    try:
        if job["verb"] not in VERBS:
            raise ClusterError(f"there is no work called {str(job['verb'])[:80]!r}")
        module, _, function = job["verb"].partition(":")
        with tempfile.TemporaryDirectory(prefix="whit-") as place, _inside(Path(place)) as folder:
            _lay_out(folder, files)
            unpack(kept, folder / job["out"] / STATE)
            import ray
            from ray.util import get_node_ip_address

            again = "" if attempt == 1 else f", from {'its last checkpoint' if kept else 'its beginning'}"
            here = f"at work on {get_node_ip_address()} with {job['cpus']} threads{again}"
            talk.say(here, node=ray.get_runtime_context().get_node_id())
            with _mirrored(folder / job["out"] / STATE, desk, key, attempt):
                answer = getattr(importlib.import_module(module), function)(job, talk)
            return json.dumps(answer), packed(folder / job["out"])
    except WhitError as error:
        return json.dumps({"error": type(error).__name__, "message": str(error)}), {}


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[Path]:
    """A worker does one job at a time, and names in settings are relative: its folder is the working folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)


def _lay_out(folder: Path, files: Mapping[str, Any]) -> None:
    """Write what was sent. A base is written once for all jobs of a node, by its content, and linked here."""
    import ray

    for name, ref in files.items():
        content = ray.get(ref)
        if name.startswith("base/"):
            shared = bases_folder()
            if shared is None:
                unpack({name: content}, folder)
                continue
            kept = shared / digest_of(content)
            # Read again, not trusted by its name: an earlier worker may have been killed while it wrote.
            if not kept.is_file() or digest_of(kept.read_bytes()) != kept.name:
                unpack({kept.name: content}, shared)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(kept)
        else:
            unpack({name: content}, folder)


def bases_folder() -> Path | None:
    """Where the bases of a node's jobs lie, or None where that name was taken by others, who could exchange a base."""
    folder = Path(tempfile.gettempdir()) / f"whit-bases-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    return folder if is_private(folder) else None


@contextlib.contextmanager
def _mirrored(state: Path, desk: Any, key: str, attempt: int) -> Iterator[None]:
    """Send each new checkpoint to the desk while the block runs: this node may be gone at any moment."""
    import ray

    ended = threading.Event()

    def look() -> None:
        seen: list[tuple[str, int]] = []
        while not ended.wait(_LOOK):
            now = [(str(each), each.stat().st_mtime_ns) for each in sorted(state.rglob("*")) if each.is_file()]
            now = [each for each in now if not Path(each[0]).name.startswith(".")]
            if now and now != seen:
                with contextlib.suppress(Exception):  # the desk may be gone; then nobody waits for this
                    ray.get(desk.keep.remote(key, attempt, all_in(state)))
                    seen = now

    def look_safely() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError):  # a file went between two looks
                look()

    watcher = threading.Thread(target=look_safely, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join(timeout=30)
