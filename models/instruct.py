"""The instruction stage's windows: chats packed beside plain text, with the answers marked for learning.

Promises the tokens that `whit.data.templates` gives for the same turns: a prompt by itself, the answer by itself, then
the end-of-turn token. Knows nothing of the optimiser.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from models.config import END_OF_TEXT, TURN_END, TURN_START
from models.corpus import Windows
from models.rows import Turns

IGNORED = -100
PLAIN_EVERY = 3  # every third window is plain text of the corpus, so that it is not forgotten


def encode_chat(tokenizer: Any, turns: Turns) -> tuple[list[int], list[int]]:
    """(ids, labels) of one chat: labels are the ids of assistant turns with their end, `IGNORED` elsewhere."""
    ids: list[int] = []
    labels: list[int] = []
    for role, text in turns:
        head = [TURN_START, *tokenizer.encode(f"{role}\n", add_special_tokens=False).ids]
        # A content that spells a special token must not become one: such rows are not in the data we use.
        if role == "assistant":
            body = [*tokenizer.encode(text, add_special_tokens=False).ids, TURN_END]
            learned = body
        else:
            body = [*tokenizer.encode(f"{role}\n{text}", add_special_tokens=False).ids, TURN_END]
            head, learned = [TURN_START], [IGNORED] * len(body)
        tail = tokenizer.encode("\n", add_special_tokens=False).ids
        ids += [*head, *body, *tail]
        labels += [IGNORED] * len(head) + learned + [IGNORED] * len(tail)
    return ids, labels


class ChatWindows:
    """Windows of `sequence` positions: packed chats, and plain text as every `every`-th (2 or more)."""

    def __init__(
        self,
        chats: Sequence[tuple[list[int], list[int]]],
        plain: Windows,
        *,
        sequence: int,
        every: int = PLAIN_EVERY,
    ):
        ids: list[int] = []
        labels: list[int] = []
        for chat, learned in chats:
            if len(chat) >= sequence:
                continue
            room = (sequence + 1) - len(ids) % (sequence + 1)
            if len(chat) + 1 > room:  # a chat is never cut: its answer would lose its question
                ids += [END_OF_TEXT] * room
                labels += [IGNORED] * room
            ids += [END_OF_TEXT, *chat]
            labels += [IGNORED, *learned]
        count = len(ids) // (sequence + 1)
        if count < 1:
            raise ValueError("too few chats for one window")
        size = count * (sequence + 1)
        self.ids = np.array(ids[:size], dtype=np.int64).reshape(count, sequence + 1)
        self.labels = np.array(labels[:size], dtype=np.int64).reshape(count, sequence + 1)
        self.plain, self.sequence, self.count, self.every = plain, sequence, count, every
        self.per_epoch = count * every // (every - 1)
        said = b"" if every == PLAIN_EVERY else f"plain every {every}".encode()
        self.fingerprint = hashlib.sha256(self.ids.tobytes() + self.labels.tobytes() + said).hexdigest()

    def batch(self, step: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels of a step, int64 [size, sequence] each."""
        inputs, labels = [], []
        for index in range(step * size, (step + 1) * size):
            turn, place = divmod(index, self.every)
            if place == self.every - 1:
                window = self.plain.window(turn)
                inputs.append(window[:-1])
                labels.append(window[1:])
            else:
                row = (turn * (self.every - 1) + place) % self.count
                inputs.append(self.ids[row, :-1])
                labels.append(self.labels[row, 1:])
        return np.stack(inputs), np.stack(labels)
