"""What `whit check` can find, by kind. Knows nothing of how it is found."""

from __future__ import annotations

from dataclasses import dataclass

SERIOUS = frozenset(
    {
        "one-row", "one-class", "conflict", "leakage", "empty", "truncated", "too-long", "invalid-json",
        "email", "card", "key",
    }
)  # fmt: skip
KINDS = {
    "one-row": "fewer rows than could be split",
    "one-class": "every row has the same answer",
    "duplicate": "the same input with the same answer, more than once",
    "near-duplicate": "inputs that nearly repeat each other",
    "conflict": "the same input with different answers",
    "leakage": "rows that also stand in another split",
    "empty": "no text, or no answer",
    "truncated": "text that was cut off",
    "too-long": "longer than the base's context",
    "rare-label": "an answer that only one row has",
    "format-case": "the same answer in upper and lower case",
    "format-spaces": "spaces before, after or within an answer that others do not have",
    "format-punctuation": "the same answer with and without a full stop",
    "invalid-json": "an answer that does not parse, among answers that are JSON",
    "json-keys": "an object with other keys than most",
    "json-style": "an object with its keys in another order, or written with other spaces, than most",
    "json-types": "a field of another type than in most rows",
    "imbalance": "one answer that most rows have",
    "special-token": "text such as <|im_end|>, which a base reads as the end of a turn",
    "email": "an e-mail address",
    "card": "a card number (Luhn)",
    "key": "an API key or another secret",
}


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with some rows. `kind` is one of `KINDS`; `message` quotes no secret.

    `lines` are those of `ids`, None where the file has no lines.
    """

    kind: str
    ids: tuple[str, ...]
    message: str
    lines: tuple[int | None, ...] = ()

    @property
    def serious(self) -> bool:
        """Whether training on the rows as they are would be wrong, and not only worse."""
        return self.kind in SERIOUS
