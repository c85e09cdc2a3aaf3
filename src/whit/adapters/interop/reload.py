"""The logits of an export, reloaded through the loader of the program that it is for.

PEFT folders go through `PeftModel.from_pretrained`, merged weights through transformers' own
`from_pretrained`; a GGUF LoRA is read back with the `gguf` package and its matrices are put in PEFT's layers
(llama.cpp itself is no dependency of whit). Promises to leave the base as it was.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from whit.adapters.adapter import Adapter
from whit.adapters.interop.check import assert_changes, logits, probe
from whit.adapters.interop.gguf_lora import read_gguf_lora
from whit.adapters.tunable import bind
from whit.bases.quantize import import_bitsandbytes
from whit.errors import AdapterError

if TYPE_CHECKING:
    from whit.bases import Base


def whit_logits(base: Base, adapter: Adapter) -> tuple[torch.Tensor, torch.Tensor]:
    """What the base says on the probe, and what it says with the adapter.

    Raises `AdapterError` where that is the same, `WrongBase` or `WrongBasis` where the adapter is of another.
    """
    ids = probe(base)
    bound = bind(base, adapter)
    try:
        assert_changes(base, bound)
        with bound.active():
            adapted = logits(base.model, ids)
        return logits(base.model, ids), adapted
    finally:
        bound.detach()


def peft_logits(base: Base, folder: str | Path) -> torch.Tensor:
    """Logits on the probe of a PEFT folder (LoRA or TinyLoRA) as PEFT loads it."""
    with contextlib.suppress(Exception):  # optional; PEFT tells what is wrong with it
        import_bitsandbytes()
    from peft import PeftModel

    with _quiet(), torch.random.fork_rng(devices=[]):
        try:
            model = PeftModel.from_pretrained(_alike(base.model), str(folder))
        except (ValueError, RuntimeError, KeyError) as error:
            raise AdapterError(f"{folder}: PEFT does not load it ({error})") from error
        return logits(model.eval(), probe(base))


def merged_logits(base: Base, folder: str | Path) -> torch.Tensor:
    """Logits on the probe of a transformers folder, computed in float32, tokenised by its own tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet():
        try:
            model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise AdapterError(f"{folder}: transformers does not load it ({error})") from error
    text = "def add(a, b): return 40 + 2  # it's 12:30"
    if list(tokenizer.encode(text, add_special_tokens=False)) != base.encode(text):
        raise AdapterError(f"{folder}: its tokenizer does not give the base's tokens")
    return logits(model.eval(), probe(base).to(model.device))


def gguf_logits(base: Base, path: str | Path) -> torch.Tensor:
    """Logits on the probe of the base with the LoRA that a GGUF file holds."""
    adapter = Adapter(kind="lora", base=base.fingerprint, lora=read_gguf_lora(path, base))
    bound = bind(base, adapter)
    try:
        with bound.active():
            return logits(base.model, probe(base))
    finally:
        bound.detach()


def _alike(model: Any) -> Any:
    """A copy of the model that shares its weights: other programs may put their layers into it."""
    shared: dict[int, Any] = {id(part): part for part in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
