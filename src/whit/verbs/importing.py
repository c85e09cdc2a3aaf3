"""`whit import`: another program's adapter as whit's own, checked against what that program computes with it.

Promises that what is written answers as the PEFT folder does when PEFT loads it, unless the check was switched off.
Knows nothing of how the formats look.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.errors import UsageError
from whit.settings import ImportSettings
from whit.talk import Talk, size
from whit.verbs.common import CONTRACT

if TYPE_CHECKING:
    from whit.adapters.adapter import Adapter


@dataclass(frozen=True)
class ImportResult:
    """What was read and written; `largest_difference` of a logit from PEFT's own (None where it was not checked)."""

    folder: Path
    source: str
    base: str
    adapter: Adapter
    largest_difference: float | None = None
    tolerance: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The contract of `whit import --json`."""
        about = self.adapter.describe()
        return {
            "contract": CONTRACT,
            "source": self.source,
            "out": str(self.folder),
            "base": self.base,
            **{key: about[key] for key in ("kind", "numbers", "payload_bytes")},
            "checked": self.largest_difference is not None,
            "largest_difference": self.largest_difference,
            "tolerance": self.tolerance,
        }

    def to_text(self) -> str:
        """A few lines to read."""
        held = self.adapter
        lines = [f"{self.folder}: {held.kind}, {held.numbers:,} numbers, {size(held.payload_bytes)}, of {self.source}"]
        if self.largest_difference is None:
            lines.append("  not checked")
        else:
            lines.append(
                f"  checked: logits differ from PEFT's by at most {self.largest_difference:.2g} "
                f"(allowed: {self.tolerance:.2g})"
            )
        return "\n".join([*lines, f'try it: whit run {self.folder} --base {self.base} "…"'])


def command(settings: ImportSettings, *, talk: Talk | None = None) -> ImportResult:
    """Read a PEFT folder (LoRA or TinyLoRA) and write it as whit's own into `settings.out`.

    The base is `settings.base`, or the one that the folder names.
    A TinyLoRA along whit's basis becomes `tiny` or `xs` again, number for number; any other becomes the `lora` that
    computes the same. Raises `UsageError`, `AdapterError` (also where the check fails), `BaseError`, `StorageError`.
    """
    out = settings.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already; name a new folder")

    from whit.adapters.interop.peft_tinylora import import_peft
    from whit.adapters.interop.tinylora_folder import read_config
    from whit.bases import load_base

    named = settings.base or read_config(settings.folder).get("base_model_name_or_path")
    if not named or not isinstance(named, str):
        raise UsageError(f"{settings.folder} does not name its base; name it with --base")
    base = load_base(named, dtype="float32")
    adapter = import_peft(settings.folder, base)
    difference = None
    if settings.check:
        from whit.adapters.interop.check import assert_same, compare
        from whit.adapters.interop.reload import peft_logits, whit_logits

        bare, ours = whit_logits(base, adapter)
        difference = compare(ours, bare, peft_logits(base, settings.folder))
        assert_same(difference, f"what whit makes of {settings.folder}")
    adapter.save(out)
    return ImportResult(
        out,
        str(settings.folder),
        base.name,
        adapter,
        difference.largest if difference else None,
        difference.tolerance if difference else None,
    )
