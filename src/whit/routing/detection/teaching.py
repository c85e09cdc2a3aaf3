"""`whit route learn`: train an adapter that marks names, places and health, from texts with marked spans.

Rows are JSON lines with `text`, `spans` (`type`, `start`, `end`) and, where texts were made from templates, `template`.
A part of the templates is held out: the threshold is set on them, and what is told of the adapter comes from them.
Names and places are exchanged among rows at each pass, so that the way a sentence speaks of them is what is learnt.
Promises the same adapter from the same rows, settings and machine. Knows nothing of the gateway.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.errors import DataError, TrainingError
from whit.routing.detection.tagger import LABELS, Tagger, Word, Words, letters, scores

if TYPE_CHECKING:
    from whit.adapters.adapter import Adapter
    from whit.bases import Base

# Types of spans by what they are to a detector. Types that are absent here are learnt as nothing; those of `_OPEN`
# are not looked at in training, for whether an organisation's name is a person's is often not to be told.
KIND_OF = {
    "PERSON": "person", "NAME": "person",
    "GPE": "place", "LOCATION": "place", "ADDRESS": "place", "STREET_ADDRESS": "place", "ZIP_CODE": "place",
    "HEALTH": "health", "DIAGNOSIS": "health", "MEDICATION": "health",
}  # fmt: skip
_OPEN = frozenset({
    "ORGANIZATION", "TITLE", "PREFIX", "NRP", "DATE_TIME", "AGE", "DOMAIN_NAME", "PHONE_NUMBER", "EMAIL_ADDRESS",
    "CREDIT_CARD", "IBAN_CODE", "US_SSN", "IP_ADDRESS", "US_DRIVER_LICENSE",
})  # fmt: skip
_IGNORE = -100
_HELD_OUT = 0.12
_ROW_TOKENS = 256


@dataclass(frozen=True)
class Span:
    """A marked part of a text."""

    type: str
    start: int
    stop: int


@dataclass(frozen=True)
class Marked:
    """A text with its spans, in order and apart from each other."""

    text: str
    spans: tuple[Span, ...]
    template: str


@dataclass(frozen=True)
class Learnt:
    """The adapter and what it does on held-out templates: by kind, found and all; words marked for nothing."""

    adapter: Adapter
    threshold: float
    rows: int
    held_out: int
    found: dict[str, tuple[int, int]]
    false_words: tuple[int, int]
    losses: tuple[float, ...]


def read_marked(path: Path) -> list[Marked]:
    """Rows of a file. Raises `DataError` with the line."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text = row["text"]
            spans = sorted((Span(str(each["type"]), each["start"], each["end"]) for each in row.get("spans", [])),
                           key=lambda span: (span.start, -span.stop))  # fmt: skip
            if not isinstance(text, str) or any(not 0 <= span.start < span.stop <= len(text) for span in spans):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}:{number}: is not a row with text and spans (type, start, end)") from error
        apart: list[Span] = []
        for span in spans:
            if not apart or span.start >= apart[-1].stop:
                apart.append(span)
        template = str(row.get("template", row.get("id", number)))
        rows.append(Marked(text, tuple(apart), f"{path.name}:{template}"))
    return rows


def split_templates(rows: Sequence[Marked], share: float = _HELD_OUT) -> tuple[list[Marked], list[Marked]]:
    """Rows to learn from, and rows of templates that are held out (chosen by their hash)."""
    held: list[Marked] = []
    kept: list[Marked] = []
    for row in rows:
        digest = hashlib.sha256(row.template.encode()).digest()
        (held if int.from_bytes(digest[:4], "big") < share * 2**32 else kept).append(row)
    return kept, held


def learn(
    base: Base, rows: Sequence[Marked], *, rank: int = 12, epochs: float = 8.0, learning_rate: float = 3e-3,
    batch_tokens: int = 1536, seed: int = 0, watch: Callable[[int, int, float], None] | None = None,
) -> Learnt:  # fmt: skip
    """Train a LoRA on all of `base`'s matrices to mark words. Raises `DataError`, `TrainingError`."""
    import torch
    import torch.nn.functional as F

    from whit.adapters.targets import all_targets
    from whit.adapters.tunable import tune_lora

    kept, held = split_templates(rows)
    if not held or not any(KIND_OF.get(span.type) for row in kept for span in row.spans):
        raise DataError("too few rows: some of 20 templates or more are held out, and the rest must have marked spans")
    targets = all_targets(name for name, _ in base.model.named_modules())
    bound = tune_lora(base, targets, rank=rank, alpha=2.0 * rank, dropout=0.0, seed=seed)
    cut, letter_ids = Words(base), letters(base)
    optimizer = torch.optim.AdamW(bound.parameters(), lr=learning_rate, weight_decay=0.01)
    plan = list(_batches(kept, cut, epochs, batch_tokens, seed))
    losses: list[float] = []
    for step, batch in enumerate(plan):
        left = 1.0 - step / len(plan)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 20) * left
        with bound.active():
            found = scores(base, [words for words, _ in batch], letter_ids)
        wanted = torch.tensor([label for _, labels in batch for label in labels])
        loss = F.cross_entropy(found, wanted, ignore_index=_IGNORE)
        if not bool(torch.isfinite(loss)):
            raise TrainingError(f"the loss became {float(loss.detach())} at step {step}; try a lower --learning-rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(bound.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if watch is not None:
            watch(step + 1, len(plan), losses[-1])
    adapter = bound.export()
    bound.load(adapter)  # what is judged is what is stored, rounded
    threshold, recalled, false_words = _judge(Tagger(base, bound, seconds=3600.0), held, cut)
    bound.detach()
    each = max(1, len(losses) // 8)
    curve = tuple(round(sum(losses[at : at + each]) / len(losses[at : at + each]), 4)
                  for at in range(0, len(losses), each))  # fmt: skip
    return Learnt(adapter, threshold, len(kept), len(held), recalled, false_words, curve)


def label_words(row: Marked, words: Sequence[Word]) -> list[int]:
    """Each word's label, by the span it stands in."""
    labels = []
    at = 0
    for word in words:
        while at < len(row.spans) and row.spans[at].stop <= word.start:
            at += 1
        inside = at < len(row.spans) and row.spans[at].start < word.stop
        kind = row.spans[at].type if inside else ""
        labels.append(_IGNORE if kind in _OPEN else LABELS.index(KIND_OF.get(kind, "none")))
    return labels


def varied(row: Marked, pools: dict[str, list[str]], draw: random.Random) -> Marked:
    """The row with other names and places in it, now and then in another case."""
    parts: list[str] = []
    spans: list[Span] = []
    before = size = 0
    for span in row.spans:
        parts.append(row.text[before : span.start])
        written = row.text[span.start : span.stop]
        if KIND_OF.get(span.type) and draw.random() < 0.6:
            other = draw.choice(pools[span.type])
            written = other if "\n" not in other or "\n" in written else written
        size += len(parts[-1])
        spans.append(Span(span.type, size, size + len(written)))
        parts.append(written)
        size += len(written)
        before = span.stop
    text = "".join([*parts, row.text[before:]])
    turn = draw.random()
    changed = text.lower() if turn < 0.12 else text.upper() if turn < 0.15 else text
    return Marked(changed if len(changed) == len(text) else text, tuple(spans), row.template)


def _batches(
    rows: Sequence[Marked], cut: Words, epochs: float, batch_tokens: int, seed: int
) -> Iterator[list[tuple[list[Word], list[int]]]]:
    """Batches of rows of like lengths, varied anew at each pass; rows are now and then put one after another."""
    pools: dict[str, list[str]] = {}
    for row in rows:
        for span in row.spans:
            if span.type in KIND_OF:
                pools.setdefault(span.type, []).append(row.text[span.start : span.stop])
    passes = int(epochs) + (epochs % 1 > 0)
    for turn in range(passes):
        draw = random.Random(f"{seed} {turn}")
        order = list(rows)
        draw.shuffle(order)
        if turn == passes - 1 and epochs % 1:
            order = order[: max(1, int(len(order) * (epochs % 1)))]
        made: list[tuple[list[Word], list[int]]] = []
        for row in order:
            new = varied(row, pools, draw)
            words = cut(new.text)
            labels = label_words(new, words)
            size = sum(len(word.ids) for word in words)
            if made and draw.random() < 0.3 and size + sum(len(word.ids) for word in made[-1][0]) < _ROW_TOKENS:
                made[-1] = (made[-1][0] + words, made[-1][1] + labels)
            elif words:
                made.append((words, labels))
        made.sort(key=lambda each: sum(len(word.ids) for word in each[0]))
        batches: list[list[tuple[list[Word], list[int]]]] = [[]]
        for each in made:
            longest = sum(len(word.ids) for word in each[0])
            if batches[-1] and longest * (len(batches[-1]) + 1) > batch_tokens:
                batches.append([])
            batches[-1].append(each)
        draw.shuffle(batches)
        yield from batches


def _judge(
    tagger: Tagger, held: Sequence[Marked], cut: Words
) -> tuple[float, dict[str, tuple[int, int]], tuple[int, int]]:
    """The threshold of best F1 over held-out words, and what is found and wrong by it."""
    import numpy as np

    sure: list[Any] = []
    labels: list[int] = []
    for row in held:
        words = cut(row.text)
        if words:
            sure.append(1.0 - tagger.chances(words)[:, 0])
            # Signs between words are marked with their neighbours or not at all.
            labels += [label if row.text[word.start].isalnum() else _IGNORE
                       for word, label in zip(words, label_words(row, words), strict=True)]  # fmt: skip
    chance, wanted = np.concatenate(sure), np.asarray(labels)
    known = wanted != _IGNORE
    chance, wanted = chance[known], wanted[known]
    best = (-1.0, 0.5)
    for threshold in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        marked = chance >= threshold
        right = int((marked & (wanted > 0)).sum())
        score = 2 * right / max(1, int((wanted > 0).sum()) + int(marked.sum()))
        best = max(best, (score, threshold))
    marked = chance >= best[1]
    found = {
        LABELS[kind]: (int((marked & (wanted == kind)).sum()), int((wanted == kind).sum()))
        for kind in range(1, len(LABELS))
    }
    return best[1], found, (int((marked & (wanted == 0)).sum()), int((wanted == 0).sum()))
