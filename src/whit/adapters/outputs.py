"""What every adaptable module of a base puts out on a fixed text, computed in float64.

The basis is made of these outputs, so they have to be the same everywhere: the base's own forward runs with its float32
weights widened layer by layer, and with norms and rotary tables in float64 too, where transformers would fall back to
float32. Machines, libraries and thread counts then differ by about 1e-13, far below the rounding of what is
kept. The model is left as it was found. Knows nothing of bases' rules, vectors or files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from whit.bases import Base

TEXT = "calibration.txt"
TOKENS = 384
SKIPPED = 8  # a text's first tokens carry huge outputs of their own in many bases


def module_outputs(base: Base, modules: Sequence[str]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Outputs of the named modules on the calibration text, each (tokens, out) in float64, and their float32 weights.

    A base that was loaded in another number type, or elsewhere than on the CPU, is read again: directions are the same
    wherever they are made.
    """
    from whit.bases import load_base

    if base.dtype != "float32" or base.model.device.type != "cpu":
        base = load_base(base.path, dtype="float32", quantize=base.quantized)
    decoder: Any = base.model.get_decoder()
    text = (resources.files("whit.adapters") / TEXT).read_text(encoding="utf-8")
    ids = base.encode(text)[: min(TOKENS, base.context)]
    tokens = torch.tensor([ids], device=base.model.device)
    found: dict[str, torch.Tensor] = {}

    def keeper(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, given: Any, out: torch.Tensor) -> None:
            found[name] = out[0, min(SKIPPED, len(ids) // 4) :].detach().cpu()

        return keep

    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_wide(decoder))
        for name in modules:
            hook = base.model.get_submodule(name).register_forward_hook(keeper(name))
            stack.callback(hook.remove)
        embed: Any = decoder.get_input_embeddings()
        start = embed(tokens).double()
        decoder(inputs_embeds=start, use_cache=False)
    return {name: (found[name], _weight(base.model.get_submodule(name))) for name in modules}


def _weight(module: nn.Module) -> torch.Tensor:
    """The matrix of a linear layer, adapted or not."""
    bare: Any = getattr(module, "linear", None) or getattr(module, "base_layer", None) or module
    weight: torch.Tensor = bare.weight.detach().cpu()
    return weight


@contextlib.contextmanager
def _wide(decoder: Any) -> Iterator[None]:
    """A block in which the decoder computes in float64; only the layer at work is held so wide."""
    undo: list[Callable[[], object]] = []
    narrow: dict[nn.Module, list[tuple[nn.Parameter, torch.Tensor]]] = {}

    def widen(module: nn.Module, given: Any) -> None:
        narrow[module] = [(part, part.data) for part in module.parameters()]
        for part, _ in narrow[module]:
            part.data = part.data.double()

    def restore(module: nn.Module, given: Any = None, out: Any = None) -> None:
        for part, before in narrow.pop(module, []):
            part.data = before

    try:
        for module in decoder.modules():
            if type(module).__name__.endswith("RMSNorm"):
                undo.append(_replace(module, _norm(module)))
            elif type(module).__name__.endswith("RotaryEmbedding"):
                undo.append(_replace(module, _rotary(module)))
        for layer in (*decoder.layers, decoder.norm):
            undo.append(layer.register_forward_pre_hook(widen).remove)
            undo.append(layer.register_forward_hook(restore).remove)
        yield
    finally:
        for back in undo:
            back()
        for module in list(narrow):
            restore(module)


def _replace(module: nn.Module, forward: Callable[..., Any] | None) -> Callable[[], object]:
    if forward is None:
        return lambda: None
    module.forward = forward
    return lambda: module.__dict__.pop("forward", None)


def _norm(module: nn.Module) -> Callable[..., Any] | None:
    """The norm without transformers' step down to float32; None for one that is not known."""
    weight: torch.Tensor | None = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if weight is None or eps is None:
        return None
    probe = torch.linspace(-2, 3, weight.shape[0], device=weight.device)[None]
    expected = module(probe)
    for shift in (0.0, 1.0):  # Gemma's weights are differences from 1

        def forward(x: torch.Tensor, shift: float = shift) -> torch.Tensor:
            scaled = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
            now: torch.Tensor = module.weight  # type: ignore[assignment]  # widened since
            return scaled * (now.to(x.dtype) + shift)

        if torch.allclose(forward(probe), expected, rtol=1e-4, atol=1e-5):
            return forward
    return None


def _rotary(module: nn.Module) -> Callable[..., Any] | None:
    """Rotary tables in float64; None for a kind that is not known, which then keeps its float32 tables."""
    frequencies = getattr(module, "inv_freq", None)
    if frequencies is None:
        return None
    half = frequencies.shape[0]
    exact = frequencies.double()
    config = getattr(module, "config", None)
    settings = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    theta = settings.get("rope_theta", getattr(config, "rope_theta", None))
    if theta is not None:
        plain = 1.0 / float(theta) ** (torch.arange(half, dtype=torch.float64, device=exact.device) / half)
        if torch.allclose(plain, exact, rtol=1e-5, atol=0):
            exact = plain
    scaling = float(getattr(module, "attention_scaling", 1.0))

    def forward(x: torch.Tensor, position_ids: torch.Tensor, *more: Any, **others: Any) -> Any:
        angles = position_ids[..., None].double() * exact
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * scaling).to(x.dtype), (angles.sin() * scaling).to(x.dtype)

    places = torch.arange(16, device=exact.device)[None]
    probe = torch.zeros(1, 16, 2 * half, device=exact.device)
    try:
        expected = module(probe, places)
    except (TypeError, RuntimeError):
        return None
    same = all(torch.allclose(a, b, atol=1e-4) for a, b in zip(forward(probe, places), expected, strict=True))
    return forward if same else None
