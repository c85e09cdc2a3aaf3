"""`whit.toml`: options kept beside the data, checked like those of the command line.

A table a command: `[train]`, `[eval]`, …; keys as the flags, with `-` or `_`. An unknown key is an error that
names the nearest one, and so is an unknown table. Knows only the settings' fields.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from whit.errors import UsageError

NAME = "whit.toml"
_LARGEST = 1 << 20


def read_config(
    command: str, settings: type, path: Path | None, folder: Path, commands: Sequence[str] = ()
) -> dict[str, Any]:
    """The options that a file states for `command`; none where there is no file.

    `path` is a file that was asked for, else `whit.toml` in `folder` or the current folder. `commands` are the
    tables that a file may hold (any, where none are given). Raises `UsageError`.
    """
    if path is None:
        path = next((place for place in (folder / NAME, Path(NAME)) if place.is_file()), None)
        if path is None:
            return {}
    try:
        if path.stat().st_size > _LARGEST:
            raise UsageError(f"{path}: too large for a file of options")
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML ({error})") from error
    for name in document:
        if commands and name not in commands:
            raise UsageError(f"{path}: there is no command for [{name}]{nearest(name, commands)}")
    table = document.get(command, {})
    if not isinstance(table, dict):
        raise UsageError(f"{path}: [{command}] must be a table")
    return checked(table, settings, f"{path}: [{command}]", path.parent)


def checked(table: Mapping[str, Any], settings: type, where: str, folder: Path) -> dict[str, Any]:
    """The options of a table, by their names; paths are beside `folder`. `where` begins errors: `UsageError`."""
    hints = get_type_hints(settings)
    known = {part.name: part for part in fields(settings) if not part.metadata["positional"]}
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in known:
            raise UsageError(f"{where} has no option {key!r}{nearest(name, known).replace('_', '-')}")
        found[name] = _value(value, hints[name], known[name].metadata, f"{where} {key}", folder)
    return found


def _value(value: Any, hint: Any, about: Any, where: str, folder: Path) -> Any:
    if about.get("many"):
        items = value if isinstance(value, list) else [value]
        return tuple(_one(item, hint, about, where, folder) for item in items)
    return _one(value, hint, about, where, folder)


def _one(value: Any, hint: Any, about: Any, where: str, folder: Path) -> Any:
    inner = next(item for item in (get_args(hint) or (hint,)) if item not in (type(None), Ellipsis))
    if inner is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    wanted = str if inner is Path else inner
    if type(value) is not wanted:
        raise UsageError(f"{where} = {value!r}: must be {_NAMES.get(wanted, wanted.__name__)}")
    if about.get("choices") and value not in about["choices"]:
        raise UsageError(f"{where} = {value!r}: must be one of {', '.join(about['choices'])}")
    least, most = about.get("least"), about.get("most")
    if (least is not None and value < least) or (most is not None and value > most):
        raise UsageError(f"{where} = {value!r}: must be from {least} to {most if most is not None else 'any size'}")
    return folder / value if inner is Path else value


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at the name that was probably meant, "" where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def hold(settings: type, given: dict[str, Any]) -> Any:
    """Settings from Python values: held to the same names and limits as a file's, texts taken for paths.

    Raises `UsageError`.
    """
    hints = get_type_hints(settings)
    known = {part.name: part for part in fields(settings)}
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise UsageError(f"there is no option {name!r}{nearest(name, known)}")
        plain = (
            [str(item) if isinstance(item, Path) else item for item in value]
            if isinstance(value, list | tuple)
            else (str(value) if isinstance(value, Path) else value)
        )
        if value is not None:
            found[name] = _value(plain, hints[name], known[name].metadata, name, Path())
    return settings(**found)
