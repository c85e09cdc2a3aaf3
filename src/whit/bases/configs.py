"""A transformers folder's config.json, checked before transformers sees it.

Promises that no configuration which names code of its own is loaded, that only known keys are
believed, and that a folder with pickled weights is refused with the reason. Imports no torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from whit.bases.architectures import CONFIG_KEYS, Architecture, architecture_of, check_bounds
from whit.errors import BaseError

MAX_JSON = 64 * 1024 * 1024
_CODE_KEYS = (
    "auto_map",
    "custom_pipelines",
    "trust_remote_code",
    "custom_code",
    "use_kernels",
    "kernel_config",
)
_ATTENTION_KEYS = ("_attn_implementation", "attn_implementation", "_attn_implementation_internal")
_ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flex_attention")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def read_json(path: Path, *, most: int = MAX_JSON) -> dict[str, Any]:
    """A JSON object from a file of bounded size. Raises `BaseError`."""
    try:
        with path.open("rb") as handle:
            content = handle.read(most + 1)
        if len(content) > most:
            raise BaseError(f"{path} is larger than {most} bytes, which no such file of a base is.")
        value = json.loads(content)
    except OSError as error:
        raise BaseError(f"cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise BaseError(f"{path} is not JSON ({error}); fetch or copy the base again.") from None
    if not isinstance(value, dict):
        raise BaseError(f"{path} is not a JSON object; fetch or copy the base again.")
    return value


def refuse_code(value: Any, where: Path, depth: int = 0) -> None:
    """Refuse a configuration in which any key, at any depth, asks for code of its own."""
    if depth > 32:
        raise BaseError(f"{where} is nested more than 32 deep; that is no configuration of a base.")
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in _CODE_KEYS and inner not in (None, False, {}, []):
                raise BaseError(
                    f"{where} asks for code of its own ({key!r}); whit never runs code that comes with a "
                    "base. Use a base of a supported architecture."
                )
            if key in _ATTENTION_KEYS and inner not in _ATTENTION:
                raise BaseError(f"{where} names the attention code {inner!r}; whit never loads code for a base.")
            refuse_code(inner, where, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            refuse_code(inner, where, depth + 1)


def folder_config(folder: Path) -> tuple[Architecture, dict[str, Any]]:
    """The architecture, and those keys of config.json which are believed. Raises `BaseError`."""
    path = folder / "config.json"
    if not path.is_file():
        raise BaseError(
            f"{folder} is not a base: it has no config.json. Give a transformers folder, a .gguf file or a "
            "name from `whit bases`."
        )
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        if (folder / name).is_file():
            refuse_code(read_json(folder / name), folder / name)
    raw = read_json(path)
    architecture = architecture_of(raw.get("model_type"), path)
    if raw.get("quantization_config"):
        raise BaseError(
            f"{path}: this folder's weights are already quantised, which is not supported; use the original."
        )
    config = {key: value for key, value in raw.items() if key in CONFIG_KEYS}
    check_bounds(config, path)
    return architecture, config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, in order. Raises `BaseError`, also where there are only pickles."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = read_json(index).get("weight_map")
        if not isinstance(named, dict) or not named:
            raise BaseError(f"{index} has no weight_map; fetch or copy the base again.")
        files = []
        for name in sorted({str(value) for value in named.values()}):
            # a name in the index is a name, never a path
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise BaseError(f"{index} names {name!r}, which is no safetensors file of this folder.")
            if not (folder / name).is_file():
                raise BaseError(f"{folder} lacks {name}, which its index names; fetch or copy the base again.")
            files.append(folder / name)
        return files
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    pickles = sorted(item.name for item in folder.iterdir() if item.suffix in _PICKLES)
    if pickles:
        raise BaseError(
            f"{folder} holds its weights only as {', '.join(pickles[:3])}: pickles can run code when they "
            "are read, so whit refuses them. Save the model as safetensors (model.save_pretrained does)."
        )
    raise BaseError(f"{folder} has a config.json but no model.safetensors; fetch or copy the base again.")
