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

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from whit import settings as options
from whit.errors import UsageError
from whit.talk import Talk

if TYPE_CHECKING:
    from whit.verbs.baked import BakeResult
    from whit.verbs.bases import Bases
    from whit.verbs.check import CheckResult
    from whit.verbs.compare import CompareResult
    from whit.verbs.evaluate import EvalResult
    from whit.verbs.export import ExportResult
    from whit.verbs.personal import PersonalResult
    from whit.verbs.pull import Pulled
    from whit.verbs.run import RunResult
    from whit.verbs.show import ShowResult
    from whit.verbs.sweep import SweepResult
    from whit.verbs.train import TrainResult

F = TypeVar("F", bound=Callable[..., Any])
_SILENT = Talk(quiet=True)


def _takes(settings: type) -> Callable[[F], F]:
    """Show the options of `settings` in a function's signature and docstring, in the place of `**more`."""

    def described(function: F) -> F:
        shown = inspect.signature(function)
        own = [part for part in shown.parameters.values() if part.kind is not inspect.Parameter.VAR_KEYWORD]
        rest = [part for part in fields(settings) if part.name not in shown.parameters]
        more = [
            inspect.Parameter(part.name, inspect.Parameter.KEYWORD_ONLY, default=part.default, annotation=part.type)
            for part in rest
        ]
        function.__signature__ = shown.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        listed = [f"        {part.name}: {part.metadata['help']}" for part in rest]
        if listed:
            function.__doc__ = "\n".join([str(function.__doc__).rstrip(), "", "    Options:", *listed])
        return function

    return described


@overload
def train(data: str | Path, *, per: str, talk: Talk = _SILENT, **more: Any) -> PersonalResult: ...
@overload
def train(data: str | Path, *, talk: Talk = _SILENT, **more: Any) -> TrainResult: ...
@_takes(options.TrainSettings)
def train(data: str | Path, *, talk: Talk = _SILENT, **more: Any) -> TrainResult | PersonalResult:
    """Train an adapter and prove what it does. Options as in `whit.settings.TrainSettings`, refused as there.

    With `per` there is one for each user. A run on a cluster is ended by command: `whit train … --ray … --stop`.
    """
    from whit.verbs.personal import command

    made: TrainResult | PersonalResult
    made = _not_stopped(command, _settings(options.TrainSettings, data=Path(data), **more), talk)
    return made


@_takes(options.EvalSettings)
def evaluate(adapter: str | Path, data: str | Path, *, talk: Talk = _SILENT, **more: Any) -> EvalResult:
    """Compare an adapter with its base on new rows. Options as in `whit.settings.EvalSettings`.

    >>> from whit.testing import write_tiny_base, write_rows
    >>> import tempfile, pathlib, whit
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> base, rows = write_tiny_base(folder / "base"), write_rows(folder / "rows.jsonl", 60)
    >>> made = whit.train(rows, base=str(base), out=folder / "out", kind="xs", epochs=1, baselines=False).folder
    >>> found = whit.evaluate(made, write_rows(folder / "later.jsonl", 20, seed=1))
    >>> found.result.rows
    20
    """
    from whit.verbs.evaluate import evaluate as verb

    return verb(_settings(options.EvalSettings, adapter=str(adapter), data=Path(data), **more), talk=talk)


@_takes(options.RunSettings)
def run(adapter: str | Path, prompt: str, *, talk: Talk = _SILENT, **more: Any) -> RunResult:
    """Answer one prompt. Options as in `whit.settings.RunSettings`."""
    from whit.verbs.run import run as verb

    return verb(_settings(options.RunSettings, adapter=str(adapter), prompt=prompt, **more), talk=talk)


@_takes(options.ExportSettings)
def export(adapter: str | Path, out: str | Path, *, talk: Talk = _SILENT, **more: Any) -> ExportResult:
    """Write an adapter in another program's format. Options as in `whit.settings.ExportSettings`."""
    from whit.verbs.export import command as verb

    return verb(_settings(options.ExportSettings, adapter=str(adapter), out=Path(out), **more), talk=talk)


@_takes(options.CheckSettings)
def check(data: str | Path, *, talk: Talk = _SILENT, **more: Any) -> CheckResult:
    """What is wrong with these rows? Options as in `whit.settings.CheckSettings`."""
    from whit.verbs.check import check as verb

    return verb(_settings(options.CheckSettings, data=Path(data), **more), talk=talk)


@_takes(options.BakeSettings)
def bake(guide: str | Path, inputs: str | Path, *, talk: Talk = _SILENT, **more: Any) -> BakeResult:
    """Bake a long standing instruction into an adapter. Options as in `whit.settings.BakeSettings`."""
    from whit.verbs.bake import bake as verb

    return verb(_settings(options.BakeSettings, guide=Path(guide), inputs=Path(inputs), **more), talk=talk)


@_takes(options.SweepSettings)
def sweep(grid: str | Path, *, talk: Talk = _SILENT, **more: Any) -> SweepResult:
    """Try every variant of a grid, and prove the best. Options as in `whit.settings.SweepSettings`.

    A sweep on a cluster is ended by command: `whit sweep … --ray … --stop`.
    """
    from whit.verbs.sweep import sweep as verb

    made: SweepResult = _not_stopped(verb, _settings(options.SweepSettings, grid=Path(grid), **more), talk)
    return made


@_takes(options.CompareSettings)
def compare(adapter: str | Path, *, talk: Talk = _SILENT, **more: Any) -> CompareResult:
    """Base and adapter side by side, on the held-out rows. Options as in `whit.settings.CompareSettings`."""
    from whit.verbs.compare import compare as verb

    return verb(_settings(options.CompareSettings, adapter=str(adapter), **more), talk=talk)


@_takes(options.ShowSettings)
def show(adapter: str | Path, *, talk: Talk = _SILENT, **more: Any) -> ShowResult:
    """What is known of an adapter. Options as in `whit.settings.ShowSettings`."""
    from whit.verbs.show import show as verb

    return verb(_settings(options.ShowSettings, adapter=str(adapter), **more), talk=talk)


def pull(name: str, *, talk: Talk = _SILENT) -> Pulled:
    """Fetch a base once, into the cache folder: a name of `list_bases`, or a hub id."""
    from whit.verbs.pull import command as verb

    return verb(_settings(options.PullSettings, name=name), talk=talk)


def list_bases(*, talk: Talk = _SILENT) -> Bases:
    """The bases that have a name, as `whit bases` lists them (`whit.bases` is where bases are read)."""
    from whit.verbs.bases import command as verb

    return verb(options.BasesSettings(), talk=talk)


def _not_stopped(verb: Callable[..., Any], settings: Any, talk: Talk) -> Any:
    """What a verb made. Raises `UsageError` where it was asked to end a run on a cluster."""
    from whit.verbs.remote import Stopped

    if settings.stop:
        raise UsageError("stop: a run on a cluster is ended by the command, with --ray and --stop")
    result = verb(settings, talk=talk)
    assert not isinstance(result, Stopped)
    return result


def _settings(kind: Any, /, **given: Any) -> Any:
    """Settings from keywords: folders may be texts, several may be lists, and each is held to its limits."""
    from whit.configuration import hold

    return hold(kind, given)
