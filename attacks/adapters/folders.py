"""PEFT folders that mean harm: code in a pickle, code by `auto_map`, sizes that lie, numbers that poison.

After PEFT's fallback to `.bin`, TensorRT-LLM #13391, and CVE-2026-22807 (`auto_map`). The pickle here would write
a file beside itself if anything read it. Run: python attacks/adapters/folders.py
"""

from __future__ import annotations

import json
import pickle
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from whit.adapters.adapter import Adapter
from whit.errors import AdapterError

KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


class Payload:
    """Unpickled, it creates the file it names."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def _lora(
    folder: Path, tensors: dict[str, torch.Tensor] | None = None, content: bytes | None = None, **config: Any
) -> None:
    described = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(described))
    parts = tensors or {KEY.format("A"): torch.ones(2, 64), KEY.format("B"): torch.ones(64, 2)}
    (folder / "adapter_model.safetensors").write_bytes(save(parts) if content is None else content)


def _pickle(folder: Path, name: str) -> None:
    (folder / name).write_bytes(pickle.dumps(Payload(folder / "code-ran")))


def _pickle_with_config(folder: Path) -> None:
    _lora(folder)
    (folder / "adapter_model.safetensors").unlink()
    _pickle(folder, "adapter_model.bin")


def _nested(folder: Path) -> None:
    _lora(folder)
    (folder / "adapter_config.json").write_text("[" * 100_000)


def _header(claim: int) -> bytes:
    return struct.pack("<Q", claim) + b"{}"


def _span(offsets: list[int]) -> bytes:
    head = json.dumps({KEY.format("A"): {"dtype": "F32", "shape": [2, 64], "data_offsets": offsets}}).encode()
    return struct.pack("<Q", len(head)) + head


nan = torch.full((2, 64), float("nan"))
ATTACKS: dict[str, Callable[[Path], None]] = {
    "a pickle alone": lambda folder: _pickle(folder, "adapter_model.bin"),
    "a pickle with a LoRA's settings": _pickle_with_config,
    "a pickle named .pt": lambda folder: _pickle(folder, "adapter.pt"),
    "a pickle named adapter.whit": lambda folder: _pickle(folder, "adapter.whit"),
    "a pickle named .safetensors": lambda folder: _lora(folder, content=pickle.dumps(Payload(folder / "code-ran"))),
    "auto_map": lambda folder: _lora(folder, auto_map={"AutoModel": "evil.Model"}),
    "a rank of 10^12": lambda folder: _lora(folder, r=10**12),
    "rank_pattern": lambda folder: _lora(folder, rank_pattern={".*": 10**9}),
    "NaN": lambda folder: _lora(folder, {KEY.format("A"): nan, KEY.format("B"): torch.ones(64, 2)}),
    "alpha beyond all": lambda folder: _lora(folder, lora_alpha=1e300),
    "a header of 2^63 bytes": lambda folder: _lora(folder, content=_header(1 << 63)),
    "a header of 1 TB": lambda folder: _lora(folder, content=_header(1 << 40)),
    "tensors beyond the file": lambda folder: _lora(folder, content=_span([0, 1 << 40])),
    "offsets the wrong way round": lambda folder: _lora(folder, content=_span([512, 0])),
    "settings nested 100,000 deep": _nested,
    "a link to a file elsewhere": lambda folder: (folder / "adapter.whit").symlink_to(sys.executable),
}


def main() -> int:
    """Run all; returns the exit code."""
    failed = 0
    for name, build in ATTACKS.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            build(folder)
            try:
                Adapter.load(folder)
                outcome = "FAILED   it was taken"
            except AdapterError as error:
                outcome = f"refused  {str(error).replace(temporary, 'FOLDER')[:120]}"
            except Exception as error:
                outcome = f"FAILED   {type(error).__name__}: {error}"
            if (folder / "code-ran").exists():
                outcome = "FAILED   its code ran"
        failed += outcome.startswith("FAILED")
        print(f"{name}: {outcome}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
