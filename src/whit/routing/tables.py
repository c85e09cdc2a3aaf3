"""TOML that knows its lines: tables whose every value is asked for by name and kind, and every mistake has a line.

Promises that a key nobody asked for is an error that names the nearest one. Knows nothing of tiers.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from whit.routing.errors import ConfigError

LARGEST = 1 << 20
_HEAD = re.compile(r"^\s*(\[\[?)\s*([A-Za-z0-9_.\"' -]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""^\s*([A-Za-z0-9_-]+|"[^"]+"|'[^']+')\s*=""")
_KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", list: "a list of texts"}

T = TypeVar("T", str, int, float, bool)


class Table:
    """A table of the document; `where` is its path, for messages."""

    def __init__(self, file: str, where: tuple[str | int, ...], values: dict[str, Any], lines: dict[Any, int]) -> None:
        self.file, self.where, self._values, self._lines = file, where, values, lines
        self._asked: list[str] = []

    @property
    def title(self) -> str:
        """How the file names it: `[policy.default]`, `[[tier]] 2`."""
        names = [part for part in self.where if isinstance(part, str)]
        number = next((part for part in self.where if isinstance(part, int)), None)
        if not names:
            return "the top"
        return f"[[{'.'.join(names)}]] {number + 1}" if number is not None else f"[{'.'.join(names)}]"

    def line(self, key: str | None = None) -> int:
        """The line of a key, or of the table's head."""
        head = self._lines.get(self.where, 0)
        return self._lines.get((*self.where, key), head) if key else head

    def error(self, key: str | None, message: str) -> ConfigError:
        """An error about a key of this table."""
        return ConfigError(self.file, self.line(key), f"{self.title} {key + ' ' if key else ''}{message}")

    def get(self, key: str, kind: type[T], default: T | None = None, *, least: float | None = None,
            most: float | None = None, choices: Iterable[str] = ()) -> T | None:  # fmt: skip
        """A value of one kind within limits, or the default."""
        self._asked.append(key)
        if key not in self._values:
            return default
        value = self._values[key]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise self.error(key, f"must be {_KINDS[kind]}")
        if isinstance(value, float) and not math.isfinite(value):
            raise self.error(key, "must be finite")
        if isinstance(value, int | float) and not isinstance(value, bool):
            if least is not None and value < least:
                raise self.error(key, f"is {value}: must be at least {least:g}")
            if most is not None and value > most:
                raise self.error(key, f"is {value}: must be at most {most:g}")
        listed = list(choices)
        if listed and value not in listed:
            raise self.error(key, f"is {value!r}: must be one of {', '.join(listed)}")
        found: T = value
        return found

    def need(self, key: str, kind: type[T], **limits: Any) -> T:
        """A value that must be there."""
        value: T | None = self.get(key, kind, None, **limits)
        if value is None or value == "":
            raise self.error(key, "is missing")
        return value

    def texts(self, key: str, known: Iterable[str] | None = None, default: Iterable[str] = ()) -> tuple[str, ...]:
        """A list of texts, each of `known` where that is given."""
        self._asked.append(key)
        value = self._values.get(key, list(default))
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.error(key, "must be a list of texts")
        if known is not None:
            names = list(known)
            for each in value:
                if each not in names:
                    raise self.error(key, f"names {each!r}, which is none of {', '.join(names)}{near(each, names)}")
        if len(set(value)) != len(value):
            raise self.error(key, "names one twice")
        return tuple(value)

    def tables(self, key: str) -> list[Table]:
        """The tables of `[[key]]`."""
        self._asked.append(key)
        value = self._values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise self.error(key, f"must be written as [[{key}]]")
        return [Table(self.file, (*self.where, key, at), each, self._lines) for at, each in enumerate(value)]

    def named(self, key: str) -> dict[str, Table]:
        """The tables of `[key.NAME]`."""
        self._asked.append(key)
        value = self._values.get(key, {})
        if not isinstance(value, dict) or not all(isinstance(each, dict) for each in value.values()):
            raise self.error(key, f"must be written as [{key}.NAME]")
        return {name: Table(self.file, (*self.where, key, name), each, self._lines) for name, each in value.items()}

    def table(self, key: str) -> Table:
        """The table `[key]`; an empty one where there is none."""
        self._asked.append(key)
        value = self._values.get(key, {})
        if not isinstance(value, dict):
            raise self.error(key, f"must be written as [{key}]")
        return Table(self.file, (*self.where, key), value, self._lines)

    def done(self) -> None:
        """Raise for a key that nobody asked for."""
        for key in self._values:
            if key not in self._asked:
                raise ConfigError(self.file, self.line(key), f"{self.title} has no key {key!r}{near(key, self._asked)}")


def read_toml(path: Path) -> Table:
    """The document's top table. Raises `ConfigError`."""
    try:
        if path.stat().st_size > LARGEST:
            raise ConfigError(path, 0, "too large for a file of tiers")
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, 0, f"cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})") from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line (\d+)", str(error))
        raise ConfigError(path, int(found[1]) if found else len(text.splitlines()), f"not TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(path, 0, "nested too deeply") from error
    return Table(str(path), (), document, _lines(text))


def near(name: str, known: Iterable[str]) -> str:
    """`; did you mean …?`, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def _lines(text: str) -> dict[Any, int]:
    """Where heads and keys stand. Only messages depend on it, so it reads lines and no more."""
    found: dict[Any, int] = {}
    counts: dict[tuple[str, ...], int] = {}
    where: tuple[str | int, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if head := _HEAD.match(line):
            names = tuple(part.strip().strip("\"'") for part in head[2].split("."))
            where = names
            if head[1] == "[[":
                counts[names] = counts.get(names, -1) + 1
                where = (*names, counts[names])
            found.setdefault(where, number)
        elif key := _KEY.match(line):
            found.setdefault((*where, key[1].strip("\"'")), number)
    return found
