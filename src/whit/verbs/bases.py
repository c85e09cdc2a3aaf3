"""`whit bases`: the bases there are, whit's own first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from whit.bases.listing import BaseInfo, list_bases
from whit.settings import BasesSettings
from whit.talk import Talk


@dataclass(frozen=True)
class Bases:
    """The list."""

    items: tuple[BaseInfo, ...]

    def to_json(self) -> list[dict[str, Any]]:
        """What `whit bases --json` prints: `name`, `parameters`, `bytes`, `present`, `licence`, …"""
        return [item.to_json() for item in self.items]

    def to_text(self) -> str:
        """What the command prints for people."""
        head = ("NAME", "PARAMETERS", "SIZE", "HERE", "LICENCE", "WHAT")
        rows = [
            (
                item.name,
                _short(item.parameters, 1e6, "M"),
                _short(item.bytes, 1e6, "MB"),
                "yes" if item.present else "no",
                item.licence,
                item.description,
            )
            for item in self.items
        ]
        widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [head, *rows]
        )


def bases() -> Bases:
    """Every base that has a name. Takes milliseconds: no model is loaded."""
    return Bases(tuple(list_bases()))


def _short(value: int | None, unit: float, name: str) -> str:
    return "-" if value is None else f"{value / unit:.1f} {name}"


def command(settings: BasesSettings, *, talk: Talk | None = None) -> Bases:
    """`bases` with the command line's settings."""
    return bases()
