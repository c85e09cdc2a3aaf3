"""Commands of `whit` in processes of their own, without paying for their imports every time.

One process imports everything once and then forks for each command; the fork runs `whit.cli.main` with the
arguments, its output goes to files, and it can be signalled like any command. Run as a script it is that process:
it reads a JSON request a line, and answers with a JSON line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Finished:
    """How a command ended; `code` is negative where a signal ended it."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one error that was told. Fails where there is a traceback, or not exactly one error."""
        lines = self.stderr.splitlines()
        told = [line for line in lines if line.startswith(("whit: ", "Error: "))]
        assert "Traceback" not in self.stderr, self.stderr
        assert len(told) == 1 and told[0] == lines[-1], self.stderr
        return told[0]


class Running:
    """A command that was started."""

    def __init__(self, commands: Commands, pid: int, stem: Path) -> None:
        self._commands, self.pid, self._stem = commands, pid, stem
        self.began = time.monotonic()

    def send(self, what: int) -> None:
        """Send a signal to it and to what it started, as a terminal does."""
        os.killpg(self.pid, what)

    @property
    def said(self) -> str:
        """What it has said so far on stderr."""
        return self._stem.with_suffix(".err").read_text("utf-8", errors="replace")

    def wait(self) -> Finished:
        """Wait for its end."""
        code = self._commands.ask({"wait": self.pid})["code"]
        return Finished(code, self._stem.with_suffix(".out").read_text("utf-8", errors="replace"), self.said)


class Commands:
    """Starts commands; `folder` takes their output."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "COLUMNS": "100"},
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request; its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def start(self, *argv: object, cwd: Path | None = None, stdin: str = "", fault: str = "") -> Running:
        """Start `whit ARGV…`; `fault` names a function of this file that breaks something first."""
        self._count += 1
        stem = self._folder / f"{self._count}"
        stem.with_suffix(".in").write_text(stdin, "utf-8")
        arguments = [str(item) for item in argv]
        request = {"argv": arguments, "cwd": str(cwd or self._folder), "stem": str(stem), "fault": fault}
        return Running(self, self.ask(request)["pid"], stem)

    def __call__(self, *argv: object, cwd: Path | None = None, stdin: str = "", fault: str = "") -> Finished:
        """Run `whit ARGV…` to its end."""
        return self.start(*argv, cwd=cwd, stdin=stdin, fault=fault).wait()

    def close(self) -> None:
        """End the process that forks."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


def flags(options: dict[str, Any]) -> list[str]:
    """Options as the command line has them."""
    found: list[str] = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        found += [flag] if value is True else [f"--no-{flag[2:]}"] if value is False else [flag, str(value)]
    return found


def full_disk_at_second_checkpoint() -> None:
    """From the second checkpoint on, the disk is full."""
    import errno

    from whit.training import loop

    real, calls = loop.save_checkpoint, []

    def save(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) > 1:

            def full(descriptor: int) -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            os.fsync = full
        real(*args, **kwargs)

    loop.save_checkpoint = save  # type: ignore[assignment]


def killed_while_writing_second_checkpoint() -> None:
    """The process is killed after the second checkpoint was written aside, before it is renamed."""
    from whit.training import loop

    real, calls = loop.save_checkpoint, []

    def save(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) > 1:
            os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        real(*args, **kwargs)

    loop.save_checkpoint = save  # type: ignore[assignment]


def nan_in_row_13() -> None:
    """The loss of the row with the id `row-13` is NaN."""
    from whit.training import sft

    real = sft.loss_of

    def poisoned(base: Any, batch: Any) -> Any:
        import torch

        where = torch.tensor([place for place, name in enumerate(batch.rows) if name == "row-13"], dtype=torch.long)
        losses = real(base, batch)
        return losses + torch.where(torch.isin(batch.at[:, 0], where), float("nan"), 0.0)

    sft.loss_of = poisoned


FAULTS = {
    item.__name__: item
    for item in (full_disk_at_second_checkpoint, killed_while_writing_second_checkpoint, nan_in_row_13)
}


def _child(request: dict[str, Any]) -> None:
    os.setsid()
    stem = request["stem"]
    source = os.open(f"{stem}.in", os.O_RDONLY)
    out, err = (os.open(f"{stem}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644) for name in ("out", "err"))
    for descriptor, number in ((source, 0), (out, 1), (err, 2)):
        os.dup2(descriptor, number)
    # Python's own objects over them: the parent's have read ahead from its pipe.
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
        for number, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    os.chdir(request["cwd"])
    code = 1
    try:
        if request["fault"]:
            FAULTS[request["fault"]]()
        from whit.cli import main

        sys.argv = ["whit", *request["argv"]]
        main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    import peft
    import scipy.stats
    import sklearn.feature_extraction.text
    import sklearn.linear_model
    import torch

    torch.set_num_threads(1)
    import whit.evaluation.report
    import whit.verbs.evaluate
    import whit.verbs.prove
    import whit.verbs.run
    import whit.verbs.train
    from whit.testing import tiny_base

    tiny_base()  # transformers imports a model's code when the first one is made
    _ = peft, scipy.stats, sklearn, whit
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = {"code": os.waitstatus_to_exitcode(status)}
        else:
            pid = os.fork()
            if pid == 0:
                _child(request)
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
