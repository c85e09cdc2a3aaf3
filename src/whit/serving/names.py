"""Names of adapters in a store, and references to one of their versions.

A name is one to four parts of letters, digits, `.`, `_` and `-`, parted by `/` (`alice`, `team/alice`). It is
looked up and never joined to a path. A reference is a name, with `@3` for a version or `@prod` for a label.
Knows nothing of databases.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from whit.errors import UsageError

MAX_NAME = 128
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.))*"
_NAME = re.compile(rf"{_PART}(?:/{_PART}){{0,3}}", re.ASCII)
_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,31}", re.ASCII)
_VERSION = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_TEXT_FORM = "whit1_"


@dataclass(frozen=True)
class Reference:
    """Which version of which name: `version` or `label`, or neither for the current one."""

    name: str
    version: int | None = None
    label: str | None = None

    def __str__(self) -> str:
        chosen = self.version if self.version is not None else self.label
        return self.name if chosen is None else f"{self.name}@{chosen}"


def check_name(name: str) -> str:
    """`name`, if it is one. Raises `UsageError`."""
    if len(name) > MAX_NAME or not _NAME.fullmatch(name) or name.startswith(_TEXT_FORM):
        raise UsageError(
            f"{name[:80]!r} is no name for an adapter: use one to four parts of letters, digits, '.', '_' and '-', "
            f"parted by '/', at most {MAX_NAME} characters (team/alice)"
        )
    return name


def check_label(label: str) -> str:
    """`label`, if it is one. Raises `UsageError`."""
    if not _LABEL.fullmatch(label):
        raise UsageError(
            f"{label[:80]!r} is no label: a letter, then up to 31 letters, digits, '.', '_' and '-' (prod)"
        )
    return label


def parse_reference(text: str) -> Reference:
    """`alice`, `alice@3` or `alice@prod`. Raises `UsageError`."""
    name, mark, chosen = text.partition("@")
    check_name(name)
    if not mark:
        return Reference(name)
    if _VERSION.fullmatch(chosen):
        return Reference(name, version=int(chosen))
    return Reference(name, label=check_label(chosen))
