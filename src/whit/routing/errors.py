"""What can go wrong on the way to a tier.

    WhitError
    ├── UsageError
    │   └── ConfigError       tiers.toml: names the file, the line and what to write instead
    ├── NotCleared            a tier was asked without a clearance that allows it: a fault of whit, never of the user
    └── Refused               a request that gets no answer; carries the HTTP status and OpenAI's error code
        └── TierFailed        a tier did not answer; says whether trying again makes sense

No message holds a key, a prompt, an upstream's words or an address that is not in the user's own file.
"""

from __future__ import annotations

from pathlib import Path

from whit.errors import UsageError, WhitError


class ConfigError(UsageError):
    """A tiers.toml that cannot be used; `line` is 0 where it is about the whole file."""

    def __init__(self, path: str | Path, line: int, message: str) -> None:
        self.path, self.line = str(path), line
        super().__init__(f"{path}:{line}: {message}" if line else f"{path}: {message}")


class NotCleared(WhitError):
    """A tier was asked for something that it is not cleared for."""


class Refused(WhitError):
    """A request that gets no answer: `status` as in HTTP, `code` as OpenAI's clients know them."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code = status, code
        super().__init__(message)


class TierFailed(Refused):
    """A tier did not answer.

    `again`: the same tier may be asked once more. `billed`: the tier may have done the work and charge for it.
    `after`: seconds that the tier asked to wait.
    """

    def __init__(
        self, code: str, message: str, *, again: bool, billed: bool = False, after: float = 0.0, status: int = 502
    ) -> None:
        self.again, self.billed, self.after = again, billed, after
        super().__init__(status, code, message)
