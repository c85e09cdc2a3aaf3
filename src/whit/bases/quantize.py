"""Quantised bases: the projections of every layer in 4 bits (nf4) or 8, made by bitsandbytes when a base is loaded.

`nf4` is QLoRA's normal float in blocks of 64 with float32 scales (Dettmers et al., 2023, arXiv 2305.14314), `int8` has
one scale a row (LLM.int8() without outliers). Embedding, head and norms stay as they are. A base is asked for so by a
suffix, `smollm2:nf4`, so that whatever takes the name of a base takes a quantised one. The matrix that a layer computes
with is exactly what `dequantise` gives, and the same on every machine: it is made from the file's float32 content.

The fingerprint of a quantised base is SHA-256 over the line `whit base 1 nf4` (or `int8`) and its base's fingerprint.
Knows nothing of adapters.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from typing import TYPE_CHECKING, Any

from whit.errors import BaseError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

METHODS = ("nf4", "int8")
BLOCK = 64
BYTES = {"nf4": 0.5 + 4 / BLOCK, "int8": 1.0}  # a weight's, scales of int8 rows left out


def split_name(name: str) -> tuple[str, str | None]:
    """A base's name without its suffix, and the method that the suffix asks for."""
    plain, colon, method = name.rpartition(":")
    return (plain, method) if colon and plain and method in METHODS else (name, None)


def join_name(name: str, method: str | None) -> str:
    """The name of the base quantised so. Raises `UsageError` where it asks for two methods."""
    plain, already = split_name(name)
    if method is None or already == method:
        return name
    if already:
        raise UsageError(f"--quantize {method}: the base {name} is quantised as {already} by its name; choose one")
    return f"{plain}:{method}"


def fingerprint_of(fingerprint: str, method: str) -> str:
    """The fingerprint of a base that is quantised."""
    return hashlib.sha256(f"whit base 1 {method}\n{fingerprint}".encode()).hexdigest()


def import_bitsandbytes() -> None:
    """Import it without what it does unasked: on some CPUs it fetches native code from a hub, or says that it cannot.

    It does so by the package `kernels`, which is not to be had meanwhile. To be called before PEFT is used too, which
    imports it wherever it is installed. Raises what the import does.
    """
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    disabled, known = logger.disabled, {name: sys.modules[name] for name in ("kernels",) if name in sys.modules}
    logger.disabled, sys.modules["kernels"] = True, None  # type: ignore[assignment]  # what imports take for absent
    try:
        import bitsandbytes  # noqa: F401
    finally:
        logger.disabled = disabled
        del sys.modules["kernels"]
        sys.modules.update(known)


def require_backend(method: str, device: str) -> None:
    """Raise `BaseError` where bitsandbytes is missing, or cannot quantise on this device."""
    import torch

    try:
        import_bitsandbytes()
    except ImportError as error:
        raise BaseError(
            f"a base in {method} needs the package bitsandbytes ({error}): pip install 'whit[quantize]', or leave out "
            f"--quantize and the suffix :{method}"
        ) from error
    except Exception as error:  # its native part may fail to load in any way
        raise BaseError(
            f"bitsandbytes is here but does not load ({type(error).__name__}: {error}); install a build for this "
            "machine, or leave out --quantize"
        ) from error
    try:
        probe = torch.linspace(-1, 1, 4 * BLOCK, device=device).reshape(2, -1)
        held, scales = _pack(probe, method)
        back = _unpack(held, scales, tuple(probe.shape), method)
        works = bool((back - probe).abs().max() < 0.2)
    except (RuntimeError, NotImplementedError, AttributeError, ValueError) as error:
        why = (str(error).splitlines() or [""])[0][:200]
        raise BaseError(
            f"bitsandbytes has no backend here that quantises as {method} on {device} ({why}); "
            "leave out --quantize, or use another machine"
        ) from error
    if not works:
        raise BaseError(
            f"bitsandbytes does not give back what it quantised as {method} on {device}; leave out --quantize"
        )


def _pack(W: torch.Tensor, method: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The packed matrix and its scales."""
    from bitsandbytes import functional

    if method == "int8":
        # A row of zeros has no scale; any will do.
        safe = W.clone()
        safe[:, 0] = W[:, 0].where(W.abs().amax(1) > 0, 1e-30)
        held, scales, _ = functional.int8_vectorwise_quant(safe.contiguous())
        return held, scales
    held, state = functional.quantize_4bit(W.contiguous(), blocksize=BLOCK, compress_statistics=False, quant_type="nf4")
    return held, state.absmax


def _unpack(held: torch.Tensor, scales: torch.Tensor, shape: tuple[int, ...], method: str) -> torch.Tensor:
    """The float32 matrix of these shapes."""
    import torch

    if method == "int8":
        return held.float() * (scales / 127.0)[:, None]
    found: torch.Tensor = torch.ops.bitsandbytes.dequantize_4bit.default(
        held, scales, BLOCK, "nf4", shape, torch.float32
    )
    return found


def quantised(linear: nn.Linear, W: torch.Tensor, method: str, dtype: torch.dtype) -> nn.Linear:
    """A layer that holds `W` (float32, (out, in)) packed and computes in `dtype`; `linear` gives the bias."""
    held, scales = _pack(W, method)
    made: nn.Linear = _layer_class()(held, scales, tuple(W.shape), method, dtype, linear.bias)
    return made


_made: list[Any] = []


def _layer_class() -> Any:
    """`PackedLinear`; made on first use, since this module must not import torch."""
    if _made:
        return _made[0]
    import torch
    from torch import nn

    class Product(torch.autograd.Function):
        """x Wᵀ + b, of which nothing as large as W is kept for the way back: it is unpacked again there.

        W's own gradient goes to `stand_in`, where there is one.
        """

        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, layer: Any, stand_in: torch.Tensor | None) -> torch.Tensor:
            ctx.layer = layer
            if stand_in is not None:
                ctx.save_for_backward(x)
            return nn.functional.linear(x, layer.dequantise(x.dtype), layer.bias)

        @staticmethod
        def backward(ctx: Any, *given: Any) -> Any:
            dy, dx, dW = given[0], None, None
            if ctx.needs_input_grad[0]:
                dx = dy @ ctx.layer.dequantise(dy.dtype)
            if ctx.needs_input_grad[2]:
                dW = dy.flatten(0, -2).mT @ ctx.saved_tensors[0].flatten(0, -2)
            return dx, None, dW

    class PackedLinear(nn.Linear):
        """A frozen linear layer whose matrix is packed; `weight` unpacks it anew at each look.

        `stand_in` is None, or a leaf of the matrix's shape that gets the gradient which `weight` cannot hold.
        """

        packed = True
        stand_in: torch.Tensor | None = None
        held: torch.Tensor
        scales: torch.Tensor

        def __init__(
            self,
            held: torch.Tensor,
            scales: torch.Tensor,
            shape: tuple[int, ...],
            method: str,
            dtype: torch.dtype,
            bias: nn.Parameter | None,
        ) -> None:
            nn.Module.__init__(self)
            self.out_features, self.in_features = shape
            self.method, self._dtype = method, dtype
            self.register_buffer("held", held, persistent=False)
            self.register_buffer("scales", scales, persistent=False)
            self.bias = bias  # type: ignore[assignment]  # None where there is none, as in torch

        @property
        def weight(self) -> torch.Tensor:  # type: ignore[override]
            return self.dequantise(self._dtype)

        def dequantise(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            """The matrix, (out, in)."""
            with torch.no_grad():
                return _unpack(self.held, self.scales, (self.out_features, self.in_features), self.method).to(dtype)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """x Wᵀ + b."""
            found: torch.Tensor = Product.apply(x, self, self.stand_in)  # type: ignore[no-untyped-call]
            return found

    _made.append(PackedLinear)
    return PackedLinear
