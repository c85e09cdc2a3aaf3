"""Keys and values of prompts' beginnings, kept for the next prompt that begins alike.

Blocks of 16 tokens, each known by a hash over the base, the adapter's *content* and every token up to its end:
neither a name nor a version takes part, so that an adapter that was replaced, or another of the same name, can never
be answered from it. The least recently used blocks go first. Knows nothing of requests.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from whit.serving.rows import SlotStore

BLOCK = 16


class PrefixCache:
    """Blocks up to `most` bytes; `base` says which base and number type they belong to."""

    def __init__(self, base: str, most: int) -> None:
        self._base, self._most = base.encode(), most
        self._blocks: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self.bytes = 0

    def fetch(self, content: bytes, tokens: Sequence[int], model: SlotStore, slot: int) -> int:
        """Put the longest known beginning into a slot; how many tokens. The last token is always left to read."""
        found = []
        for key in self._keys(content, tokens, len(tokens) - 1):
            block = self._blocks.get(key)
            if block is None:
                break
            self._blocks.move_to_end(key)
            found.append(block)
        if found:
            model.write(slot, torch.cat(found, dim=-2))
        return BLOCK * len(found)

    def keep(self, content: bytes, tokens: Sequence[int], model: SlotStore, slot: int) -> None:
        """Remember the beginning of a prompt that was read into a slot."""
        for place, key in enumerate(self._keys(content, tokens, len(tokens))):
            if key in self._blocks:
                self._blocks.move_to_end(key)
                continue
            block = model.read(slot, place * BLOCK, (place + 1) * BLOCK)
            size = block.numel() * block.element_size()
            if size > self._most:
                return
            self._blocks[key] = block
            self.bytes += size
            while self.bytes > self._most:
                _, gone = self._blocks.popitem(last=False)
                self.bytes -= gone.numel() * gone.element_size()

    def _keys(self, content: bytes, tokens: Sequence[int], most: int) -> Iterator[bytes]:
        key = hashlib.sha256(self._base + b"\0" + content).digest()
        for at in range(0, most - BLOCK + 1, BLOCK):
            key = hashlib.sha256(key + array("I", tokens[at : at + BLOCK]).tobytes()).digest()
            yield key
