"""Whose a folder is that a run would write into: what the user or another run made there is not replaced unasked.

A folder that an interrupted run left is left to `whit.verbs.runs`. Knows nothing of training.
"""

from __future__ import annotations

from pathlib import Path

from whit.errors import AdapterError, UsageError
from whit.settings import TrainSettings
from whit.verbs import common

_README = "README.md"
_OURS = "\nlibrary_name: whit\n"


def require_own_readme(folder: Path) -> None:
    """Raise `UsageError` for a folder with a README.md that is no model card of whit's."""
    readme = folder / _README
    if not readme.is_file():
        return
    front, _, _ = readme.read_bytes()[:100_000].decode("utf-8", "replace").partition("\n---\n")
    if not front.startswith("---\n") or _OURS not in f"{front}\n":
        raise UsageError(f"{readme} is yours, and a model card would replace it; choose another folder with --out")


def require_replaceable(folder: Path, settings: TrainSettings, key: str) -> None:
    """Raise `UsageError` where a run would replace what the user, or a run of another `key` or base, made.

    With --resume or --overwrite an adapter may be replaced; a README.md of the user's never.
    """
    from whit.adapters.adapter import FILE_NAME
    from whit.adapters.lora import CONFIG_NAME, WEIGHTS_NAME
    from whit.evaluation.card import load_card

    require_own_readme(folder)
    if settings.resume or settings.overwrite:
        return
    path = folder / common.CARD_NAME
    names = (common.CARD_NAME, FILE_NAME, CONFIG_NAME, WEIGHTS_NAME, common.REPORT_NAME, common.HELD_OUT_NAME)
    there = [name for name in (*names, common.SEEN_NAME) if (folder / name).exists()]
    if not there:
        return
    try:
        card = load_card(path) if path.is_file() else None
    except AdapterError:
        card = None
    if card is None:
        raise UsageError(
            f"{folder} has a {there[0]} that no whole run of whit train left; choose another --out, or replace it with "
            "--overwrite"
        )
    if card.run != key or card.base != settings.base:
        raise UsageError(
            f"{folder} holds the adapter of another run (other rows, settings or base); choose another --out, or "
            "replace it with --overwrite"
        )
