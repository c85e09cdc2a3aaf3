"""Runs chat templates in a child process, so that a hostile one can cost no more than its limits.

Promises that a request, one rendering or some hundred, ends within `SECONDS` of processor time and
`WALL_SECONDS` of the clock, that its text is bounded, and that what goes wrong is one `TemplateError`. One
child serves the whole process, is started by the first rendering (0.1 s) and answers one in about 0.3 ms, or
0.05 ms each in a batch. Knows nothing of rows, and nothing of what a template means.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from whit.errors import DataError

MAX_SOURCE = 100_000  # characters; the longest that real models bring are about 20,000
MAX_OUTPUT = 8_000_000  # characters of one request
SECONDS = 2.0
WALL_SECONDS = 30.0
_BATCH_CHARACTERS = 2_000_000


class TemplateError(DataError):
    """A chat template that cannot be rendered; `kind` is raised, failed, size, memory or time."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class _Child:
    """One renderer process and the templates that it knows."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.known: set[str] = set()
        # No secret of the parent's environment, and no module that lies beside the script, may be found.
        kept = ("PATH", "PYTHONPATH", "PYTHONHOME", "SYSTEMROOT", "LD_LIBRARY_PATH", "TZ", "LANG")
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("_renderer.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )

    def ask(self, request: dict[str, Any], seconds: float) -> list[dict[str, str]]:
        """Send a request and wait for its answer; raises `EOFError` where the child died."""
        body = json.dumps(request).encode()
        assert self.process.stdin is not None and self.process.stdout is not None
        watchdog = threading.Timer(seconds, self.process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            self.process.stdin.write(struct.pack("<I", len(body)) + body)
            self.process.stdin.flush()
            size = self.process.stdout.read(4)
            length = struct.unpack("<I", size)[0] if len(size) == 4 else 0
            answer = self.process.stdout.read(length)
            if len(size) < 4 or len(answer) < length:
                raise EOFError
        except OSError as error:
            raise EOFError from error
        finally:
            watchdog.cancel()
        result: list[dict[str, str]] = json.loads(answer)
        return result

    def end(self) -> None:
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self.process.wait()


_lock = threading.Lock()
_child: _Child | None = None


def _running() -> _Child:
    global _child
    # After a fork the pipe belongs to the parent; a child process of ours starts its own.
    if _child is None or _child.pid != os.getpid():
        _child = _Child()
    elif _child.process.poll() is not None:  # killed from outside
        _stop()
        _child = _Child()
    return _child


def _stop() -> None:
    global _child
    if _child is not None and _child.pid == os.getpid():
        _child.end()
    _child = None


atexit.register(_stop)


def render(source: str, jobs: Sequence[dict[str, Any]], *, seconds: float = SECONDS) -> list[str | TemplateError]:
    """Render `source` once for each job's variables; a job that fails has its failure in its place.

    Raises `TemplateError` where the source is too long. The variables must be plain JSON values.
    """
    if len(source) > MAX_SOURCE:
        raise TemplateError(
            f"the chat template has {len(source):,} characters, more than the {MAX_SOURCE:,} allowed", "size"
        )
    key = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
    results: list[str | TemplateError] = []
    with _lock:
        for batch in _batches(jobs):
            results.extend(_ask(key, source, batch, seconds))
    return results


def _batches(jobs: Sequence[dict[str, Any]]) -> list[Sequence[dict[str, Any]]]:
    batches: list[Sequence[dict[str, Any]]] = []
    start = size = 0
    for end, job in enumerate(jobs):
        size += sum(len(turn["content"]) for turn in job["messages"])
        if end > start and (size > _BATCH_CHARACTERS or end - start >= 256):
            batches.append(jobs[start:end])
            start, size = end, 0
    if start < len(jobs):
        batches.append(jobs[start:])
    return batches


def _ask(key: str, source: str, jobs: Sequence[dict[str, Any]], seconds: float) -> list[str | TemplateError]:
    try:
        child = _running()
    except (OSError, ValueError) as error:
        raise TemplateError(f"no process for chat templates can be started: {error}", "failed") from error
    request = {
        "key": key,
        "source": None if key in child.known else source,
        "jobs": list(jobs),
        "most": MAX_OUTPUT,
        "seconds": seconds,
    }
    try:
        answers = child.ask(request, WALL_SECONDS)
    except (EOFError, ValueError):
        _stop()
        what = f"the chat template takes more than {seconds:g} s, or crashes its process; it is refused"
        return [TemplateError(what, "time")] * len(jobs)
    except BaseException:
        _stop()  # interrupted between question and answer: the pipe is out of step
        raise
    child.known.add(key)
    return [
        answer["text"]
        if "text" in answer
        else TemplateError(f"the chat template cannot be rendered: {answer['error']}", answer["kind"])
        for answer in answers
    ]
