"""What several commands share: an adapter with its card and base, threads, the JSON contract of a verdict.

`CONTRACT` is the version of what `--json` prints; it grows by one when a key changes its meaning or goes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from whit.errors import AdapterError, UsageError
from whit.settings import BakeSettings, TrainSettings
from whit.talk import Talk

if TYPE_CHECKING:
    from whit.adapters.adapter import Adapter
    from whit.bases import Base
    from whit.data.rows import Row
    from whit.evaluation.card import Card
    from whit.evaluation.verdict import Comparison

S = TypeVar("S", TrainSettings, BakeSettings)
CONTRACT = 1
CARD_NAME, REPORT_NAME, HELD_OUT_NAME, SEEN_NAME = "card.json", "report.html", "held-out.jsonl", "seen.txt"


@dataclass(frozen=True)
class Specialist:
    """An adapter with what is known of it. `folder` is None where it came as text, from a store, or without its card.

    `notes` are a store's, where it keeps less than a whole card: `base` and `instruction`.
    """

    adapter: Adapter
    card: Card | None
    folder: Path | None
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def instruction(self) -> str | None:
        """What the base was told in training, as far as is known."""
        return (self.card.instruction if self.card is not None else str(self.notes.get("instruction") or "")) or None

    def base_name(self, asked: str | None) -> str:
        """The base to use: the one asked for, else the card's. Raises `AdapterError` where neither says."""
        if asked:
            return asked
        if self.card is not None:
            return self.card.base
        if isinstance(self.notes.get("base"), str) and self.notes["base"]:
            return str(self.notes["base"])
        raise AdapterError("this adapter comes without a card, so its base must be named: add --base NAME")


def open_specialist(where: str) -> Specialist:
    """Read an adapter and, where it has one beside it, its card.

    `FILE.db#team/alice@prod` is looked up in a store, and so is the learned basis that it may name.
    """
    store, mark, name = where.rpartition("#")
    if mark and in_store(where):
        return _from_store(store, name)
    from whit.adapters.adapter import Adapter
    from whit.adapters.compact import TEXT_PREFIX
    from whit.adapters.zipped import is_zip, unzipped

    try:
        if is_zip(Path(where)):
            with unzipped(Path(where)) as inside:
                adapter = Adapter.load(inside)
                return Specialist(adapter, _card_in(inside, adapter), None)
        adapter = Adapter.load(where)
    except (OSError, ValueError) as error:  # a name that no file can have, or a file that cannot be read
        raise AdapterError(
            f"{where[:200]}: cannot be read as an adapter ({getattr(error, 'strerror', error)})"
        ) from error
    if where.startswith(TEXT_PREFIX):
        return Specialist(adapter, None, None)
    path = Path(where)
    folder = path if path.is_dir() else path.parent
    card = _card_in(folder, adapter)
    return Specialist(adapter, card, folder if path.is_dir() or card is not None else None)


def _card_in(folder: Path, adapter: Adapter) -> Card | None:
    """The card in the adapter's folder; one that lies beside another adapter's file says nothing of this one."""
    from whit.evaluation.card import load_card

    card = load_card(folder / CARD_NAME) if (folder / CARD_NAME).is_file() else None
    if card is not None and adapter.base and not card.base_fingerprint.startswith(adapter.base[:16]):
        return None
    return card


def in_store(where: str) -> bool:
    """Whether this means an adapter of a store: `FILE#NAME` or `postgresql://…#NAME`."""
    from whit.adapters.compact import TEXT_PREFIX

    store, mark, _ = where.rpartition("#")
    if not mark or where.startswith(TEXT_PREFIX):
        return False
    try:
        return store.startswith(("postgresql://", "postgres://")) or (
            Path(store).is_file() and not Path(where).exists()
        )
    except (OSError, ValueError):
        return False


def _from_store(where: str, name: str) -> Specialist:
    from whit.evaluation.card import Card
    from whit.serving.payload import from_payload, learned_in
    from whit.serving.store import open_store

    with open_store(where, read_only=True, create=False) as store:
        held = store.find(name, card=True)
        adapter = from_payload(held.payload)
        learned_in(store, adapter.basis)
    notes = held.card or {}
    try:
        card = Card.from_json(dict(notes)) if notes else None
    except AdapterError:  # less than a card: `whit train --per` keeps what running needs
        card = None
    return Specialist(adapter, card, None, notes)


def open_base(name: str, *, dtype: str, threads: int | None, talk: Talk, device: str = "cpu") -> Base:
    """Load a base, telling where it comes from; fetched first where it is a known name that is not here yet.

    Raises `UsageError` for a `device` that is not here, before anything else is done, and what `load_base` raises.
    """
    use_threads(threads)
    from whit.bases import load_base
    from whit.bases.dtypes import require_device
    from whit.bases.names import resolve
    from whit.bases.quantize import split_name

    require_device(device)
    plain, _ = split_name(name)
    if not resolve(plain).present:
        from whit.bases.pulling import pull

        talk.say(f"{plain} is not here yet; fetching it (once)")
        pull(plain, progress=fetching(talk, plain))
    with talk.task(f"Loading {name}"):
        return load_base(name, dtype=dtype, device=device)


def quantised(settings: S) -> S:
    """The settings with `--quantize` said by the base's name, as cards and other commands have it."""
    from whit.bases.quantize import join_name

    if settings.quantize is None:
        return settings
    return replace(settings, base=join_name(settings.base, settings.quantize), quantize=None)


def fetching(talk: Talk, name: str) -> Any:
    """A progress callback for `pull`: bytes so far of bytes in all."""
    import time

    from whit.talk import size

    began = time.monotonic()

    def tell(what: str, done: int, total: int | None) -> None:
        if total:
            note = f"{size(done)} of {size(total)}"
            talk.progress(f"{name}: {what}", done, total, time.monotonic() - began, note, every=2.0)

    return tell


def seen_key(row: Row) -> str:
    """What stands for a row's input in the list of rows that training saw: a hash, for the rows may be private."""
    from whit.data.rows import content_key, digest

    return digest(content_key(row.turns))


def plain_key(row: Row) -> str:
    """The same for the input without differences of case, spacing and punctuation."""
    from whit.data.rows import digest, said
    from whit.data.similarity import plain

    return digest("plain", plain(said(row.turns)))


def seen_by(folder: Path | None) -> set[str]:
    """Hashes of the inputs that training saw, as far as the adapter's folder knows."""
    path = folder / SEEN_NAME if folder else None
    if path is None or not path.is_file():
        return set()
    return set(path.read_text("ascii", errors="replace").split())


def file_bytes(adapter: Adapter, folder: Path) -> int:
    """Bytes of the adapter's own files in its folder: the compact file, or a LoRA's weights and settings."""
    if adapter.is_compact:
        return len(adapter.to_bytes())
    from whit.adapters.lora import CONFIG_NAME, WEIGHTS_NAME

    return sum((folder / name).stat().st_size for name in (WEIGHTS_NAME, CONFIG_NAME))


def require_finite(settings: Any) -> None:
    """Raise `UsageError` for an option that is NaN or infinite; ranges do not catch NaN."""
    for name, value in vars(settings).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"--{name.replace('_', '-')} {value}: must be a finite number")


def use_threads(threads: int | None) -> None:
    """Compute with this many threads from here on."""
    if threads:
        import torch

        torch.set_num_threads(threads)


@contextlib.contextmanager
def bound_to(base: Base, adapter: Adapter, *, check: bool = True) -> Iterator[Any]:
    """The adapter in its place for the length of a block.

    With `check`, an adapter that changes no logit of the base is an `AdapterError` that says why.
    """
    from whit.adapters.tunable import bind

    bound = bind(base, adapter)
    try:
        if check:
            from whit.adapters.interop.check import assert_changes

            assert_changes(base, bound)
        yield bound
    finally:
        bound.detach()


def verdict_json(result: Comparison, baselines: Mapping[str, Comparison], adapter: str) -> dict[str, Any]:
    """The contract of `train` and `eval`.

    Each baseline, by name, has its own `score`, and `difference`, `interval` and `p_value` of the adapter over it.
    """
    listed = {
        name: {
            "score": found.base,
            "difference": found.difference,
            "interval": list(found.interval),
            "p_value": found.p_value,
            "verdict": str(found.verdict),
        }
        for name, found in baselines.items()
    }
    return {"contract": CONTRACT, **result.to_json(), "baselines": listed, "adapter": adapter}
