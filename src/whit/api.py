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

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit import settings as options
from whit.talk import Talk

if TYPE_CHECKING:
    from whit.verbs.check import CheckResult
    from whit.verbs.evaluate import EvalResult
    from whit.verbs.export import ExportResult
    from whit.verbs.run import RunResult
    from whit.verbs.train import TrainResult

_SILENT = Talk(quiet=True)


def train(data: str | Path, *, talk: Talk = _SILENT, **more: Any) -> TrainResult:
    """Train an adapter and prove what it does. Options as in `whit.settings.TrainSettings`."""
    from whit.verbs.train import train as plain

    settings = _settings(options.TrainSettings, data=Path(data), **more)
    if settings.ray:
        from whit.verbs.remote import train_remote

        return train_remote(replace(settings, stop=False), talk=talk)  # type: ignore[return-value]  # not `Stopped`
    if settings.kind == "auto":
        from whit.verbs.ladder import train_auto

        return train_auto(settings, talk=talk)
    if settings.reward:
        from whit.verbs.reward import train_reward

        return train_reward(settings, talk=talk)
    return plain(settings, talk=talk)


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
