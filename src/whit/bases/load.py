"""Loading a base: the frozen model with its tokenizer, template and fingerprint.

Promises that every size was checked against the file before a model is built, that no code which came
with a base is run, that the weights the model holds are those of the file, and that `Base.weight` gives
them in float32 whatever type the model was loaded in. Knows nothing of adapters.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.bases.dtypes import choose_dtype, require_device
from whit.bases.fingerprint import Fingerprinter, file_state, remember, remembered
from whit.bases.listing import read_licence
from whit.bases.memory import require_memory
from whit.bases.names import Reference, resolve
from whit.bases.quantize import fingerprint_of, join_name, quantised, require_backend, split_name
from whit.bases.source import GgufSource, Source, open_source
from whit.bases.tokenizers import Words, folder_words, gguf_words, stop_ids
from whit.data.templates import Template
from whit.errors import BaseError

if TYPE_CHECKING:
    import torch


@dataclass(eq=False)
class Base:
    """A frozen language model with its tokenizer, known by its fingerprint (64 hex characters).

    `context` is in tokens; `dtype` is `float32` or `bfloat16`; `stop_ids` end an answer.
    """

    name: str
    path: Path
    fingerprint: str
    model: Any
    tokenizer: Any
    template: Template
    context: int
    dtype: str
    licence: str
    stop_ids: tuple[int, ...]
    parameters: int
    source: Source = field(repr=False)
    quantized: str | None = None  # how the layers' projections are held: see `whit.bases.quantize`
    packed: dict[str, Any] = field(default_factory=dict, repr=False)  # the layers that hold them, by module

    def weight(self, module: str) -> torch.Tensor:
        """The weight of a module (say `model.layers.0.self_attn.q_proj`), (rows out, columns in).

        float32, dequantised exactly as the file stores it, read anew at each call; of a quantised base the matrix that
        it computes with. Raises `BaseError`.
        """
        if module in self.packed:
            found: torch.Tensor = self.packed[module].dequantise().cpu()
            return found
        name = f"{module}.weight"
        if name not in self.source.shapes and module == "lm_head":
            name = "model.embed_tokens.weight"  # tied
        if name not in self.source.shapes:
            raise BaseError(f"{self.name} has no module {module!r}.")
        return self.source.read(name)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, with nothing added; special tokens in it are recognised."""
        return list(self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`, without special tokens."""
        return str(self.tokenizer.backend_tokenizer.decode([int(item) for item in ids], skip_special_tokens=True))


def load_base(name: str | Path, *, dtype: str = "auto", device: str = "cpu", quantize: str | None = None) -> Base:
    """Load a base by its name, .gguf file or transformers folder; a name may end in `:nf4` or `:int8`.

    `dtype` is `auto` (what this machine computes a base of this size fastest in), `float32` or `bfloat16`; `quantize`
    says the same as the suffix; `device` is `cpu`, `cuda` or `cuda:N`. Raises `BaseError` for a base that is unknown,
    absent, damaged, not supported, or larger than the memory, and `UsageError` for a device that is not here.

    >>> import tempfile
    >>> from whit.testing import write_tiny_base
    >>> base = load_base(write_tiny_base(tempfile.mkdtemp()), dtype="float32")
    >>> base.context, base.dtype, base.decode(base.encode("pay by card"))
    (256, 'float32', 'pay by card')
    """
    require_device(device)
    if isinstance(name, str):
        name, asked = split_name(name)
        quantize = quantize or asked
    if quantize is not None:
        require_backend(quantize, device)
    reference = resolve(name)
    path = reference.path
    if not reference.present:
        raise BaseError(f"{reference.name} is not on this machine yet; fetch it with: whit pull {reference.name}")
    source = open_source(path)
    words = gguf_words(source.gguf.metadata, path) if isinstance(source, GgufSource) else folder_words(path)
    parameters = sum(math.prod(shape) for shape in source.shapes.values())
    number_type = choose_dtype(dtype, device, parameters)
    require_memory(source, number_type, quantize, device, reference.name)
    model, fingerprint, packed = _build(source, words, number_type, quantize)
    return Base(
        name=join_name(reference.name, quantize),
        path=path,
        fingerprint=fingerprint,
        model=model.to(device),
        tokenizer=words.tokenizer,
        template=Template(words.template, bos=words.bos, eos=words.eos),
        context=int(model.config.max_position_embeddings),
        dtype=str(number_type).removeprefix("torch."),
        licence=_licence(reference, source),
        stop_ids=stop_ids(words, source.config.get("eos_token_id")),
        parameters=parameters,
        source=source,
        quantized=quantize,
        packed=packed,
    )


def _licence(reference: Reference, source: Source) -> str:
    if reference.known is not None:
        return reference.known.licence
    if isinstance(source, GgufSource):
        return str(source.gguf.metadata.get("general.license", "unknown"))[:80]
    return read_licence(reference.path)


def _build(source: Source, words: Words, dtype: torch.dtype, quantize: str | None) -> tuple[Any, str, dict[str, Any]]:
    """The frozen model, the fingerprint (taken while the tensors pass by, unless it is remembered), packed layers."""
    import torch
    import transformers

    architecture = source.architecture
    settings = {key: value for key, value in source.config.items() if key != "model_type"}
    model_class = getattr(transformers, architecture.model_class)
    try:
        config = getattr(transformers, architecture.config_class)(**settings)
        with torch.device("meta"):
            skeleton = model_class(config)
    except Exception as error:  # a configuration may be wrong in any way
        raise BaseError(
            f"{source.path}: its configuration makes no {architecture.model_type} model ({error})."
        ) from error
    wanted = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
    _check_shapes(source, wanted)
    if len(words.tokenizer) > config.vocab_size:
        raise BaseError(
            f"{source.path}: its tokenizer has {len(words.tokenizer)} tokens, its model only {config.vocab_size}."
        )

    known, state = remembered(source), file_state(source)
    hasher = Fingerprinter() if known is None else None
    tensors: dict[str, torch.Tensor] = {}
    packed: dict[str, Any] = {}
    for name in sorted(wanted):
        W = source.read(name)
        if hasher is not None:
            hasher.add(name, W)
        module = name.removesuffix(".weight")
        if quantize is not None and _is_projection(skeleton, module):
            packed[module] = quantised(skeleton.get_submodule(module), W, quantize, dtype)
            W = torch.zeros((), dtype=dtype).expand(W.shape)  # of one number: it only stands in
        tensors[name] = W.to(dtype)
    if hasher is not None:
        known = hasher.hexdigest()
        remember(source, known, state)
    with _quiet():
        model = model_class.from_pretrained(None, config=config, state_dict=tensors, dtype=dtype)
    for module, layer in packed.items():
        parent, _, leaf = module.rpartition(".")
        layer.bias = model.get_submodule(module).bias
        setattr(model.get_submodule(parent), leaf, layer)
    model.requires_grad_(False)
    model.eval()
    return model, str(known) if quantize is None else fingerprint_of(str(known), quantize), packed


def _is_projection(skeleton: Any, module: str) -> bool:
    from torch import nn

    return module.startswith("model.layers.") and isinstance(skeleton.get_submodule(module), nn.Linear)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own progress bar: these tensors are in memory already."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _check_shapes(source: Source, wanted: dict[str, tuple[int, ...]]) -> None:
    missing, extra = wanted.keys() - source.shapes.keys(), source.shapes.keys() - wanted.keys()
    if missing or extra:
        named = ", ".join(sorted(missing or extra)[:3])
        raise BaseError(f"{source.path} {'lacks' if missing else 'has tensors that its model has not:'} {named}.")
    for name, shape in wanted.items():
        if source.shapes[name] != shape:
            raise BaseError(
                f"{source.path}: {name} has the shape {source.shapes[name]}, but its configuration says {shape}."
            )
