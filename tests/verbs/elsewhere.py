"""A device that is not there: numbers on the CPU, in tensors that say they lie elsewhere and meet none that do not.

Inside `Elsewhere()` a tensor that is made on `DEVICE`, or moved there, is an `Away`. An operation on tensors of both
places is an error, as it is between CPU and GPU, and so is one on an `Away` by numpy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("lazy")  # known to torch, and nothing computes there
_MOVES = ("aten::_to_copy", "aten::copy_")
_INDEXES = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


class Away(torch.Tensor):
    """A tensor that says it lies on `DEVICE`."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Away:
        made: Away = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=DEVICE,
        )  # fmt: skip
        made.held = held
        return made

    def __getitem__(self, at: Any) -> torch.Tensor:
        # A list as an index is made a tensor where no mode sees it.
        every = at if isinstance(at, tuple) else (at,)
        return super().__getitem__(tuple(torch.tensor(each) if isinstance(each, list) else each for each in every))

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("numpy cannot read a tensor that lies elsewhere")

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Away({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The operation on what the tensors hold. Raises `RuntimeError` where they lie in two places."""
    name = func._schema.name
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    away = [each for each in tensors if isinstance(each, Away)]
    asked = kwargs.get("device")
    if name in _INDEXES and isinstance(args[0], Away):
        tensors = away  # indices may lie on the CPU
    if name not in _MOVES and away and any(each.dim() and not isinstance(each, Away) for each in tensors):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")
    goes = bool(away) if asked is None else torch.device(asked) == DEVICE
    if name == "aten::copy_":
        goes = isinstance(args[0], Away)
    inner = tree_map(_held, kwargs)
    found = func(*tree_map(_held, args), **(inner if asked is None else {**inner, "device": torch.device("cpu")}))

    def said(each: Any) -> Any:
        if not goes or not isinstance(each, torch.Tensor):
            return each
        # What was changed in place stays the tensor that it was.
        same = [one for one in away if one.held is each]
        return same[0] if same else Away(each)

    return tree_map(said, found)


def _held(each: Any) -> Any:
    return each.held if isinstance(each, Away) else each


class Elsewhere(TorchDispatchMode):
    """A block in which `DEVICE` is there."""

    def __enter__(self) -> Any:
        made = torch.tensor

        def tensor(data: Any, *, device: Any = None, **more: Any) -> torch.Tensor:
            found = made(data, **more)
            return found if device is None else found.to(device)

        self._stack = contextlib.ExitStack()
        # torch.tensor moves what it has made where no mode sees it; and in inference mode no `Away` can be made.
        self._stack.enter_context(mock.patch.object(torch, "tensor", tensor))
        self._stack.enter_context(mock.patch.object(torch, "inference_mode", torch.no_grad))
        return super().__enter__()

    def __exit__(self, *how: Any) -> None:
        self._stack.close()
        super().__exit__(*how)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})
