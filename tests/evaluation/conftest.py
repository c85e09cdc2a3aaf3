"""A short way to make rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from whit.data.rows import Row, Turn


@pytest.fixture(scope="session")
def row() -> Callable[..., Row]:
    def make(completion: str, prompt: str = "?", id: str = "r1", **extra: object) -> Row:
        return Row(id=id, turns=(Turn("user", prompt),), completion=completion, extra=extra)

    return make
