"""reasoning-gym's generators as rows: `gym:chain_sum`, or with options `gym:chain_sum,max_terms=2,max_digits=1`.

A row keeps which entry it is (seed, size and index), so that the generator's own scorer can be asked about an answer
at any time. The package is an optional dependency and is imported when it is needed.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whit.errors import DataError, UsageError
from whit.files import atomic_write

ROWS = 1000


def parse_name(rest: str) -> tuple[str, dict[str, Any]]:
    """The generator's name and its options, from what follows `gym:`. Raises `UsageError` for an unknown one."""
    name, *parts = rest.split(",")
    options: dict[str, Any] = {}
    for part in parts:
        key, equal, value = part.partition("=")
        if not equal or not key.strip():
            raise UsageError(f"--reward gym:{rest}: {part!r} is no option; write gym:{name},key=value")
        try:
            options[key.strip()] = json.loads(value)
        except ValueError:
            options[key.strip()] = value
    every = _generators()
    if name not in every:
        near = difflib.get_close_matches(name, sorted(every), n=5, cutoff=0.5)
        known = f"nearest: {', '.join(near)}" if near else f"there are {len(every)}, {', '.join(sorted(every)[:8])}, …"
        raise UsageError(f"--reward gym:{name}: reasoning-gym has no such generator; {known}")
    return name, options


def dataset(name: str, options: Mapping[str, Any], *, seed: int, size: int) -> Any:
    """The generator's dataset. Raises `UsageError` where it does not take the options."""
    from dataclasses import fields

    import reasoning_gym

    try:
        return reasoning_gym.create_dataset(name, seed=seed, size=size, **options)
    except TypeError as error:
        takes = [part.name for part in fields(_generators()[name][1]) if part.name not in ("seed", "size")]
        raise UsageError(f"--reward gym:{name}: {error}; its options are {', '.join(takes)}") from error
    except (AssertionError, ValueError) as error:
        raise UsageError(f"--reward gym:{name}: it refuses these options ({error})") from error


def write_rows(path: Path, rest: str, *, count: int, seed: int) -> Path:
    """Generate rows as JSON lines; entries with a question that was there already are left out."""
    name, options = parse_name(rest)
    made = dataset(name, options, seed=seed, size=count)
    lines: list[str] = []
    seen: set[str] = set()
    for index in range(count):
        entry = made[index]
        question, answer = str(entry["question"]), entry["answer"]
        if question in seen or answer is None or not str(answer).strip():
            continue
        seen.add(question)
        place = {"seed": seed, "index": index, "size": count}
        row = {"id": f"{name}-{seed}-{index}", "prompt": question, "completion": str(answer), "gym": place}
        lines.append(json.dumps(row, ensure_ascii=False))
    if not lines:
        raise DataError(f"--reward gym:{name}: it generated no row with an answer; choose another generator")
    atomic_write(path, "\n".join(lines) + "\n")
    return path


def _generators() -> Mapping[str, Any]:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise UsageError("--reward gym: needs reasoning-gym: pip install 'whit[reward]'") from error
    found: Mapping[str, Any] = DATASETS
    return found
