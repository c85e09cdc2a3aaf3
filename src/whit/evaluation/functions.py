"""A user's own function, by name: `module:function` or `file.py:function`.

Runs the user's code, on the user's word: the name comes from the command line or `whit.toml`, never
from data, a base or an adapter. Knows nothing of what the function is for.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from whit.errors import UsageError


def load_function(name: str) -> Callable[..., Any]:
    """Import the function. A module is looked for on Python's path, then in the working folder.

    Raises `UsageError` that says what is not there.
    """
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise UsageError(f"{name}: write module:function or file.py:function, as in scores.py:near")
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{name}: importing {place} raised {type(error).__name__}: {error}") from error
    function: Any = module
    for part in attribute.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        raise UsageError(f"{name}: {place} has no function {attribute}")
    return function  # type: ignore[no-any-return]


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file")
    spec = importlib.util.spec_from_file_location(f"whit_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _load_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise
    # A console script does not have the working folder on Python's path; `python -m` does.
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(f"{name}: no such module, on Python's path or in {here} ({error})") from error
    finally:
        if here in sys.path:
            sys.path.remove(here)
