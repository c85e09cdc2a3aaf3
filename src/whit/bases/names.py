"""What a base's name means, decided without touching the network and without torch.

The rule, in this order:

1. a name that is written as a path (begins with `./`, `../`, `/` or `~`, or ends in `.gguf`) is a path;
2. `eeny`, `meeny`, `smollm2`, … are the bases that whit knows, whatever lies in the working folder;
3. a file or folder that exists is a path (so `models/mine` is the folder where there is one);
4. `owner/name`, with `@revision` if wanted, is a repository of the hub.

Where only a name may stand (`whit pull`, a request to a server) `paths=False` leaves out 1 and 3.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from whit.bases.cache import bases_folder
from whit.bases.catalogue import BUILTIN, KNOWN, Known, builtin_path
from whit.errors import BaseError

Kind = Literal["builtin", "known", "file", "folder", "hub"]

MAX_NAME = 4096
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_HUB = re.compile(r"([A-Za-z0-9][\w.-]{0,95})/([A-Za-z0-9][\w.-]{0,95})(?:@([A-Za-z0-9][\w.-]{0,95}))?", re.ASCII)


@dataclass(frozen=True)
class Reference:
    """What a name means. `path` is where the base lies, or will lie once it is pulled."""

    kind: Kind
    name: str
    path: Path
    known: Known | None = None
    repository: str | None = None
    revision: str | None = None

    @property
    def present(self) -> bool:
        """Whether the base is on this machine."""
        return self.path.exists()


def resolve(name: str | Path, *, paths: bool = True) -> Reference:
    """What `name` means, by the rule above. Raises `BaseError` where it means nothing."""
    text = str(name)
    if not text.strip() or len(text) > MAX_NAME:
        raise BaseError("a base's name must not be empty or thousands of characters long; see `whit bases`.")
    if any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in text):
        raise BaseError(f"the base's name {text!r} has control characters in it; see `whit bases` for names.")
    if isinstance(name, Path) or _written_as_path(text):
        if not paths:
            raise BaseError(f"{text!r} is a path; a name of a base is wanted here (see `whit bases`).")
        return _at_path(Path(text).expanduser(), text)
    if text in BUILTIN:
        return Reference("builtin", text, builtin_path(BUILTIN[text]))
    if text in KNOWN:
        return Reference("known", text, bases_folder() / text / KNOWN[text].file, KNOWN[text])
    if paths and Path(text).exists():
        return _at_path(Path(text), text)
    match = _HUB.fullmatch(text)
    if match and ".." not in text and "--" not in text:
        owner, repository, revision = match.groups()
        folder = f"{owner}--{repository}" + (f"@{revision}" if revision else "")
        path = bases_folder() / "hub" / folder
        return Reference("hub", text, path, repository=f"{owner}/{repository}", revision=revision)
    raise BaseError(f"there is no base {text!r}{_hint(text, paths)}")


def _written_as_path(text: str) -> bool:
    parts = re.split(r"[\\/]", text)
    return (
        text.startswith(("/", "~", "\\"))
        or "." in parts
        or ".." in parts
        or "\\" in text
        or text.lower().endswith(".gguf")
        or bool(re.match(r"[A-Za-z]:", text))
    )


def _at_path(path: Path, text: str) -> Reference:
    try:
        if path.is_dir():
            return Reference("folder", text, path)
        if path.is_file():
            return Reference("file", text, path)
        reason = "it is neither a file nor a folder" if path.exists() else "it is not there"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise BaseError(f"no base at {text}: {reason}. Give a .gguf file, a transformers folder or a name.")


def _hint(text: str, paths: bool) -> str:
    names = [*BUILTIN, *KNOWN]
    near = difflib.get_close_matches(text.lower(), names, n=1)
    meant = f"; did you mean {near[0]}?" if near else "."
    also = ", a .gguf file, a transformers folder" if paths else ""
    return f"{meant} Known are {', '.join(names)}{also}, or a hub repository as owner/name."
