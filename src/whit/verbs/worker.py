"""One of the further processes of `whit train --processes N`: the same command, silent, without proof or files.

Run as a module with the settings as JSON; torchrun's variables say which process it is. What goes wrong for all is
told by the first process; what goes wrong here alone is told here.
"""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

from whit.errors import WhitError
from whit.settings import TrainSettings
from whit.talk import Talk


def settings_from(text: str) -> TrainSettings:
    """Settings that were written by `as_plain`."""
    hints = get_type_hints(TrainSettings)
    given = json.loads(text)
    for part in fields(TrainSettings):
        value = given.get(part.name)
        if isinstance(value, list):
            given[part.name] = tuple(value)
        elif isinstance(value, str) and Path in (hints[part.name], *get_args(hints[part.name])):
            given[part.name] = Path(value)
    return TrainSettings(**given)


def main() -> int:
    """The exit code."""
    from whit.verbs.train import train

    try:
        train(settings_from(sys.argv[1]), talk=Talk(quiet=True))
    except WhitError as error:
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
