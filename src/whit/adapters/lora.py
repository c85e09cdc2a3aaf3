"""LoRA adapters as PEFT folders: safetensors only, with a config that is checked before PEFT sees it.

`LoraWeights` are the tensors and settings of such a folder. Sizes are checked before anything is
allocated; keys of the config are taken by allow-list, so that nothing in a folder can ask for code or for
another way of training. Knows nothing of the compact file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.adapters.targets import Target
from whit.errors import DamagedAdapter
from whit.files import atomic_write

if TYPE_CHECKING:
    import torch

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
_LARGEST_CONFIG, _LARGEST_WEIGHTS = 1 << 20, 4 << 30
_PREFIX = "base_model.model."
_BASE_NOTE = "whit_base_fingerprint"
_DTYPES = ("torch.float32", "torch.float16", "torch.bfloat16")
# Settings that change what a LoRA computes, and the only values of them that whit reads.
_REFUSED = {
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "fan_in_fan_out": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "trainable_token_indices": (None,),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "auto_mapping": (None,),
    "use_qalora": (False, None),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
}


@dataclass(frozen=True)
class LoraWeights:
    """One LoRA: `A[name]` of shape (r, in) and `B[name]` of shape (out, r) for each module name.

    The adapted matrix is W + (alpha / rank) B A. `base` is whit's fingerprint of the base, empty if unknown.
    """

    rank: int
    alpha: float
    A: Mapping[str, torch.Tensor]
    B: Mapping[str, torch.Tensor]
    base: str = ""
    base_name: str = ""
    dropout: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    @property
    def numbers(self) -> int:
        """How many trained numbers there are."""
        return sum(part.numel() for part in (*self.A.values(), *self.B.values()))

    @property
    def payload_bytes(self) -> int:
        """Bytes of the trained numbers alone."""
        return sum(part.numel() * part.element_size() for part in (*self.A.values(), *self.B.values()))

    @property
    def number_type(self) -> str:
        """The type that the tensors are stored in."""
        return str(next(iter(self.A.values())).dtype).removeprefix("torch.")

    @classmethod
    def load(cls, folder: str | Path) -> LoraWeights:
        """Read a PEFT folder. Raises `DamagedAdapter` with the reason."""
        path = Path(folder)
        config = _config_in(path)
        weights = path / WEIGHTS_NAME
        if not weights.is_file():
            pickled = (path / "adapter_model.bin").exists()
            raise DamagedAdapter(
                f"{path}: there is no {WEIGHTS_NAME}"
                + (
                    "; adapter_model.bin is a pickled file, which can run code when read, and is refused"
                    if pickled
                    else ""
                )
            )
        if weights.stat().st_size > _LARGEST_WEIGHTS:
            raise DamagedAdapter(f"{weights}: {weights.stat().st_size} bytes; at most {_LARGEST_WEIGHTS} are read")
        try:
            return cls.from_bytes(config, weights.read_bytes(), path)
        except OSError as error:
            raise DamagedAdapter(f"{weights}: cannot be read ({error.strerror or error})") from error

    @classmethod
    def from_bytes(cls, config: bytes, content: bytes, folder: str | Path) -> LoraWeights:
        """The same from the bytes of its config and its weights; `folder` is how errors call where they are from."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        path, weights = Path(folder), Path(folder) / WEIGHTS_NAME
        checked = _checked(config, path / CONFIG_NAME)
        A: dict[str, torch.Tensor] = {}
        B: dict[str, torch.Tensor] = {}
        try:
            # Not `safe_open`: it loses 64 bytes with every tensor that it reads (0.8.0), which a server would feel.
            for key, tensor in load(content).items():
                name, side = _parse_key(key, weights)
                (A if side == "A" else B)[name] = tensor
            about = _header(content).get("__metadata__") or {}
        except (SafetensorError, KeyError, ValueError) as error:
            raise DamagedAdapter(f"{weights}: not a whole safetensors file ({error})") from error
        rank = int(checked["r"])
        for name in A.keys() | B.keys():
            pair = [side[name] for side in (A, B) if name in side]
            if len(pair) < 2 or any(part.dim() != 2 or str(part.dtype) not in _DTYPES for part in pair):
                raise DamagedAdapter(f"{weights}: {name} needs two matrices, A and B, of {', '.join(_DTYPES)}")
            if A[name].shape[0] != rank or B[name].shape[1] != rank:
                raise DamagedAdapter(f"{weights}: the tensors of {name} do not make a LoRA of rank {rank}")
            if not bool(A[name].isfinite().all() and B[name].isfinite().all()):
                raise DamagedAdapter(f"{weights}: {name} holds NaN or infinite numbers")
        if not A:
            raise DamagedAdapter(f"{weights}: there is no tensor in it")
        return cls(
            rank=rank,
            alpha=float(checked.get("lora_alpha", rank)),
            A=A,
            B=B,
            base=about.get(_BASE_NOTE, ""),
            base_name=str(checked.get("base_model_name_or_path") or ""),
            dropout=float(checked.get("lora_dropout", 0.0)),
        )

    def save(self, folder: str | Path) -> Path:
        """Write a folder that `PeftModel.from_pretrained` reads. Raises `StorageError`."""
        path = Path(folder)
        config, content = self.to_bytes()
        atomic_write(path / WEIGHTS_NAME, content)
        # The config comes last: a folder that has one is whole.
        atomic_write(path / CONFIG_NAME, config)
        return path / WEIGHTS_NAME

    def to_bytes(self) -> tuple[bytes, bytes]:
        """The folder's config and weights; equal LoRAs give equal bytes."""
        from safetensors.torch import save

        tensors = {}
        for name in sorted(self.A):
            tensors[f"{_PREFIX}{name}.lora_A.weight"] = self.A[name].contiguous()
            tensors[f"{_PREFIX}{name}.lora_B.weight"] = self.B[name].contiguous()
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base_name,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": sorted(self.A),
            "bias": "none",
            "inference_mode": True,
        }
        # In the tensors' own note: PEFT warns of settings that it does not know.
        about = {"format": "pt", _BASE_NOTE: self.base}
        return (json.dumps(config, indent=2) + "\n").encode(), _in_order(save(tensors, metadata=about))

    def targets_in(self, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        """Those of a base's targets that this LoRA adapts. Raises `DamagedAdapter` where it names others."""
        known = {target.name for target in targets}
        strange = sorted(set(self.A) - known)
        if strange:
            raise DamagedAdapter(f"this LoRA adapts {strange[0]}, which is no projection of the base")
        return tuple(target for target in targets if target.name in self.A)


def _in_order(content: bytes) -> bytes:
    """The same safetensors file with its notes in order.

    The library writes them in another order in every process; equal adapters are to be equal files.
    """
    size = int.from_bytes(content[:8], "little")
    header = _header(content)
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def _header(content: bytes) -> dict[str, Any]:
    """What a safetensors file says of its tensors; for content that the library has read or written."""
    header: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header


def lora_config(folder: Path) -> dict[str, Any]:
    """The settings of the LoRA in a PEFT folder. Raises `DamagedAdapter` where they are not ones that whit reads."""
    return _checked(_config_in(folder), folder / CONFIG_NAME)


def _config_in(folder: Path) -> bytes:
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise DamagedAdapter(f"{folder}: there is no {CONFIG_NAME} in it; it is no folder of a LoRA")
    try:
        with path.open("rb") as handle:
            return handle.read(_LARGEST_CONFIG + 1)
    except OSError as error:
        raise DamagedAdapter(f"{path}: cannot be read ({error.strerror or error})") from error


def _checked(content: bytes, path: Path) -> dict[str, Any]:
    if len(content) > _LARGEST_CONFIG:
        raise DamagedAdapter(f"{path}: a LoRA's settings have at most {_LARGEST_CONFIG} bytes")
    try:
        config = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedAdapter(f"{path}: not JSON ({error})") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise DamagedAdapter(f"{path}: peft_type is {kind!r}; whit reads LORA here")
    if "auto_map" in config:
        raise DamagedAdapter(f"{path}: auto_map asks to run code from the folder; whit never does")
    for key, allowed in _REFUSED.items():
        if key in config and config[key] not in allowed:
            raise DamagedAdapter(
                f"{path}: {key} = {config[key]!r} is not supported; retrain or merge the adapter without it"
            )
    rank = config.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= 4096:
        raise DamagedAdapter(f"{path}: r = {rank!r} is no rank")
    alpha = config.get("lora_alpha", rank)
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not abs(alpha) < 1e6:
        raise DamagedAdapter(f"{path}: lora_alpha = {alpha!r} is no number that scales a LoRA")
    dropout = config.get("lora_dropout", 0.0)
    if not isinstance(dropout, int | float) or isinstance(dropout, bool) or not 0 <= dropout < 1:
        raise DamagedAdapter(f"{path}: lora_dropout = {dropout!r} is no share of inputs to drop")
    return config


def _parse_key(key: str, path: Path) -> tuple[str, str]:
    name = key.removeprefix(_PREFIX)
    for side in ("A", "B"):
        suffix = f".lora_{side}.weight"
        if name.endswith(suffix):
            return name.removesuffix(suffix), side
    raise DamagedAdapter(f"{path}: the tensor {key} belongs to no plain LoRA")
