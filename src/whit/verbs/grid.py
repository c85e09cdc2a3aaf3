"""`grid.toml`: what the variants of a sweep share, and what they vary; checked whole before anything is trained.

    data = "tickets.jsonl"                    # beside this file
    [train]                                   # options of `whit train`, for all
    base = "smollm2"
    [grid]                                    # every combination
    kind = ["tiny", "xs"]
    learning-rate = [0.01, 0.03]
    [[variant]]                               # and these, one by one
    name = "thirteen"
    kind = "tiny"
    numbers = 13

What decides which rows are held out, and how answers are scored, is the same for all: scores must be comparable.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from whit.configuration import checked, nearest
from whit.errors import UsageError
from whit.settings import BY_REWARD, SweepSettings, TrainSettings
from whit.verbs.needs import fitted, require_needs

#: What a variant may vary.
VARIED = (
    "base", "instruction", "kind", "rank", "numbers", "groups", "alpha", "dropout", "targets", "number_type", "epochs",
    "batch", "accumulate", "learning_rate", "warmup", "optimizer", "evaluations", "patience", "seeds", "max_tokens",
    "dtype", "quantize", "checkpointing",
)  # fmt: skip
_SWEEPS_OWN = (
    "out",
    "resume",
    "ray",
    "stop",
    "processes",
    "fsdp",
    "threads",
    "per",
    "learn_basis",
    "answers_only",
    "reward",
)
_TABLES = ("data", "train", "grid", "variant")
MOST = 1000
_LARGEST = 1 << 20


@dataclass(frozen=True)
class Variant:
    """A variant: its name, its settings, and what it varies."""

    name: str
    settings: TrainSettings
    given: Mapping[str, Any]

    @property
    def slug(self) -> str:
        """The name as a folder's."""
        return re.sub(r"[^A-Za-z0-9._=-]+", "_", self.name).strip("._") or "variant"


def read_grid(settings: SweepSettings) -> list[Variant]:
    """The variants, in their order. Raises `UsageError`."""
    path = settings.grid
    document = _read(path)
    for key in document:
        if key not in _TABLES:
            raise UsageError(f"{path}: a grid has no {key!r}{nearest(key, _TABLES)}")
    data = document.get("data")
    if not isinstance(data, str) or not data:
        raise UsageError(f'{path}: say which rows to learn from, above the first table: data = "FILE"')
    shared = _table(document, "train", path)
    for name in shared:
        if name.replace("-", "_") in _SWEEPS_OWN:
            raise UsageError(f"{path}: [train] {name}: not for a sweep; leave it out, or give it on the command line")
    common = checked(shared, TrainSettings, f"{path}: [train]", path.parent)
    combinations = _combinations(_table(document, "grid", path), path)
    listed = document.get("variant", [])
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise UsageError(f"{path}: write each variant as a table of its own: [[variant]]")
    if not combinations and not listed:
        raise UsageError(f"{path}: nothing varies; give [grid] with lists, or [[variant]]")
    if len(combinations) + len(listed) > MOST:
        raise UsageError(f"{path}: {len(combinations) + len(listed):,} variants; at most {MOST:,} are tried")
    start = TrainSettings(data=path.parent / data, out=settings.out or Path(path.stem), threads=settings.threads)
    variants = [_variant(given, None, start, common, path) for given in combinations]
    for given in listed:
        name = given.get("name")
        if name is not None and (not isinstance(name, str) or not name.strip() or not name.isprintable()):
            raise UsageError(f"{path}: [[variant]] name = {name!r}: must be a text")
        rest = {key: value for key, value in given.items() if key != "name"}
        variants.append(_variant(_only_varied(rest, path, "[[variant]]"), name, start, common, path))
    seen: dict[str, Variant] = {}
    for variant in variants:
        same = seen.setdefault(variant.slug, variant)
        if same is not variant:
            raise UsageError(f"{path}: two variants are called {variant.name!r}; give one of them another name")
    return variants


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise UsageError(f"{path}: too large for a grid")
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML ({error})") from error


def _table(document: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise UsageError(f"{path}: [{name}] must be a table")
    return table


def _only_varied(given: Mapping[str, Any], path: Path, where: str) -> dict[str, Any]:
    every = {part.name for part in fields(TrainSettings)}
    for key in given:
        name = key.replace("-", "_")
        if name in every and name not in VARIED:
            raise UsageError(f"{path}: {where} {key}: the same for all variants, so that scores can be compared")
        if name not in every:
            raise UsageError(f"{path}: {where} has no option {key!r}{nearest(name, VARIED).replace('_', '-')}")
    return {key.replace("-", "_"): value for key, value in given.items()}


def _combinations(table: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    """Every combination of the lists."""
    lists = _only_varied(table, path, "[grid]")
    for name, values in lists.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"{path}: [grid] {name.replace('_', '-')}: give a list of what is to be tried")
    if not lists:
        return []
    count = 1
    for values in lists.values():
        count *= len(values)
    if count > MOST:
        raise UsageError(f"{path}: {count:,} combinations; at most {MOST:,} are tried")
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


def _variant(
    given: Mapping[str, Any], name: str | None, start: TrainSettings, common: Mapping[str, Any], path: Path
) -> Variant:
    called = name or ", ".join(f"{key.replace('_', '-')}={_shown(value)}" for key, value in given.items()) or "plain"
    own = checked(given, TrainSettings, f"{path}: {called}:", path.parent)
    settings = replace(start, **{**common, **own})
    if settings.kind == "auto" or settings.optimizer in BY_REWARD:
        raise UsageError(f"{path}: {called}: a sweep trains on answers; kind auto and optimizers by reward do not go")
    if ":" in settings.score:
        raise UsageError(f"{path}: score {settings.score}: a sweep scores by whit's own scorers")
    from whit.evaluation.scoring import require_known

    require_known(settings.score)
    # What all variants share is for those that can use it; what one varies must make it another one.
    settings = replace(fitted(settings), **own)
    try:
        require_needs(settings)
    except UsageError as error:
        raise UsageError(f"{path}: {called}: {error}") from error
    return Variant(called, settings, own)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
