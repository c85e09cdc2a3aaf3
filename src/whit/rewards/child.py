"""Runs a reward's function in a process of its own, with a time limit for each answer.

Whatever the function does (hang, start processes, exit, raise, answer with NaN), `Child.ask` gives either a result for
each job or one `ScoreError` that names the row and what happened. The process is started by the first question and
ended with everything it started. Knows nothing of what is scored.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import signal
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from whit.errors import ScoreError, UsageError

SECONDS = 5.0  # for one answer
START_SECONDS = 300.0  # importing a user's module may import anything
_LARGEST = 1 << 20  # bytes of one result


@dataclass(frozen=True)
class Job:
    """One answer to be judged; `row` is JSON-ready, `id` names it in errors."""

    id: str
    prompt: str
    answer: str
    row: dict[str, Any]


@dataclass(frozen=True)
class Found:
    """What a function said: `skill` in [0, 1]; whether the format was kept; the skill with format looked through."""

    skill: float
    format: bool
    lenient: float


class Child:
    """A process that knows one function; `config` makes `function` a factory that is called with it first."""

    def __init__(self, function: str, *, name: str, seconds: float = SECONDS, config: Any = None) -> None:
        self.function, self.name, self.seconds, self.config = function, name, seconds, config
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        _open.add(self)

    def ask(self, jobs: Sequence[Job]) -> list[Found]:
        """A result for each job, in order. Raises `ScoreError`, or `UsageError` where there is no such function."""
        if not jobs:
            return []
        try:
            process = self._started()
            self._send(
                process,
                {
                    "seconds": self.seconds,
                    "jobs": [{"prompt": job.prompt, "answer": job.answer, "row": job.row} for job in jobs],
                },
            )
            return [self._found(job, self._receive(process, self.seconds, f"row {job.id}: ")) for job in jobs]
        except BaseException:
            self.close()  # between question and answer the pipe is out of step
            raise

    def start(self) -> None:
        """Import the function now, so that a wrong name is told before anything long is begun."""
        try:
            self._started()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the process and what it started."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        _kill(process)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        process.wait()

    def _started(self) -> subprocess.Popen[bytes]:
        # After a fork the pipe belongs to the parent; a child process of ours starts its own.
        if self._process is not None and self._owner == os.getpid():
            return self._process
        process = subprocess.Popen(
            [sys.executable, "-m", "whit.rewards.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)},
        )
        self._process, self._owner = process, os.getpid()
        self._send(process, {"function": self.function, "config": self.config})
        answer = self._receive(process, START_SECONDS, "importing it: ")
        if "error" in answer:
            raise UsageError(f"--reward {self.name}: {answer['error']}")
        return process

    def _send(self, process: subprocess.Popen[bytes], message: Any) -> None:
        body = json.dumps(message, default=str).encode()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # told by the answer that does not come
            process.stdin.write(struct.pack("<I", len(body)) + body)
            process.stdin.flush()

    def _receive(self, process: subprocess.Popen[bytes], seconds: float, where: str) -> dict[str, Any]:
        late = threading.Event()

        def end() -> None:
            late.set()
            _kill(process)

        watchdog = threading.Timer(seconds, end)
        watchdog.daemon = True
        watchdog.start()
        try:
            assert process.stdout is not None
            size = process.stdout.read(4)
            length = struct.unpack("<I", size)[0] if len(size) == 4 else 0
            body = process.stdout.read(length) if length <= _LARGEST else b""
        finally:
            watchdog.cancel()
        if len(size) < 4 or len(body) < length:
            if late.is_set():
                raise ScoreError(
                    f"--reward {self.name}: {where}no answer within {seconds:g} s, so it was ended; make it faster, "
                    "or give it longer with --reward-seconds"
                )
            _kill(process)
            raise ScoreError(f"--reward {self.name}: {where}its process ended ({_ending(process.wait())})")
        answer: dict[str, Any] = json.loads(body)
        return answer

    def _found(self, job: Job, answer: dict[str, Any]) -> Found:
        where = f"--reward {self.name}: row {job.id}: "
        if "error" in answer:
            raise ScoreError(f"{where}it {answer['error']}")
        if "skill" not in answer:
            raise ScoreError(f"{where}it answered without 'skill' (with {', '.join(answer) or 'nothing'})")
        numbers = {key: answer.get(key, other) for key, other in (("skill", 0.0), ("format", 1.0), ("lenient", 0.0))}
        for key, number in numbers.items():
            if not math.isfinite(number) or not 0.0 <= number <= 1.0:
                said = f"{number}" if key == "skill" else f"{key} {number}"
                raise ScoreError(f"{where}it answered {said}; a reward is a number from 0 to 1")
        skill = float(numbers["skill"])
        return Found(skill, numbers["format"] >= 0.5, max(skill, float(numbers["lenient"])))


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and its group."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)  # it leads a session, so the group has its number
    with contextlib.suppress(OSError):
        process.kill()


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


_open: weakref.WeakSet[Child] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for child in list(_open):
        child.close()
