"""The child process in which a reward's code runs: `whit.rewards.child` starts it and talks to it.

A message is four bytes of length and that much JSON. The first names the function; each later one is a list of jobs,
and every job is answered as soon as it is done, so that the parent knows which one hangs. What the function prints
goes to stderr. While it runs it may start no process, and an alarm ends this process should the parent be gone. This
guards against accidents, not against malice: the function is the user's own.
"""

from __future__ import annotations

import inspect
import json
import os
import signal
import struct
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

_STARTS = ("os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system", "os.spawn", "subprocess.Popen")
_SPARE = 5.0  # seconds after which this process ends itself where the parent did not
_running = False


def _refuse(event: str, arguments: Any) -> None:
    if _running and event in _STARTS:
        raise PermissionError(f"a reward may start no process ({event})")


def receive(source: BinaryIO) -> Any:
    """The next message; None at the end."""
    size = source.read(4)
    if len(size) < 4:
        return None
    return json.loads(source.read(struct.unpack("<I", size)[0]))


def send(sink: BinaryIO, message: Any) -> None:
    """Send one message."""
    body = json.dumps(message).encode()
    sink.write(struct.pack("<I", len(body)) + body)
    sink.flush()


def with_prompt(function: Callable[..., Any]) -> Callable[[str, str, Mapping[str, Any]], Any]:
    """A function of (answer, row), as `--score` takes them, made one of (prompt, answer, row)."""
    try:
        inspect.signature(function).bind("", "", {})
    except TypeError:
        return lambda prompt, answer, row: function(answer, row)
    except ValueError:  # a builtin that does not say what it takes
        pass
    return function


def judge(function: Callable[[str, str, Mapping[str, Any]], Any], job: Mapping[str, Any]) -> dict[str, Any]:
    """What the function says of one job: `skill` and perhaps `format` and `lenient`, or `error`."""
    try:
        value = function(job["prompt"], job["answer"], job["row"])
    except SystemExit as error:
        return {"error": f"called exit({'' if error.code is None else error.code}){place_of(error)}"}
    except BaseException as error:
        return {"error": f"raised {type(error).__name__}: {str(error)[:500]}{place_of(error)}"}
    try:
        if isinstance(value, Mapping):
            return {str(key): _number(part, f" for {key!r}") for key, part in value.items()}
        return {"skill": _number(value)}
    except ValueError as error:
        return {"error": str(error)}


def place_of(error: BaseException) -> str:
    """Where in the file of the function that was called it came from, as ` (file.py:7)`; "" where that is not known."""
    steps = [step for step in traceback.extract_tb(error.__traceback__) if step.filename != __file__]
    if not steps:
        return ""
    last = next(step for step in reversed(steps) if step.filename == steps[0].filename)
    return f" ({Path(last.filename).name}:{last.lineno})"


def _number(value: Any, what: str = "") -> float:
    try:
        return float(value)
    except Exception:
        said = f"{value!r:.60}" if value is None or isinstance(value, str) else f"a {type(value).__name__}"
        raise ValueError(
            f"answered {said}{what}; a reward is a number from 0 to 1, or a mapping with such a 'skill'"
        ) from None


def main() -> None:
    """Serve until the parent closes the pipe."""
    global _running
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    about = receive(source)
    if about is None:
        return
    try:
        from whit.evaluation.functions import load_function

        function = load_function(about["function"])
        function = function(about["config"]) if about["config"] is not None else with_prompt(function)
        send(sink, {"ready": True})
    except BaseException as error:
        send(sink, {"error": str(error)})
        return
    sys.addaudithook(_refuse)
    own = os.getpid()
    while (jobs := receive(source)) is not None:
        for job in jobs["jobs"]:
            if hasattr(signal, "setitimer"):
                signal.setitimer(signal.ITIMER_REAL, jobs["seconds"] + _SPARE)
            _running = True
            try:
                found = judge(function, job)
            finally:
                _running = False
            if os.getpid() != own:  # a copy that went round the hook has nothing to say
                os._exit(0)
            if hasattr(signal, "setitimer"):
                signal.setitimer(signal.ITIMER_REAL, 0)
            send(sink, found)


if __name__ == "__main__":
    main()
