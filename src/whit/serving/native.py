"""The 8-bit model's layers as one call: `native.c`, compiled once for this machine and kept in the cache folder.

PyTorch computes a step of 32 rows in some 1,500 operations; on two cores that costs more than the arithmetic. Where
there is a C compiler and the processor multiplies bytes (AVX-512 VNNI), the step is one function instead; it reads
prompts too, so that a token's state is the same to the last bit whatever is computed beside it, and in whatever parts.
Elsewhere `load` gives None, says why, and everything is computed by PyTorch. `WHIT_NATIVE=0` asks for that. The library
shares PyTorch's OpenMP team: two teams would wait for one another.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from whit.bases.cache import cache_folder
from whit.files import is_private

if TYPE_CHECKING:
    from whit.serving.int8 import Int8Model
    from whit.serving.pool import Served

_SOURCE = Path(__file__).with_name("native.c")
_NEEDED = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "fma"})
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
_LANES = 16  # sizes must be multiples of this
_HADAMARD = 64  # a block of so many inputs of down is turned by sums and differences
_SECONDS = 60.0  # for the compiler
_TOKENS = 128  # of a prompt at a time: what is computed of them stays near the processor
_MOST_THREADS = 32  # each has its part of every piece of work on the caller's stack


class _Product(ctypes.Structure):
    _fields_ = (
        ("w", ctypes.c_void_p), ("minus", ctypes.c_void_p), ("scale", ctypes.c_void_p),
        ("inputs", ctypes.c_int64), ("columns", ctypes.c_int64), ("out", ctypes.c_int64),
    )  # fmt: skip


class _Move(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("R", "US", "ends")),
        *((name, ctypes.c_int64) for name in ("z", "size", "rank")),
    )


class _Lora(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("A", "B", "ends")),
        *((name, ctypes.c_int64) for name in ("rank", "size")),
    )


class _Best(ctypes.Structure):
    _fields_ = (("most", ctypes.c_float), ("column", ctypes.c_int64))


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("products", "turn", "spread", "residual")),
        *((name, ctypes.c_int64) for name in ("layers", "width", "heads", "kv_heads", "dim", "wide", "block")),
        ("eps", ctypes.c_float),
    )  # fmt: skip


class _Step(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("moves", "moved", "loras", "t")),
        *((name, ctypes.c_void_p) for name in ("slots", "places", "cos", "sin", "kv")),
        *((name, ctypes.c_int64) for name in ("layer_stride", "v_stride", "slot_stride", "head_stride")),
        *((name, ctypes.c_void_p) for name in ("embeds", "h", "y", "x", "scales", "room")),
        *((name, ctypes.c_int64) for name in ("rows", "ranks", "sizes", "columns", "inputs", "rooms", "threads")),
    )  # fmt: skip


@dataclass(frozen=True)
class Library:
    """The compiled functions, or why there are none."""

    code: Any
    why: str = ""


@cache
def load() -> Library:
    """The library, compiled if it was not; the reason where it cannot be had."""
    why = _lacking()
    if why:
        return Library(None, why)
    try:
        code = ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.SubprocessError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        return Library(None, f"the compiled step cannot be used ({first})")
    code.whit_step.restype = code.whit_product.restype = code.whit_likeliest.restype = None
    code.whit_step.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    code.whit_product.argtypes = (
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p,
        ctypes.c_void_p, ctypes.c_int64,
    )  # fmt: skip
    code.whit_likeliest.argtypes = (
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p,
        ctypes.c_void_p, ctypes.c_int64,
    )  # fmt: skip
    return Library(code)


def _lacking() -> str:
    if os.environ.get("WHIT_NATIVE", "1") == "0":
        return "WHIT_NATIVE is 0"
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "the compiled step is for Linux on x86-64"
    if missing := _NEEDED - _features():
        return f"this processor lacks {', '.join(sorted(missing))}"
    if _compiler() is None:
        return "there is no C compiler (gcc)"
    return ""


def _features() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def _compiler() -> str | None:
    return shutil.which("gcc") or shutil.which("cc")


def _compiled() -> Path:
    """The library's file, made where it is not there. Raises what the compiler and the disk do."""
    compiler = _compiler()
    assert compiler is not None
    source = _SOURCE.read_bytes()
    about = " ".join([compiler, *_FLAGS, *sorted(_features()), torch.__version__])
    digest = hashlib.sha256(source + about.encode()).hexdigest()[:24]
    folder = cache_folder() / "native"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not is_private(folder):
        raise OSError(f"{folder} is open to others")
    path = folder / f"step-{digest}.so"
    if not path.is_file():
        aside = folder / f".{path.name}.{os.getpid()}"
        try:
            subprocess.run(
                [compiler, *_FLAGS, str(_SOURCE), "-o", str(aside), "-lm"],
                check=True, capture_output=True, timeout=_SECONDS,
            )  # fmt: skip
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    return path


class Packed:
    """Weights of a product as the library takes them: int8 (columns, in) by sixteen columns and four inputs."""

    def __init__(self, code: Any, W: torch.Tensor, scale: torch.Tensor, out: int) -> None:
        columns, inputs = W.shape
        self.code, self.columns, self.inputs = code, columns, inputs
        self._w = W.view(columns // _LANES, _LANES, inputs // 4, 4).transpose(1, 2).contiguous()
        self._minus = (W.sum(1, dtype=torch.int64) * -128).int()
        self._scale = scale
        self.about = _Product(
            self._w.data_ptr(), self._minus.data_ptr(), scale.data_ptr(), inputs, columns, out
        )  # fmt: skip

    def times(self, x: torch.Tensor, *, scaled: bool) -> torch.Tensor:
        """x (rows, in) times the weights, (rows, columns); every row is rounded by itself."""
        x, rows = x.contiguous(), len(x)
        y = torch.empty(rows, self.columns)
        bytes_, scales = torch.empty(rows, self.inputs, dtype=torch.uint8), torch.empty(rows)
        self.code.whit_product(
            ctypes.addressof(self.about), x.data_ptr(), rows, scaled, bytes_.data_ptr(), scales.data_ptr(),
            y.data_ptr(), _threads(),
        )  # fmt: skip
        return y

    def likeliest(self, x: torch.Tensor) -> torch.Tensor:
        """The first of the largest of x (rows, in) times the weights, scaled: (rows,). The products are not kept."""
        x, rows, threads = x.contiguous(), len(x), _threads()
        ids, bests = torch.empty(rows, dtype=torch.int64), (_Best * (threads * rows))()
        bytes_, scales = torch.empty(rows, self.inputs, dtype=torch.uint8), torch.empty(rows)
        self.code.whit_likeliest(
            ctypes.addressof(self.about), x.data_ptr(), rows, bytes_.data_ptr(), scales.data_ptr(), ids.data_ptr(),
            ctypes.addressof(bests), threads,
        )  # fmt: skip
        return ids


def _threads() -> int:
    return min(torch.get_num_threads(), _MOST_THREADS)


def suits(*sizes: int) -> bool:
    """Whether a model of these sizes can be computed by the library."""
    return all(size % _LANES == 0 for size in sizes)


@dataclass(frozen=True)
class Lora:
    """A LoRA as the library takes it, one entry a product; `size` is the most that goes between A and B of one."""

    about: Any
    size: int
    held: list[torch.Tensor]  # what `about` points to


class Steps:
    """The layers of one model over slots."""

    def __init__(self, model: Int8Model, code: Any, slots: int) -> None:
        self._model, self._code = model, code
        turns, groups = model.turns, [group for layer in model.groups for group in layer]
        packed = [group.W for group in groups if isinstance(group.W, Packed)]
        self._products = (_Product * len(packed))(*(each.about for each in packed))
        self._turn, self._spread = turns.block.contiguous(), turns.block[:, 0].contiguous()
        self._residual = turns.residual.contiguous()
        width, wide = packed[1].about.out, packed[3].inputs
        self._about = _Model(
            ctypes.addressof(self._products), self._turn.data_ptr(),
            # Of 64 a turn is Hadamard's matrix with the signs of its rows (`orthogonal`), whose first column is ones.
            self._spread.data_ptr() if len(self._turn) == _HADAMARD else None, self._residual.data_ptr(),
            len(groups) // 4, width, turns.heads, turns.kv_heads, turns.dim, wide, len(self._turn), model.eps,
        )  # fmt: skip
        each = turns.heads // turns.kv_heads
        rooms = max(wide, each * (model.context + 1 + _LANES))
        columns, inputs = (max(getattr(one, name) for one in packed) for name in ("columns", "inputs"))
        self._most = max(slots, _TOKENS)
        self._room = {
            "y": torch.empty(self._most, columns), "x": torch.empty(self._most, inputs, dtype=torch.uint8),
            "scales": torch.empty(self._most), "room": torch.empty(_MOST_THREADS, rooms),
        }  # fmt: skip
        self._sizes = {"columns": columns, "inputs": inputs, "rooms": rooms}
        self._t = torch.empty(0)  # between A and B of a product's LoRAs
        self._ends = [torch.tensor([span.stop for span in group.spans.values()]) for group in groups]
        self._inputs = [each.inputs for each in packed]
        self._moves: dict[tuple[int, ...], Any] = {}
        self._held: list[torch.Tensor] = []  # what moves point to
        self._loras: weakref.WeakKeyDictionary[Served, Lora] = weakref.WeakKeyDictionary()

    def states(
        self, embeds: torch.Tensor, kv: torch.Tensor, slots: torch.Tensor, places: torch.Tensor,
        turn: tuple[torch.Tensor, torch.Tensor], adapters: Sequence[Served | None],
    ) -> torch.Tensor:  # fmt: skip
        """The normed states (tokens, width) after all layers of the tokens embeds (tokens, width).

        Each stands in a slot at a place, (tokens,) both; those of one slot in order, and what stands before them is
        known. kv (layers, 2, slots, heads, places, dim) in bfloat16 is written to; turn: cosines and sines (places,
        dim / 2); `adapters` are those of all slots.
        """
        h = torch.empty_like(embeds)
        cos, sin = turn
        layer, half, slot, head, _, _ = kv.stride()
        moved, loras = self._moved(slots, adapters), self._pointers(slots, adapters)
        for at in range(0, len(h), self._most):
            part = slice(at, at + self._most)
            flags = torch.stack([rows[part] for rows in moved.values()]) if moved else torch.empty(0, dtype=torch.uint8)
            about = _Step(
                moves=ctypes.addressof(self._moves_of(tuple(moved))), moved=flags.data_ptr(),
                loras=None if loras is None else loras[part].data_ptr(), t=self._t.data_ptr(), sizes=self._t.shape[-1],
                slots=slots[part].data_ptr(), places=places[part].data_ptr(), cos=cos.data_ptr(), sin=sin.data_ptr(),
                kv=kv.data_ptr(), layer_stride=layer, v_stride=half, slot_stride=slot, head_stride=head,
                embeds=embeds[part].data_ptr(), h=h[part].data_ptr(), rows=len(h[part]), ranks=len(moved),
                threads=_threads(), **self._sizes, **{name: room.data_ptr() for name, room in self._room.items()},
            )  # fmt: skip
            self._code.whit_step(ctypes.addressof(self._about), ctypes.addressof(about))
        return h

    def _moved(self, slots: torch.Tensor, adapters: Sequence[Served | None]) -> dict[int, torch.Tensor]:
        """For each rank of the vector adapters at work, which tokens have one of it: (tokens,) uint8."""
        ranks = [served.rank if served is not None and served.R is not None else 0 for served in adapters]
        mine = torch.tensor(ranks)[slots]
        return {rank: (mine == rank).byte() for rank in sorted(set(mine.tolist()) - {0})}

    def _pointers(self, slots: torch.Tensor, adapters: Sequence[Served | None]) -> torch.Tensor | None:
        """Where each token's LoRA is, (tokens,), nought for none; None where no token has one."""
        mine = sorted(set(slots.tolist()))
        loras = {slot: self._lora_of(served) for slot in mine if (served := adapters[slot]) and served.A is not None}
        if not loras:
            return None
        most = max(lora.size for lora in loras.values())
        if self._t.shape[-1] < most:
            self._t = torch.empty(self._most, most)
        addresses = torch.zeros(len(adapters), dtype=torch.int64)
        for slot, lora in loras.items():
            addresses[slot] = ctypes.addressof(lora.about)
        return addresses[slots]

    def _lora_of(self, served: Served) -> Lora:
        found = self._loras.get(served)
        if found is None:
            found = self._loras[served] = self._laid_out(self._model.turned(served), served.rank)
        return found

    def _laid_out(self, parts: Mapping[str, tuple[torch.Tensor, torch.Tensor]], rank: int) -> Lora:
        groups = [group for layer in self._model.groups for group in layer]
        about, held = (_Lora * len(groups))(), list[torch.Tensor]()
        for at, (group, ends) in enumerate(zip(groups, self._ends, strict=True)):
            if not any(name in parts for name in group.spans):
                continue
            A, B = torch.zeros(len(ends) * rank, self._inputs[at]), torch.zeros(rank, group.out)
            for place, (name, span) in enumerate(group.spans.items()):
                if name in parts:
                    A[place * rank : (place + 1) * rank], B[:, span] = parts[name][0], parts[name][1].mT
            about[at] = _Lora(A.data_ptr(), B.data_ptr(), ends.data_ptr(), rank, len(A))
            held += [A, B]
        return Lora(about, max((one.size for one in about), default=0), held)

    def _moves_of(self, ranks: tuple[int, ...]) -> Any:
        found = self._moves.get(ranks)
        if found is None:
            groups = zip((group for layer in self._model.groups for group in layer), self._ends, strict=True)
            every = [self._move(group, ends, rank) for group, ends in groups for rank in ranks]
            found = self._moves[ranks] = (_Move * max(1, len(every)))(*every)
        return found

    def _move(self, group: Any, ends: torch.Tensor, rank: int) -> _Move:
        spans, R = list(group.spans.values()), group.R[rank]
        parts = [group.US[rank][place * rank : (place + 1) * rank, span] for place, span in enumerate(spans)]
        US = torch.cat(parts, 1).contiguous()
        self._held.append(US)
        return _Move(R.data_ptr(), US.data_ptr(), ends.data_ptr(), group.z[rank].start, R.shape[1], rank)
