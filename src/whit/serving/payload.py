"""An adapter of any kind as one string of bytes, as a store keeps it.

Vector and sparse adapters are their compact file. A LoRA is `whitlora`, the length of its config (4 bytes,
little-endian), the config and the safetensors file; it is read through the same checks as a folder. A learned basis,
which adapters may name, is kept under a name made of its fingerprint. Knows nothing of databases.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

from whit.adapters import learned
from whit.adapters.adapter import Adapter
from whit.adapters.compact import MAGIC
from whit.errors import DamagedAdapter

if TYPE_CHECKING:
    from whit.serving.store import Store

LORA_MAGIC = b"whitlora"
MAX_PAYLOAD = 256 << 20
_LENGTH = struct.Struct("<I")


def to_payload(adapter: Adapter) -> bytes:
    """The bytes of an adapter; equal adapters give equal bytes."""
    if adapter.lora is None:
        return adapter.to_bytes()
    config, weights = adapter.lora.to_bytes()
    return LORA_MAGIC + _LENGTH.pack(len(config)) + config + weights


def from_payload(content: bytes) -> Adapter:
    """The adapter behind the bytes. Raises `DamagedAdapter`."""
    if len(content) > MAX_PAYLOAD:
        raise DamagedAdapter(f"an adapter of {len(content):,} bytes; a store keeps at most {MAX_PAYLOAD:,}")
    if not content.startswith(LORA_MAGIC):
        return Adapter.from_bytes(content)
    from whit.adapters.lora import LoraWeights

    start = len(LORA_MAGIC) + _LENGTH.size
    if len(content) < start:
        raise DamagedAdapter("the adapter is truncated within its header")
    (size,) = _LENGTH.unpack_from(content, len(LORA_MAGIC))
    if size > len(content) - start:
        raise DamagedAdapter("the adapter is truncated within its config")
    config, weights = content[start : start + size], content[start + size :]
    return Adapter.from_lora(LoraWeights.from_bytes(config, weights, "the adapter"))


def kind_of(content: bytes) -> str:
    """`tiny`, `xs`, `sparse`, `lora` or `basis`, by the first bytes alone; `unknown` for anything else."""
    if content.startswith(LORA_MAGIC):
        return "lora"
    if content.startswith(learned.MAGIC):
        return "basis"
    if content[:4] == MAGIC and len(content) > 5:
        return {1: "tiny", 2: "xs", 3: "sparse"}.get(content[5], "unknown")
    return "unknown"


def basis_name(fingerprint: str) -> str:
    """Under which name a store keeps the learned basis with this fingerprint."""
    return f"basis/{fingerprint[:16]}"


def learned_in(store: Store, fingerprint: str) -> None:
    """Remember the learned basis that an adapter names, where it is not known yet and the store has it."""
    from whit.serving.store import NotFound

    if not fingerprint or learned.find(fingerprint) is not None:
        return
    try:
        found = learned.LearnedBasis.from_bytes(store.find(basis_name(fingerprint)).payload)
    except NotFound:
        return
    if found.fingerprint.startswith(fingerprint[:16]):  # a name says nothing
        learned.remember(found)


def digest_of(content: bytes) -> bytes:
    """What an adapter is known by wherever content counts: SHA-256, 32 bytes."""
    return hashlib.sha256(content).digest()
