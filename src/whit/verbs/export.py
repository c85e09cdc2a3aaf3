"""`whit export`: an adapter in another program's format, checked against whit's own logits.

Promises that what is written was read back by the other program's loader and answers as the adapter does, unless
the check was switched off; what fails the check is an error, and is removed. The base is loaded in float32, so
that the comparison is of the export and not of rounding. Knows nothing of how the formats look.
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.errors import AdapterError, UsageError
from whit.settings import ExportSettings
from whit.talk import Talk
from whit.verbs.common import CONTRACT, in_store, open_specialist

if TYPE_CHECKING:
    import torch

    from whit.adapters.adapter import Adapter
    from whit.bases import Base

# The share of the adapter's own effect on the logits that an export may be off by: formats that keep every
# number, and merged weights that were rounded to a narrower type.
_EXACT, _NARROW = 1e-3, 0.2
FORMATS = ("peft", "lora", "merged", "gguf-lora")
_HELD = {"peft": "a PEFT folder", "lora": "a plain LoRA", "merged": "merged weights", "gguf-lora": "a GGUF LoRA"}


@dataclass(frozen=True)
class ExportResult:
    """What was written, and how far its logits are from whit's (None where it was not checked).

    `effect` is the largest change of a logit that the adapter itself makes on the probe.
    """

    adapter: str
    kind: str
    base: str
    to: str
    out: str
    files: tuple[str, ...]
    bytes: int
    number_type: str
    largest_difference: float | None = None
    tolerance: float | None = None
    effect: float | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The contract of `whit export --json`."""
        return {
            "contract": CONTRACT,
            "adapter": self.adapter,
            "kind": self.kind,
            "base": self.base,
            "to": self.to,
            "out": self.out,
            "files": list(self.files),
            "bytes": self.bytes,
            "number_type": self.number_type,
            "checked": self.largest_difference is not None,
            "largest_difference": self.largest_difference,
            "tolerance": self.tolerance,
            "effect": self.effect,
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """A few lines to read."""
        lines = [f"{self.out}: {_HELD[self.to]} of {self.adapter} ({self.bytes:,} bytes, {self.number_type})"]
        lines += [f"  note: {note}" for note in self.notes]
        if self.largest_difference is None:
            lines.append("  not checked")
        else:
            lines.append(
                f"  checked: logits differ from whit's by at most {self.largest_difference:.2g} "
                f"(allowed: {self.tolerance:.2g}; the adapter changes them by up to {self.effect:.2g})"
            )
        return "\n".join(lines)


def export(
    adapter: str | Path | Adapter,
    to: str,
    out: str | Path,
    *,
    check: bool = True,
    base: str | Base | None = None,
    number_type: str = "auto",
) -> ExportResult:
    """Write `adapter` (a file, folder, text form, or one in memory) to `out` as `to` (one of `FORMATS`).

    `base` overrides the one that the card names. `number_type` is for `merged`: `auto` is the base's own type
    where that keeps the update. `out` is a folder that is new or empty, or for `gguf-lora` a .gguf file. Raises
    `UsageError`, `AdapterError` (also where the check fails), `BaseError`, `StorageError`.
    """
    if to not in FORMATS:
        raise UsageError(f"--to {to}: unknown; whit exports to {', '.join(FORMATS)}")
    if number_type != "auto" and to != "merged":
        raise UsageError(f"--number-type is for --to merged; {to} has a type of its own")
    target = _target(to, Path(out))

    from whit.adapters.adapter import Adapter
    from whit.bases import load_base
    from whit.bases.load import Base

    held = adapter if isinstance(adapter, Adapter) else Adapter.load(adapter)
    shown = f"a {held.kind} adapter" if isinstance(adapter, Adapter) else str(adapter)
    loaded = base if isinstance(base, Base) else load_base(base or _base_name(adapter, held), dtype="float32")
    held.check_fits(loaded)
    known = _expected(loaded, held) if check else None
    try:
        files, stored, notes = _write(held, loaded, to, target, number_type)
        notes += _quantised(loaded, to)
        difference = None
        if known is not None:
            from whit.adapters.interop.check import assert_same, compare

            share = _NARROW if to == "merged" and stored != "float32" else _EXACT
            difference = compare(known[1], known[0], _reloaded(loaded, to, target), share=share)
            assert_same(difference, f"{target} ({_HELD[to]})")
    except AdapterError:
        _remove(target)
        raise
    return ExportResult(
        adapter=shown,
        kind=held.kind,
        base=loaded.name,
        to=to,
        out=str(target),
        files=tuple(str(file) for file in files),
        bytes=sum(file.stat().st_size for file in files),
        number_type=stored,
        largest_difference=difference.largest if difference else None,
        tolerance=difference.tolerance if difference else None,
        effect=difference.effect if difference else None,
        notes=notes,
    )


def _target(to: str, out: Path) -> Path:
    if to == "gguf-lora":
        target = out if out.suffix == ".gguf" else out / "adapter.gguf"
        if target.exists():
            raise UsageError(f"{target} is there already; name a new file")
        return target
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already; name a new folder")
    return out


def _base_name(adapter: str | Path | Adapter, held: Adapter) -> str:
    """The base's name from the card beside the adapter, or from a LoRA's own settings."""
    from whit.evaluation.card import load_card

    if isinstance(adapter, str | Path) and not str(adapter).startswith("whit1_"):
        path = Path(adapter)
        card = (path if path.is_dir() else path.parent) / "card.json"
        if card.is_file():
            return load_card(card).base
    if held.lora is not None and held.lora.base_name:
        return held.lora.base_name
    raise UsageError("there is no card.json beside this adapter that names its base; name it with --base")


def _expected(base: Base, adapter: Adapter) -> tuple[torch.Tensor, torch.Tensor]:
    from whit.adapters.interop.reload import whit_logits

    return whit_logits(base, adapter)


def _write(
    adapter: Adapter, base: Base, to: str, target: Path, number_type: str
) -> tuple[list[Path], str, tuple[str, ...]]:
    """The files, the number type they hold, and what the user should know."""
    from whit.adapters.interop.plain_lora import as_lora

    if to == "peft" and adapter.spec is not None:
        from whit.adapters.interop.peft_tinylora import export_peft_tinylora

        export_peft_tinylora(adapter, base, target)
        return sorted(target.iterdir()), "float32", ()
    weights = as_lora(adapter, base)
    if to in ("peft", "lora"):
        weights.save(target)
        return sorted(target.iterdir()), weights.number_type, ()
    if to == "gguf-lora":
        from whit.adapters.interop.gguf_lora import write_gguf_lora

        return [write_gguf_lora(weights, base, target)], "float32", ()
    from whit.adapters.interop.merged import merge

    merged = merge(base, weights, target, number_type=number_type)
    notes = []
    if merged.number_type != merged.stored and number_type == "auto":
        notes.append(
            f"written in {merged.number_type}: {merged.stored}, the base's own type, would have lost "
            f"{merged.lost_stored:.0%} of the adapter's change to rounding"
        )
    elif merged.lost:
        notes.append(f"rounding to {merged.number_type} took {merged.lost:.1%} of the adapter's change")
    return list(merged.files), merged.number_type, tuple(notes)


def _quantised(base: Base, to: str) -> tuple[str, ...]:
    """That an adapter for a quantised base is not one for the file that it is made from."""
    if base.quantized is None or to == "merged":
        return ()
    from whit.bases.quantize import split_name

    return (
        f"it is for {base.name}, with whose matrices it was checked: on {split_name(base.name)[0]} as its file has it "
        "the answers are others (--to merged has the right matrices in it)",
    )


def _reloaded(base: Base, to: str, target: Path) -> torch.Tensor:
    from whit.adapters.interop import reload

    if to == "merged":
        return reload.merged_logits(base, target)
    return reload.gguf_logits(base, target) if to == "gguf-lora" else reload.peft_logits(base, target)


def _remove(target: Path) -> None:
    """Take away what this run wrote; `_target` made sure that nothing was there before."""
    if target.is_dir():
        shutil.rmtree(target, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            target.unlink(missing_ok=True)


def command(settings: ExportSettings, *, talk: Talk | None = None) -> ExportResult:
    """`export` with the command line's settings; a store's adapter is looked up."""
    adapter: str | Adapter = settings.adapter
    base = settings.base
    if in_store(settings.adapter):
        special = open_specialist(settings.adapter)
        adapter, base = special.adapter, special.base_name(base)
    return export(adapter, settings.to, settings.out, check=settings.check, base=base, number_type=settings.number_type)
