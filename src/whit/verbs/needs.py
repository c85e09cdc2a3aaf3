"""What an option needs so that it does anything: one table, and one error for an option that would be ignored.

Only options that differ from their default are refused, wherever they came from: the command line, `whit.toml`, a
grid or Python. What a kind of adapter has is known for certain where the kind is: a base may choose it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from whit.errors import UsageError
from whit.settings import BakeSettings, CheckSettings, TrainSettings

S = TypeVar("S", bound=Any)


@dataclass(frozen=True)
class Need:
    """These options do nothing unless `met`; `what` is to be added so that they do."""

    options: tuple[str, ...]
    what: str
    met: Callable[[Any], bool]


def _kind(*kinds: str) -> Callable[[Any], bool]:
    # A kind that is not known yet may be one of these, and `auto` says itself what it chooses.
    return lambda settings: kind_of(settings) in (None, "auto", *kinds)


_SHAPE = (
    Need(("groups",), "--kind tiny", _kind("tiny")),
    Need(("alpha", "dropout"), "--kind lora", _kind("lora")),
)
NEEDS: dict[type, tuple[Need, ...]] = {
    TrainSettings: (
        Need(("unlabelled",), "--teacher", lambda settings: bool(settings.teacher)),
        Need(("learn_basis",), "--per", lambda settings: bool(settings.per)),
        Need(("answers_only",), "--learn-basis", lambda settings: bool(settings.learn_basis)),
        Need(
            ("format_weight", "reward_seconds", "samples", "updates", "kl", "population", "sigma", "warm_start"),
            "--reward",
            lambda settings: bool(settings.reward),
        ),
        *_SHAPE,
    ),
    BakeSettings: (
        Need(
            ("teacher_model", "teacher_key", "teacher_timeout"), "--teacher-url",
            lambda settings: bool(settings.teacher_url),
        ),
        *_SHAPE,
    ),
    CheckSettings: (
        Need(
            ("adapter", "held_out", "score", "share", "retrain"), "--influence",
            lambda settings: bool(settings.influence),
        ),
    ),
}  # fmt: skip


def require_needs(settings: Any) -> None:
    """Raise `UsageError` for an option that differs from its default and would do nothing."""
    for name, need in _idle(settings):
        value = getattr(settings, name)
        flag = f"--{'no-' if value is False else ''}{name.replace('_', '-')}"
        kind = kind_of(settings) if need in _SHAPE else None
        where = f"with --kind {kind}" if kind else f"without {need.what}"
        add = f"choose {need.what}" if kind else "add that"
        raise UsageError(f"{flag} does nothing {where}: leave it out, or {add}")


def fitted(settings: S) -> S:
    """The settings with options that only other kinds of adapter have at their defaults."""
    defaults = {part.name: part.default for part in fields(settings)}
    return replace(settings, **{name: defaults[name] for name, need in _idle(settings) if need in _SHAPE})


def kind_of(settings: Any) -> str | None:
    """The kind of adapter that these settings make; None where it is left to the base."""
    if settings.kind:
        return str(settings.kind)
    return "tiny" if settings.numbers or settings.groups or getattr(settings, "per", None) else None


def _idle(settings: Any) -> list[tuple[str, Need]]:
    defaults = {part.name: part.default for part in fields(settings)}
    return [
        (name, need)
        for need in NEEDS.get(type(settings), ())
        if not need.met(settings)
        for name in need.options
        if getattr(settings, name) != defaults[name]
    ]
