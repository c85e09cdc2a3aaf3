"""The engine's WebAssembly module, loaded and spoken to.

Promises that an error inside the engine is one of whit's errors, with the engine's own message, and that
bytes which differ from the recorded hash are not run. One `Engine` holds one model; it is not for
several threads at once. Knows the calls of `docs/engine.md`; nothing of transformers or torch.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from whit.errors import (
    BaseError,
    DamagedAdapter,
    TrainingError,
    UsageError,
    WhitError,
    WrongBase,
    WrongBasis,
)

if TYPE_CHECKING:
    from whit.engine.answers import Answer
    from whit.engine.trainer import Trainer

ABI = 1
VARIANTS = ("relaxed", "simd")
_ERRORS: dict[int, type[WhitError]] = {
    1: UsageError,
    2: BaseError,
    3: BaseError,
    4: BaseError,
    5: DamagedAdapter,
    6: WrongBase,
    7: WrongBasis,
    8: TrainingError,
}
_NO_TOKEN = 0x7FFFFFFF


@dataclass(frozen=True)
class Packed:
    """Bytes that are passed as a pointer and how many parts of `size` bytes they have."""

    content: bytes
    size: int


def words(values: Sequence[int]) -> Packed:
    """A list of 32-bit words. Raises `UsageError` for a number that is none."""
    try:
        return Packed(struct.pack(f"<{len(values)}I", *values), 4)
    except struct.error as error:
        raise UsageError(f"not a list of whole numbers from 0 to 2**32 - 1: {error}") from error


@dataclass(frozen=True)
class Sizes:
    """What the model file says of itself. `bos` and `eos` are None where it has no such token."""

    vocab: int
    dim: int
    layers: int
    context: int
    heads: int
    kv_heads: int
    head: int
    ffn: int
    bos: int | None
    eos: int | None
    adds_bos: bool


def engine_bytes(variant: str) -> bytes:
    """The WebAssembly bytes of a variant (`simd` or `relaxed`), checked against their recorded SHA-256."""
    folder = files("whit.engine") / "wasm"
    try:
        content = (folder / f"{variant}.wasm").read_bytes()
        sums = (folder / "SHA256SUMS").read_text("utf-8")
    except FileNotFoundError as error:
        raise UsageError(f"there is no engine variant {variant!r}; there are {', '.join(VARIANTS)}") from error
    recorded = {name: digest for digest, name in (line.split() for line in sums.splitlines())}
    if hashlib.sha256(content).hexdigest() != recorded.get(f"{variant}.wasm"):
        raise WhitError(f"the engine ({variant}.wasm) is damaged: install whit again")
    return content


@cache
def _compiled(variant: str) -> tuple[Any, Any]:
    try:
        import wasmtime
    except ImportError as error:
        raise UsageError("the engine needs wasmtime: pip install wasmtime") from error
    host = wasmtime.Engine(wasmtime.Config())
    return host, wasmtime.Module(host, engine_bytes(variant))


class Engine:
    """A model and its adapters inside a WebAssembly instance. Handles are small integers."""

    def __init__(self, gguf: bytes, *, variant: str = "relaxed") -> None:
        import wasmtime

        host, module = _compiled(variant)
        self._trap = wasmtime.Trap, wasmtime.WasmtimeError
        self._store = wasmtime.Store(host)
        self._calls: Any = wasmtime.Instance(self._store, module, []).exports(self._store)
        self._memory: Any = self._calls["memory"]
        if self._raw("whit_abi") != ABI:
            raise WhitError("the engine is of another version than whit: install whit again")
        # The engine keeps this memory: matrices are rearranged in place.
        self.call("whit_load", self._lend(gguf), len(gguf))
        numbers = [self.call("whit_size", which) for which in range(11)]
        vocab, dim, layers, context, heads, kv_heads, head, ffn, bos, eos, adds_bos = numbers
        self.sizes = Sizes(
            vocab,
            dim,
            layers,
            context,
            heads,
            kv_heads,
            head,
            ffn,
            bos=None if bos == _NO_TOKEN else bos,
            eos=None if eos == _NO_TOKEN else eos,
            adds_bos=bool(adds_bos),
        )

    @classmethod
    def open(cls, path: str | Path, *, variant: str = "relaxed") -> Engine:
        """Load a GGUF file. Raises `BaseError` where it is damaged or of a kind that the engine does not run."""
        try:
            return cls(Path(path).read_bytes(), variant=variant)
        except OSError as error:
            raise BaseError(f"{path}: cannot be read: {error.strerror}") from error

    def _raw(self, name: str, *arguments: float) -> Any:
        try:
            return self._calls[name](self._store, *arguments)
        except self._trap as error:
            raise WhitError(f"the engine stopped in {name}: {error}") from error

    def call(self, name: str, *arguments: int | float | bytes | Packed) -> int:
        """One call of the engine's table. Bytes are passed as pointer and length. Raises the engine's errors."""
        plain: list[int | float] = []
        lent: list[tuple[int, int]] = []
        try:
            for argument in arguments:
                if isinstance(argument, bytes):
                    argument = Packed(argument, 1)
                if not isinstance(argument, Packed):
                    plain.append(argument)
                    continue
                length = len(argument.content)
                at = self._lend(argument.content) if length else 0
                if at:
                    lent.append((at, length))
                plain += [at, length // argument.size]
            answer = int(self._raw(name, *plain))
        finally:
            for at, length in lent:
                self._raw("whit_free", at, length)
        if answer < 0:
            raise _ERRORS.get(-answer, WhitError)(self.result().decode("utf-8", "replace"))
        return answer

    def _lend(self, content: bytes) -> int:
        at = int(self._raw("whit_alloc", len(content))) & 0xFFFFFFFF
        if not at:
            raise BaseError(f"the engine has no memory for {len(content)} bytes more")
        self._memory.write(self._store, content, at)
        return at

    def result(self) -> bytes:
        """The bytes that the last call left."""
        at, length = self._raw("whit_result") & 0xFFFFFFFF, self._raw("whit_result_len")
        return bytes(self._memory.read(self._store, at, at + length))

    def floats(self, count: int) -> NDArray[np.float32]:
        """A copy of the `count` float32 that the word in the result points at."""
        at = int.from_bytes(self.result()[:4], "little")
        return np.frombuffer(bytes(self._memory.read(self._store, at, at + 4 * count)), dtype="<f4")

    def set_floats(self, values: NDArray[np.float32], count: int) -> None:
        """Write `count` float32 to where the word in the result points."""
        if values.shape != (count,):
            raise UsageError(f"{values.shape} numbers given where there are {count}")
        at = int.from_bytes(self.result()[:4], "little")
        self._memory.write(self._store, np.ascontiguousarray(values, dtype="<f4").tobytes(), at)

    # Text -----------------------------------------------------------------------------------------

    def note(self, key: str) -> str | None:
        """A text that the file carries, such as `tokenizer.chat_template`; None where it has none."""
        try:
            self.call("whit_note", key.encode())
        except UsageError:
            return None
        return self.result().decode("utf-8", "replace")

    def encode(self, text: str | bytes, *, specials: bool = True) -> list[int]:
        """The tokens of a text. With `specials`, names of special tokens in it become those tokens."""
        content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        count = self.call("whit_encode", content, int(specials))
        return list(struct.unpack(f"<{count}I", self.result()))

    def decode(self, ids: Sequence[int], *, specials: bool = False) -> str:
        """The text of tokens."""
        self.call("whit_decode", words(ids), int(specials))
        return self.result().decode("utf-8", "replace")

    # Running --------------------------------------------------------------------------------------

    def sequence(self, room: int, adapter: int = -1) -> int:
        """An empty sequence with room for `room` tokens; its handle."""
        return self.call("whit_sequence_new", room, adapter)

    def read(self, items: Sequence[tuple[int, int, bool]]) -> NDArray[np.float32]:
        """Read (sequence, token, wanted) items in one batch; logits of the wanted ones, (wanted, vocab)."""
        packed = np.array(items, dtype="<u4").reshape(-1, 3).tobytes()
        count = self.call("whit_read", Packed(packed, 12))
        return self.floats(count).reshape(-1, self.sizes.vocab)

    def logits(self, ids: Sequence[int], *, adapter: int = -1) -> NDArray[np.float32]:
        """The logits after every token of one text, shape (tokens, vocab)."""
        sequence = self.sequence(len(ids), adapter)
        try:
            return self.read([(sequence, token, True) for token in ids])
        finally:
            self.call("whit_sequence_free", sequence)

    def ask(self, prompt: Sequence[int], **settings: Any) -> Answer:
        """Begin an answer; see `whit.engine.answers.Answer` for the settings."""
        from whit.engine.answers import Answer

        return Answer(self, prompt, **settings)

    # Adapters -------------------------------------------------------------------------------------

    def add_basis(self, content: bytes) -> None:
        """Add a basis, as `write_basis` gives it. Raises `WrongBase` or `DamagedAdapter`."""
        self.call("whit_basis", content)

    def read_adapter(self, content: bytes) -> int:
        """Read a compact adapter file; its handle. Raises `DamagedAdapter`, `WrongBase`, `WrongBasis`."""
        return self.call("whit_adapter_read", content)

    def write_adapter(self, adapter: int, *, exact: bool = False) -> bytes:
        """The compact file of a vector adapter: bfloat16, or float32 with `exact`."""
        self.call("whit_adapter_write", adapter, int(exact))
        return self.result()

    def vector_adapter(
        self, kind: str, rank: int, targets: Sequence[int], numbers: int, *, groups: int | None = None, seed: int = 0
    ) -> int:
        """A `tiny` or `xs` adapter at zero; its handle. A basis of that rank must have been added."""
        codes = {"tiny": 1, "xs": 2}
        if kind not in codes:
            raise UsageError(f"unknown kind of vector adapter {kind!r}; there are {', '.join(codes)}")
        count = groups if groups is not None else (len(targets) if kind == "xs" else 1)
        return self.call("whit_adapter_vector", codes[kind], rank, words(targets), numbers, count, seed)

    def lora_adapter(self, rank: int, alpha: float, targets: Sequence[int], *, seed: int = 0) -> int:
        """A LoRA that changes nothing yet; its handle."""
        return self.call("whit_adapter_lora", rank, alpha / rank, words(targets), seed)

    def numbers(self, adapter: int) -> NDArray[np.float32]:
        """A copy of an adapter's numbers: v, every R, or for each module of a LoRA A (r x in), then Bᵀ (r x out)."""
        return self.floats(self.call("whit_adapter_numbers", adapter))

    def set_numbers(self, adapter: int, values: NDArray[np.float32]) -> None:
        """Set an adapter's numbers."""
        self.set_floats(values, self.call("whit_adapter_numbers", adapter))
        self.call("whit_adapter_refresh", adapter)

    def trainer(self, adapter: int, **settings: float) -> Trainer:
        """Begin training an adapter; see `whit.engine.trainer.Trainer` for the settings."""
        from whit.engine.trainer import Trainer

        return Trainer(self, adapter, **settings)
