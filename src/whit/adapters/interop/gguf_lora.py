"""GGUF LoRA files, as llama.cpp's `convert_lora_to_gguf.py` writes them and `llama_adapter_lora_init` reads them.

`general.type` is adapter, `adapter.type` lora, and for each module there are `blk.N.attn_q.weight.lora_a` (r, in)
and `.lora_b` (out, r), in float32. llama.cpp interleaves the two halves of each head's rows of q and k for Llama
(its rotary embedding pairs neighbours), so B's rows are permuted in the same way; A's are not. The update is
scaled by alpha / r. Promises that reading back what was written gives the same tensors. Needs the `gguf` package.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from whit.adapters.lora import LoraWeights
from whit.adapters.targets import all_targets
from whit.errors import AdapterError, BaseError, DamagedAdapter
from whit.files import atomic_open

if TYPE_CHECKING:
    from whit.bases import Base

# transformers' model_type -> llama.cpp's architecture, and whether it permutes q and k
# (the LlamaModel classes of llama.cpp's converter do, where `undo_permute` is set)
_ARCHITECTURES = {
    "llama": ("llama", True),
    "mistral": ("llama", True),
    "smollm3": ("smollm3", True),
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
    "gemma3_text": ("gemma3", False),
}
_NAMES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def write_gguf_lora(weights: LoraWeights, base: Base, path: str | Path) -> Path:
    """Write `weights` of `base` as a GGUF LoRA; returns the file.

    Raises `AdapterError` for alpha = 0, `BaseError` where llama.cpp knows no such architecture, and
    `StorageError` where the disk refuses.
    """
    from gguf import GGUFType, GGUFWriter
    from gguf.gguf_writer import WriterState

    architecture, _ = _architecture(base)
    if weights.alpha == 0:
        raise AdapterError("a LoRA with alpha 0 changes nothing, and llama.cpp would take it for alpha = r")
    target = Path(path)
    writer = GGUFWriter(None, architecture)
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(weights.alpha))
    if base.fingerprint:
        writer.add_string("whit.base_fingerprint", base.fingerprint)
    for name, stored, heads in _modules(base):
        if name in weights.A:
            B = weights.B[name].float()
            writer.add_tensor(f"{stored}.lora_a", weights.A[name].float().contiguous().numpy())
            writer.add_tensor(f"{stored}.lora_b", (_interleave(B, heads) if heads else B).contiguous().numpy())
    with atomic_open(target) as handle:
        writer.fout, writer.state = [handle], WriterState.EMPTY
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.write_padding(handle, handle.tell())
        # Not by `write_tensors_to_file`: numpy's `tofile`, which it calls, says nothing of a disk that refuses.
        for part in writer.tensors[0].values():
            handle.write(part.tensor.tobytes())
            writer.write_padding(handle, part.nbytes)
    return target


def read_gguf_lora(path: str | Path, base: Base) -> LoraWeights:
    """Read a GGUF LoRA that was made for `base`, in transformers' layout. Raises `DamagedAdapter`."""
    from gguf import GGUFReader, dequantize

    architecture, _ = _architecture(base)
    try:
        reader = GGUFReader(str(path))
        fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        stored = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    except (OSError, ValueError, KeyError, IndexError, NotImplementedError) as error:
        raise DamagedAdapter(f"{path}: not a whole GGUF file ({error})") from error
    said = (fields.get("general.type"), fields.get("adapter.type"), fields.get("general.architecture"))
    if said != ("adapter", "lora", architecture):
        raise DamagedAdapter(f"{path}: a LoRA for {architecture} was expected, not {said}")
    A, B = {}, {}
    for name, stem, heads in _modules(base):
        if f"{stem}.lora_a" in stored and f"{stem}.lora_b" in stored:
            A[name] = torch.tensor(stored.pop(f"{stem}.lora_a"))
            part = torch.tensor(stored.pop(f"{stem}.lora_b"))
            B[name] = _restore(part, heads) if heads else part
    ranks = {part.shape[0] for part in A.values()} | {part.shape[1] for part in B.values()}
    if stored or len(ranks) != 1:
        raise DamagedAdapter(f"{path}: its tensors make no LoRA of {base.name}")
    alpha = float(fields.get("adapter.lora.alpha") or 0.0)
    rank = ranks.pop()
    return LoraWeights(rank=rank, alpha=alpha or float(rank), A=A, B=B, base_name=base.name)


def _architecture(base: Base) -> tuple[str, bool]:
    model_type = str(base.model.config.model_type)
    if model_type not in _ARCHITECTURES:
        raise BaseError(f"{base.name}: whit writes no GGUF LoRA for the architecture {model_type}")
    return _ARCHITECTURES[model_type]


def _modules(base: Base) -> list[tuple[str, str, int]]:
    """Of each module: its name, the GGUF name of its matrix, and the heads by which its rows are permuted, or 0."""
    config = base.model.config
    permuted = _architecture(base)[1]
    found = []
    for target in all_targets(name for name, _ in base.model.named_modules()):
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        stored = f"blk.{target.layer}.{_NAMES[target.projection]}.weight"
        found.append((target.name, stored, int(heads.get(target.projection, 0)) if permuted else 0))
    return found


def _interleave(B: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows (head, half, pair) -> (head, pair, half): llama.cpp's `permute`."""
    return B.reshape(heads, 2, B.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(B.shape)


def _restore(B: torch.Tensor, heads: int) -> torch.Tensor:
    """The inverse of `_interleave`."""
    return B.reshape(heads, B.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(B.shape)
