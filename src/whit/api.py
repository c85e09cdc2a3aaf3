"""The commands as functions: the same options by keyword, the same results, nothing printed.

>>> from whit.testing import write_tiny_base, write_rows
>>> import tempfile, pathlib, whit
>>> folder = pathlib.Path(tempfile.mkdtemp())
>>> base = write_tiny_base(folder / "base")
>>> rows = write_rows(folder / "rows.jsonl", 60)
>>> result = whit.train(rows, base=str(base), out=folder / "out", kind="xs", epochs=1, shots=())
>>> result.card.kind, result.adapter.numbers
('xs', 56)
>>> whit.run(str(folder / "out"), "how do I pay?", max_tokens=4).prompts
('how do I pay?',)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from whit import settings as options
from whit.errors import UsageError
from whit.talk import Talk

if TYPE_CHECKING:
    from whit.verbs.check import CheckResult
    from whit.verbs.evaluate import EvalResult
    from whit.verbs.export import ExportResult
    from whit.verbs.personal import PersonalResult
    from whit.verbs.run import RunResult
    from whit.verbs.train import TrainResult

_SILENT = Talk(quiet=True)


@overload
def train(data: str | Path, *, per: str, talk: Talk = _SILENT, **more: Any) -> PersonalResult: ...
@overload
def train(data: str | Path, *, talk: Talk = _SILENT, **more: Any) -> TrainResult: ...
def train(data: str | Path, *, talk: Talk = _SILENT, **more: Any) -> TrainResult | PersonalResult:
    """Train an adapter and prove what it does. Options as in `whit.settings.TrainSettings`, refused as there.

    With `per` there is one for each user. A run on a cluster is ended by command: `whit train … --ray … --stop`.
    """
    from whit.verbs.personal import command
    from whit.verbs.remote import Stopped

    settings = _settings(options.TrainSettings, data=Path(data), **more)
    if settings.stop:
        raise UsageError("stop: a run on a cluster is ended by the command, with --ray and --stop")
    result = command(settings, talk=talk)
    assert not isinstance(result, Stopped)
    return result


def evaluate(adapter: str | Path, data: str | Path, *, talk: Talk = _SILENT, **more: Any) -> EvalResult:
    """Compare an adapter with its base on new rows. Options as in `whit.settings.EvalSettings`."""
    from whit.verbs.evaluate import evaluate as verb

    return verb(_settings(options.EvalSettings, adapter=str(adapter), data=Path(data), **more), talk=talk)


def run(adapter: str | Path, prompt: str, *, talk: Talk = _SILENT, **more: Any) -> RunResult:
    """Answer one prompt. Options as in `whit.settings.RunSettings`."""
    from whit.verbs.run import run as verb

    return verb(_settings(options.RunSettings, adapter=str(adapter), prompt=prompt, **more), talk=talk)


def export(adapter: str | Path, out: str | Path, *, talk: Talk = _SILENT, **more: Any) -> ExportResult:
    """Write an adapter in another program's format. Options as in `whit.settings.ExportSettings`."""
    from whit.verbs.export import command as verb

    return verb(_settings(options.ExportSettings, adapter=str(adapter), out=Path(out), **more), talk=talk)


def check(data: str | Path, *, talk: Talk = _SILENT, **more: Any) -> CheckResult:
    """What is wrong with these rows? Options as in `whit.settings.CheckSettings`."""
    from whit.verbs.check import check as verb

    return verb(_settings(options.CheckSettings, data=Path(data), **more), talk=talk)


def _settings(kind: Any, /, **given: Any) -> Any:
    """Settings from keywords: folders may be texts, several may be lists, and each is held to its limits."""
    from whit.configuration import hold

    return hold(kind, given)
