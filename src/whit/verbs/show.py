"""`whit show`: what is known of an adapter: card, sizes, text form, and a QR code where it fits one.

Loads neither a base nor torch for vector adapters.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whit.errors import UsageError
from whit.settings import ShowSettings
from whit.talk import Talk, size
from whit.verbs import common

MAX_QR = 2953  # characters of the largest QR code in byte mode, lowest correction
_SHOWN_TEXT = 4096


@dataclass(frozen=True)
class ShowResult:
    """An adapter's description; `card` as plain values, `qr` drawn in half blocks."""

    about: dict[str, Any]
    text: str | None
    file_bytes: int
    card: dict[str, Any] | None
    qr: str | None

    def to_json(self) -> dict[str, Any]:
        """`kind`, `numbers`, `payload_bytes`, `file_bytes`, `text`, `base`, `basis`, `card`, …"""
        return {
            "contract": common.CONTRACT,
            **self.about,
            "file_bytes": self.file_bytes,
            "text": self.text,
            "card": self.card,
        }

    def to_text(self) -> str:
        """For people."""
        about, lines = self.about, []
        rank = f", rank {about['rank']}" if "rank" in about else ""
        lines.append(f"{about['kind']} adapter of {about['numbers']:,} numbers ({about['number_type']}{rank})")
        lines.append(f"payload  {size(about['payload_bytes'])}, file {size(self.file_bytes)}")
        card = self.card
        name = f"{card['base']} " if card else ""
        lines.append(f"base     {name}{(about['base'] or 'not known')[:16]}")
        if about["basis"]:
            lines.append(f"basis    {about['basis'][:16]}")
        if card:
            data = card["data"]
            lines.append(f"data     {data['name']}: {data['train']:,} rows learned, {data['test']:,} held out")
            if card["instruction"]:
                lines.append(f"told     {card['instruction']}")
            if card["result"]:
                lines.append(f"verdict  {card['result']['sentence']}")
        if self.text and len(self.text) <= _SHOWN_TEXT:
            lines.append(f"text     {self.text}")
        if self.qr:
            lines += ["", self.qr]
        return "\n".join(lines)


def show(settings: ShowSettings, *, talk: Talk | None = None) -> ShowResult:
    """Describe an adapter. Raises `UsageError` where a QR code is asked for and cannot hold it."""
    special = common.open_specialist(settings.adapter)
    adapter = special.adapter
    text = adapter.to_text() if adapter.is_compact else None
    if adapter.is_compact or special.folder is not None:
        file_bytes = common.file_bytes(adapter, special.folder or Path())
    elif Path(settings.adapter).is_file():  # a zip
        file_bytes = Path(settings.adapter).stat().st_size
    else:  # in a store
        file_bytes = adapter.payload_bytes
    code = None
    if settings.qr:
        if text is None or len(text) > MAX_QR:
            length = (
                "a lora adapter has no text form" if text is None else f"its text form has {len(text):,} characters"
            )
            raise UsageError(f"--qr: {length}; a QR code holds {MAX_QR:,}. Use an adapter with fewer numbers")
        code = draw_qr(text)
    card = special.card.to_json() if special.card else None
    return ShowResult(adapter.describe(), text, file_bytes, card, code)


def draw_qr(text: str) -> str:
    """A QR code in half-block characters, with its quiet zone."""
    import segno

    drawn = io.StringIO()
    segno.make(text, error="l", micro=False).terminal(drawn, compact=True, border=2)
    return drawn.getvalue().rstrip("\n")
