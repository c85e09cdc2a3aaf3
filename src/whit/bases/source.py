"""Where a base's tensors lie: a folder of safetensors, or a GGUF file, read tensor by tensor.

Both give the same view: transformers' names, shapes, and float32 content exactly as the file stores
it (dequantised, in transformers' layout). Promises that all sizes were checked against the files
before anything is read, and that reading one tensor does not read the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from whit.bases.architectures import (
    Architecture,
    check_bounds,
    gguf_architecture_of,
    gguf_config,
    gguf_name,
    gguf_transform,
)
from whit.bases.configs import folder_config, weight_files
from whit.bases.gguf_file import GgufFile
from whit.bases.safetensors_file import SafetensorsFile
from whit.errors import BaseError

if TYPE_CHECKING:
    import torch

# computed tables that some converters leave in their files; no weight of any base
_TABLES = ("rotary_emb.inv_freq",)


class Source(Protocol):
    """What loading, fingerprint and basis need of a base's files."""

    path: Path
    files: list[Path]
    architecture: Architecture
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]

    def read(self, name: str) -> torch.Tensor:
        """The tensor of this name (transformers') as float32."""
        ...


class FolderSource:
    """A transformers folder. Raises `BaseError`."""

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder)
        self.architecture, self.config = folder_config(self.path)
        self.files = weight_files(self.path)
        self._holder: dict[str, SafetensorsFile] = {}
        for item in self.files:
            stored = SafetensorsFile(item)
            for name in stored.tensors:
                if name.endswith(_TABLES):
                    continue
                if name in self._holder:
                    raise BaseError(f"{self.path} holds the tensor {name!r} in two files.")
                self._holder[name] = stored
        self.shapes = {name: stored.tensors[name].shape for name, stored in self._holder.items()}
        if self.config.get("tie_word_embeddings", _tied_by_default(self.architecture)):
            # Some writers store the tied head again; the embedding is what counts.
            self.shapes.pop("lm_head.weight", None)
        check_layers(self)

    def read(self, name: str) -> torch.Tensor:
        """The tensor of this name as float32."""
        return self._holder[name].read(name)


class GgufSource:
    """A GGUF file. Raises `BaseError`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.files = [self.path]
        self.gguf = GgufFile(self.path)
        stored = {name: tensor.shape for name, tensor in self.gguf.tensors.items()}
        self.architecture = gguf_architecture_of(self.gguf.metadata.get("general.architecture"), self.path)
        self.config = gguf_config(self.architecture, self.gguf.metadata, stored, self.path)
        check_bounds(self.config, self.path)
        self._names: dict[str, str] = {}
        for name in stored:
            own = gguf_name(self.architecture, name)
            if own is None:
                raise BaseError(f"{self.path}: the tensor {name!r} is none that {self.architecture.gguf} has.")
            self._names[own] = name
        self.shapes = {own: stored[name] for own, name in self._names.items()}
        check_layers(self)

    def read(self, name: str) -> torch.Tensor:
        """The tensor of this name as float32, in transformers' layout."""
        W = self.gguf.read(self._names[name])
        transform = gguf_transform(self.architecture, name, self.config)
        return transform(W) if transform is not None else W


def open_source(path: str | Path) -> Source:
    """The source at `path`: a folder or a .gguf file. Raises `BaseError`."""
    target = Path(path)
    if target.is_dir():
        return FolderSource(target)
    if target.is_file():
        return GgufSource(target)
    raise BaseError(f"there is no base at {target}.")


def check_layers(source: Source) -> None:
    """Refuse a layer count that the tensors do not bear out, before any model of it is built."""
    prefix = "model.layers."
    seen = {name.split(".")[2] for name in source.shapes if name.startswith(prefix)}
    said = source.config["num_hidden_layers"]
    if len(seen) != said:
        raise BaseError(f"{source.path} says it has {said} layers, but holds tensors of {len(seen)}.")


def _tied_by_default(architecture: Architecture) -> bool:
    # What each configuration class of transformers assumes where config.json does not say.
    return architecture.model_type in ("gemma3_text", "smollm3")
