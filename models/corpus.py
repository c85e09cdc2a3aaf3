"""The corpus folder: reading, holding out whole books, the manifest, packed windows of tokens.

Promises that what is held out depends only on the text (by hash, before any training), and that the window at
a given position of a given epoch is always the same. Knows nothing of networks.

The Gutenberg files are shuffled excerpts without their books' titles, so a book is recognised by its people:
an anchor name chosen by hash, the names that keep it company, and every excerpt that mentions one of them.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.config import END_OF_TEXT
from whit.errors import DataError

SEPARATOR = "<|endoftext|>"
HELD_SHARE = 0.015  # of a source's bytes, held out in whole books or documents
HELD_SHARES = {"fairytale": 0.05}  # few and long documents
BOOKS = ("gutenberg_kids", "gutenberg_simple_adult")  # excerpts that share books
NAME = re.compile(r"(?<=[a-z,;] )[A-Z][a-z]{2,}\b")

LICENCES = {
    "gutenberg_kids": ("children's books, Project Gutenberg", "public domain"),
    "gutenberg_simple_adult": ("easy prose, Project Gutenberg", "public domain"),
    "sgd_dialogue": ("Schema-Guided Dialogue", "CC BY-SA 4.0"),
    "tinystories": ("TinyStories", "CDLA-Sharing 1.0"),
    "fairytale": ("fairy tales, public domain collections", "Apache-2.0"),
}


def read_text(path: Path) -> str:
    """The text of one file, `.gz` or not. Raises `DataError` where it is no UTF-8 text or empty."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = content.decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not readable UTF-8 text ({error}); leave it out of the corpus") from error
    if "\0" in text[:100_000]:
        raise DataError(f"{path} holds binary data; leave it out of the corpus")
    if not text.strip():
        raise DataError(f"{path} is empty; give a file with text, documents separated by {SEPARATOR}")
    return text


def find_source(folder: Path, source: str, part: str = "train") -> Path:
    """The file of a source, as `NAME.train.txt.gz`, `NAME.txt.gz` or the same without `.gz`."""
    names = [f"{source}.{part}.txt.gz", f"{source}.{part}.txt"]
    if part == "train":
        names += [f"{source}.txt.gz", f"{source}.txt"]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"no {names[0]} or {names[1]} in {folder}; the corpus folder needs one file for each source")


def documents(text: str) -> list[str]:
    """The documents of a text, stripped, none of them empty."""
    return [part.strip() for part in text.split(SEPARATOR) if part.strip()]


def _rank(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def held_books(texts: Sequence[str], share: float = HELD_SHARE) -> set[int]:
    """Indices of the excerpts of whole books, about `share` of all characters, chosen by hash of a name.

    A name is a capitalised word inside a sentence that is never seen in lower case. An anchor needs two
    companions: names of which at least six in ten mentions are in excerpts that mention the anchor.
    """
    lower = Counter(word for text in texts for word in set(re.findall(r"\b[a-z]{3,}\b", text)))
    where: dict[str, set[int]] = defaultdict(set)
    for index, text in enumerate(texts):
        for name in set(NAME.findall(text)):
            where[name].add(index)
    # Longer than 400 excerpts and it is a common first name; fewer than 8 and it says nothing.
    where = {n: rows for n, rows in where.items() if 8 <= len(rows) <= 400 and not lower[n.lower()]}
    anchors = sorted((n for n, rows in where.items() if 20 <= len(rows) <= 150), key=_rank)
    wanted, held, size = share * sum(map(len, texts)), set[int](), 0
    for anchor in anchors:
        if size >= wanted:
            break
        book, names = set(where[anchor]), {anchor}
        for _ in range(2):
            near = Counter(n for i in book for n in set(NAME.findall(texts[i])) if n in where)
            names |= {n for n, count in near.items() if count >= 0.6 * len(where[n])}
            book = set().union(*(where[n] for n in names))
        if len(names) >= 3:
            held |= book
            size = sum(len(texts[i]) for i in held)
    return held


def split_source(source: str, texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """(train, held out) documents of a source: books for the Gutenberg files, documents by hash elsewhere."""
    if source in BOOKS:
        held = held_books(texts)
    else:
        share = HELD_SHARES.get(source, HELD_SHARE)
        held = {i for i, text in enumerate(texts) if _rank(text) < share * 2**64}
    return [t for i, t in enumerate(texts) if i not in held], [texts[i] for i in sorted(held)]


def load_source(folder: Path, source: str) -> tuple[list[str], list[str]]:
    """(train, held out) documents of a source of a folder; a `.heldout` file is used where there is one."""
    texts = documents(read_text(find_source(folder, source)))
    try:
        path = find_source(folder, source, "heldout")
    except DataError:
        return split_source(source, texts)
    # This file separates its dialogues by an empty line.
    return texts, [part.strip() for part in read_text(path).split("\n\n") if part.strip()]


def manifest(folder: Path, mixture: Mapping[str, int]) -> list[dict[str, Any]]:
    """What was used: file, what it is, licence, bytes unpacked, SHA-256 of the file, weight, held-out bytes."""
    entries = []
    for source, weight in mixture.items():
        path = find_source(folder, source)
        train, held = load_source(folder, source)
        what, licence = LICENCES.get(source, ("not known to the recipe", "not known to the recipe"))
        entries.append(
            {
                "file": path.name,
                "what": what,
                "licence": licence,
                "bytes": len(read_text(path).encode()),
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "weight": weight,
                "trained_documents": len(train),
                "held_out_documents": len(held),
                "held_out_bytes": sum(len(text.encode()) for text in held),
            }
        )
    return entries


def encode_documents(tokenizer: Any, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, starts): all documents as uint16, each ended by the end-of-text token; `starts` has one more."""
    pieces: list[np.ndarray] = []
    for first in range(0, len(texts), 1000):
        for encoding in tokenizer.encode_batch(list(texts[first : first + 1000]), add_special_tokens=False):
            pieces.append(np.array([*encoding.ids, END_OF_TEXT], dtype=np.uint16))
    starts = np.cumsum([0, *map(len, pieces)])
    return np.concatenate(pieces) if pieces else np.zeros(0, np.uint16), starts


class Windows:
    """Packed windows of `sequence` + 1 tokens: each epoch is all documents, by weight, in an order of its own."""

    def __init__(
        self,
        sources: Mapping[str, tuple[np.ndarray, np.ndarray]],
        mixture: Mapping[str, int],
        *,
        sequence: int,
        seed: int,
    ):
        self.sources, self.mixture, self.sequence, self.seed = sources, mixture, sequence, seed
        size = sum(len(sources[name][0]) * weight for name, weight in mixture.items())
        self.per_epoch = (size - 1) // sequence
        if self.per_epoch < 1:
            raise DataError(f"the corpus has {size} tokens, fewer than one window of {sequence}; give more text")
        digest = hashlib.sha256()
        for name in sorted(mixture):
            digest.update(f"{name}×{mixture[name]}".encode() + sources[name][0].tobytes())
        self.fingerprint = digest.hexdigest()  # of the tokens and weights, for the checkpoint
        self._epoch, self._stream = -1, np.zeros(0, np.uint16)

    def resized(self, sequence: int) -> Windows:
        """The same text in windows of another length."""
        return Windows(self.sources, self.mixture, sequence=sequence, seed=self.seed)

    def _load(self, epoch: int) -> None:
        order = [
            (name, document)
            for name, weight in sorted(self.mixture.items())
            for _ in range(weight)
            for document in range(len(self.sources[name][1]) - 1)
        ]
        pieces = []
        for position in np.random.Generator(np.random.Philox([self.seed, epoch])).permutation(len(order)):
            name, document = order[position]
            tokens, starts = self.sources[name]
            pieces.append(tokens[starts[document] : starts[document + 1]])
        self._stream, self._epoch = np.concatenate(pieces), epoch

    def window(self, index: int) -> np.ndarray:
        """Window number `index`, counted through all epochs: int64 [sequence + 1]."""
        epoch, place = divmod(index, self.per_epoch)
        if epoch != self._epoch:
            self._load(epoch)
        first = place * self.sequence
        return self._stream[first : first + self.sequence + 1].astype(np.int64)

    def batch(self, step: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels of one step, int64 [size, sequence] each."""
        windows = np.stack([self.window(step * size + i) for i in range(size)])
        return windows[:, :-1], windows[:, 1:]


def hub_documents(name: str, *, column: str = "text", split: str = "train", limit: int = 0) -> Iterator[str]:
    """Documents of a hub (or local) data set through `datasets`. Raises `DataError` where it cannot be read."""
    try:
        import datasets
    except ImportError as error:
        raise DataError("--hub needs the `datasets` package: pip install 'whit[bench]'") from error
    try:
        rows = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises many kinds; each means that the set cannot be had
        raise DataError(f"cannot load the data set {name!r}: {error}") from error
    if column not in rows.column_names:
        raise DataError(f"{name!r} has no column {column!r}, only {', '.join(rows.column_names)}; use --hub-column")
    for index, row in enumerate(rows):
        if limit and index >= limit:
            return
        if isinstance(row[column], str) and row[column].strip():
            yield row[column].strip()
