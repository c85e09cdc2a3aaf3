"""What every tier answers with: pieces of text and tool calls, then how it ended. Knows nothing of where from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from whit.routing.clearance import Cleared


@dataclass(frozen=True)
class Piece:
    """A piece of an answer: text, or a part of a tool call as OpenAI streams it."""

    text: str = ""
    tool: dict[str, Any] | None = None


@dataclass(frozen=True)
class End:
    """How an answer ended. `confidence` is the mean probability of its tokens, where the tier knows it."""

    finish: str = "stop"
    tokens_in: int | None = None
    tokens_out: int | None = None
    confidence: float | None = None
    least: float | None = None


def text_of(pieces: Iterable[Piece | End]) -> str:
    """The text of an answer's pieces."""
    return "".join(piece.text for piece in pieces if isinstance(piece, Piece))


@dataclass(slots=True)
class Ask:
    """What goes along with a request to a tier: seconds it may take, the most tokens, an adapter by name.

    `sample` asks a local tier for another answer than its likeliest, to see whether it says the same.
    """

    seconds: float
    max_tokens: int
    adapter: str | None = None
    sample: bool = False


class Client(Protocol):
    """A tier, for one cleared request."""

    def answer(self, cleared: Cleared, ask: Ask) -> AsyncIterator[Piece | End]:
        """Pieces, then one `End`. Raises `TierFailed`; never after an `End`."""
        ...
