"""A whit adapter that marks names, places and health in a text, word by word.

An ordinary LoRA on an ordinary base, read in another way: all words see each other (no causal mask), and what a word is
stands in the base's own head, as the likeliest of four letters at the word's last token. One pass over the text, no
answer to decode, nothing trained but the adapter. Whole passes without a causal mask: BehnamGhader et al., 2024,
arXiv 2404.05961. Promises spans of the text as it was given. Knows nothing of tiers or of other detectors.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.errors import AdapterError, UsageError

if TYPE_CHECKING:
    import torch

    from whit.adapters.tunable import Bound
    from whit.bases import Base

BUILT_IN = "names"
LABELS = ("none", "person", "place", "health")
_LETTERS = "OPLH"
_WORD = re.compile(r"\w+|[^\w\s]")
_WINDOW, _MARGIN, _BATCH = 192, 32, 8  # tokens, tokens, windows
_LONGEST = 32  # tokens of one word that are looked at


@dataclass(frozen=True)
class Word:
    """Where a word stands in its text, and its token ids."""

    start: int
    stop: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Mark:
    """Words that belong together: what they are, where they stand, and the surest one's chance of it."""

    kind: str
    start: int
    stop: int
    chance: float


class Words:
    """Cuts texts into words with token ids, by a base's tokenizer."""

    def __init__(self, base: Base) -> None:
        # A table of its own for each base, for ids of one mean nothing to another.
        self._ids = lru_cache(50_000)(lambda piece: tuple(base.encode(piece))[-_LONGEST:])

    def __call__(self, text: str) -> list[Word]:
        """The words; letters and digits in a row are one, every other character is one."""
        found = []
        before = 0
        for match in _WORD.finditer(text):
            between = text[before : match.start()]
            lead = "\n" if "\n" in between else " " if between else ""
            before = match.end()
            if ids := self._ids(lead + match.group()[:200]):
                found.append(Word(match.start(), match.end(), ids))
        return found


def letters(base: Base) -> list[int]:
    """The tokens whose scores say what a word is, in the order of `LABELS`. Raises `AdapterError`."""
    found = [base.encode(letter) for letter in _LETTERS]
    if any(len(each) != 1 for each in found) or len({each[0] for each in found}) < len(_LETTERS):
        raise AdapterError(f"{base.name} has no single tokens for the letters {_LETTERS}: it cannot mark words")
    return [each[0] for each in found]


def scores(base: Base, rows: Sequence[Sequence[Word]], letter_ids: Sequence[int]) -> torch.Tensor:
    """Each word's score for each label, (words of all rows, labels), by whatever adapter is active."""
    import torch

    lengths = [sum(len(word.ids) for word in row) for row in rows]
    tokens = torch.zeros(len(rows), max(lengths), dtype=torch.long)
    seen = torch.zeros(len(rows), 1, 1, max(lengths), dtype=torch.bool)
    at: list[tuple[int, int]] = []
    for place, row in enumerate(rows):
        ids = [each for word in row for each in word.ids]
        tokens[place, : len(ids)] = torch.tensor(ids)
        seen[place, :, :, : len(ids)] = True
        end = -1
        for word in row:
            end += len(word.ids)
            at.append((place, end))
    device = base.model.device
    mask = seen.expand(-1, -1, tokens.shape[1], -1).to(device)
    hidden = base.model.get_decoder()(
        input_ids=tokens.to(device), attention_mask=mask, use_cache=False
    ).last_hidden_state
    places = torch.tensor(at, device=device)
    head = base.model.get_output_embeddings().weight[list(letter_ids)]
    found: torch.Tensor = (hidden[places[:, 0], places[:, 1]] @ head.T).float()
    return found


class Tagger:
    """Marks words by a base and an adapter. Not for several threads at once."""

    def __init__(self, base: Base, bound: Bound, *, threshold: float = 0.5, seconds: float = 20.0) -> None:
        self.base, self._bound = base, bound
        self.threshold, self.seconds = threshold, seconds
        self._words, self._letters = Words(base), letters(base)

    @classmethod
    def load(cls, where: str, base: str = "", *, seconds: float = 20.0) -> Tagger:
        """The built-in one (`names`), or a folder made by `whit route learn`. Raises `AdapterError`, `BaseError`."""
        from whit.adapters.adapter import Adapter
        from whit.adapters.tunable import bind
        from whit.bases import load_base

        about = card(where)
        if about is None:
            raise AdapterError(f"{where}: its card.json says nothing of marking words; make one with: whit route learn")
        of = load_base(base or str(about.get("base") or "eeny"), dtype="float32")
        return cls(of, bind(of, Adapter.load(folder_of(where))), threshold=about["threshold"], seconds=seconds)

    def __call__(self, text: str) -> list[tuple[str, str]]:
        """Kinds and texts of what is marked. Raises `TimeoutError` where there is too little time for all of it."""
        return [(mark.kind, text[mark.start : mark.stop]) for mark in self.marks(text)]

    def marks(self, text: str) -> list[Mark]:
        """What is marked, in the order of the text."""
        words = self._words(text)
        return list(_joined(text, words, self.chances(words), self.threshold))

    def chances(self, words: Sequence[Word]) -> Any:
        """Each word's chance of each label, float32, (words, labels); the surer one where windows overlap."""
        import numpy as np
        import torch

        until = time.monotonic() + self.seconds
        found = np.zeros((len(words), len(LABELS)), np.float32)
        windows = list(_windows(words))
        with torch.inference_mode(), self._bound.active():
            for first in range(0, len(windows), _BATCH):
                if time.monotonic() > until:
                    raise TimeoutError
                some = windows[first : first + _BATCH]
                rows = [words[start:stop] for start, stop in some]
                chances = torch.softmax(scores(self.base, rows, self._letters), -1).cpu().numpy()
                done = 0
                for start, stop in some:
                    part = chances[done : done + stop - start]
                    done += stop - start
                    old = found[start:stop]
                    surer = (old.sum(1) == 0) | (part[:, 0] < old[:, 0])
                    old[surer] = part[surer]
        return found


def _windows(words: Sequence[Word]) -> Iterator[tuple[int, int]]:
    """Stretches of words of at most `_WINDOW` tokens, each beginning `_MARGIN` tokens before the last one's end."""
    start = 0
    while start < len(words):
        size, stop = 0, start
        while stop < len(words) and (size + len(words[stop].ids) <= _WINDOW or stop == start):
            size += len(words[stop].ids)
            stop += 1
        yield start, stop
        if stop == len(words):
            return
        back, next_start = 0, stop
        while next_start - 1 > start and back + len(words[next_start - 1].ids) <= _MARGIN:
            next_start -= 1
            back += len(words[next_start].ids)
        start = next_start


def _joined(text: str, words: Sequence[Word], chances: Any, threshold: float) -> Iterator[Mark]:
    """Neighbouring words of one kind as one mark, with a dot, hyphen or apostrophe between them."""
    kinds = []
    for row in chances:
        best = 1 + int(row[1:].argmax()) if len(row) > 1 else 0
        kinds.append(best if 1.0 - row[0] >= threshold else 0)
    at = 0
    while at < len(words):
        kind = kinds[at]
        if not kind or not text[words[at].start].isalnum():
            at += 1
            continue
        last, stop = at, at + 1
        while stop < len(words) and (kinds[stop] == kind or text[words[stop].start] in ".-'’,"):
            if words[stop].start - words[stop - 1].stop > 1 or "\n" in text[words[stop - 1].stop : words[stop].start]:
                break
            if kinds[stop] == kind and text[words[stop].start].isalnum():
                last = stop
            stop += 1
        sure = float(1.0 - chances[at : last + 1, 0].min())
        yield Mark(LABELS[kind], words[at].start, words[last].stop, sure)
        at = last + 1


def folder_of(where: str) -> Path:
    """Where an adapter that marks words lies: `names` is the built-in one, whatever lies in the working folder."""
    return Path(__file__).parent / BUILT_IN if where == BUILT_IN else Path(where)


def card(where: str) -> dict[str, Any] | None:
    """What an adapter's card says of marking words; None where it is another kind of adapter. Raises `UsageError`."""
    path = folder_of(where) / "card.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
        about = found.get("marks")
        if about is None:
            return None
        if list(about["labels"]) != list(LABELS) or not 0.0 < float(about["threshold"]) < 1.0:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UsageError(f"{path}: is not a card that whit route learn wrote") from error
    return {"base": found.get("base"), "threshold": float(about["threshold"])}
