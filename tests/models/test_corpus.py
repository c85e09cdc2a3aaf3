"""Reading, holding out, packing: the same text always gives the same split and the same windows."""

from __future__ import annotations

import gzip
import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from models import corpus
from models.config import END_OF_TEXT
from models.prepare import prepare, save_hub
from whit.errors import DataError


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x01", b"text\0text", b"", b"  \n "])
def test_text_that_is_none_is_named_and_refused(tmp_path, content):
    path = tmp_path / "toy.train.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"toy\.train\.txt"):
        corpus.read_text(path)


def test_a_cut_gzip_is_refused(tmp_path):
    path = tmp_path / "toy.train.txt.gz"
    path.write_bytes(gzip.compress(b"some text" * 100)[:-20])
    with pytest.raises(DataError, match="not readable"):
        corpus.read_text(path)


def test_an_empty_folder_is_refused(recipe, tokenizer, tmp_path):
    with pytest.raises(DataError, match="not a folder with text"):
        prepare(recipe, tmp_path, tmp_path / "cache", tokenizer)


def test_a_missing_source_is_named(recipe, tokenizer, tmp_path):
    (tmp_path / "other.train.txt").write_text("text")
    with pytest.raises(DataError, match=r"toy\.train\.txt"):
        prepare(recipe, tmp_path, tmp_path / "cache", tokenizer)


def test_too_little_text_for_a_window_is_refused(recipe, tokenizer, tmp_path):
    (tmp_path / "toy.train.txt").write_text("the cat")
    with pytest.raises(DataError, match="fewer than one window"):
        prepare(recipe, tmp_path, tmp_path / "cache", tokenizer)


def test_tokens_are_made_anew_when_the_text_changes(recipe, tokenizer, texts, tmp_path):
    path, cache = tmp_path / "toy.train.txt", tmp_path / "cache"
    path.write_text("\n<|endoftext|>\n".join(texts))
    first, _ = prepare(recipe, tmp_path, cache, tokenizer)
    again, _ = prepare(recipe, tmp_path, cache, tokenizer)
    path.write_text("\n<|endoftext|>\n".join(texts[:-5]))
    other, _ = prepare(recipe, tmp_path, cache, tokenizer)
    assert first.fingerprint == again.fingerprint != other.fingerprint


def _books() -> tuple[list[str], list[int]]:
    """30 'books' of 25 excerpts, each with three people of its own, shuffled; and which book each is of."""
    rng = random.Random(5)
    rows = []
    for book in range(30):
        people = [f"{a}{chr(97 + book % 26)}{chr(97 + book // 26)}lyn" for a in ("Mar", "Tor", "Bel")]
        for _ in range(25):
            said = [f"then came {rng.choice(people)} and all the others went home" for _ in range(4)]
            rows.append((", ".join(said), book))
    rng.shuffle(rows)
    return [text for text, _ in rows], [book for _, book in rows]


def test_books_are_held_out_whole():
    texts, books = _books()
    held = corpus.held_books(texts, share=0.1)
    chosen = {books[i] for i in held}
    assert 0.05 * len(texts) < len(held) < 0.2 * len(texts)
    assert held == {i for i, book in enumerate(books) if book in chosen}


def test_what_is_held_out_does_not_depend_on_the_order():
    texts, _ = _books()
    reordered = sorted(texts)
    first = {texts[i] for i in corpus.held_books(texts, share=0.1)}
    assert first == {reordered[i] for i in corpus.held_books(reordered, share=0.1)}


def test_nothing_held_out_is_trained_on(texts):
    train, held = corpus.split_source("anything", [f"{text} {i}" for i in range(40) for text in texts])
    assert held and not set(train) & set(held) and len(train) + len(held) == 40 * len(texts)


def test_an_epoch_holds_every_document_by_its_weight(texts, tokenizer):
    sources = {
        "one": corpus.encode_documents(tokenizer, texts[:5]),
        "two": corpus.encode_documents(tokenizer, texts[5:8]),
    }
    windows = corpus.Windows(sources, {"one": 1, "two": 3}, sequence=16, seed=4)
    windows.window(0)
    ends = np.flatnonzero(windows._stream == END_OF_TEXT)
    seen = np.split(windows._stream, ends + 1)[:-1]
    decoded = sorted(tokenizer.decode(document[:-1].tolist()) for document in seen)
    assert decoded == sorted(texts[:5] + texts[5:8] * 3)


def test_windows_overlap_by_their_label_only_and_epochs_differ(windows):
    assert windows.window(0)[-1] == windows.window(1)[0]
    inputs, labels = windows.batch(0, 2)
    assert np.array_equal(inputs[:, 1:], labels[:, :-1])
    assert not np.array_equal(windows.window(0), windows.window(windows.per_epoch))


def test_the_same_seed_gives_the_same_windows(texts, tokenizer):
    source = {"toy": corpus.encode_documents(tokenizer, texts)}
    first, second = (corpus.Windows(source, {"toy": 1}, sequence=16, seed=4) for _ in range(2))
    second.window(second.per_epoch + 3)  # another order of asking
    assert np.array_equal(first.window(7), second.window(7))


def test_a_local_data_set_is_read_as_a_hub_one_is(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"text": "One tale."}\n{"text": ""}\n{"text": "Another."}\n')
    folder = save_hub(str(tmp_path / "set"), "text", tmp_path / "kept")
    assert corpus.documents(corpus.read_text(corpus.find_source(folder, "hub"))) == ["One tale.", "Another."]
    with pytest.raises(DataError, match="no column 'story'"):
        save_hub(str(tmp_path / "set"), "story", tmp_path / "other")


def test_without_datasets_the_hub_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install"):
        list(corpus.hub_documents("any/set"))


def test_a_data_set_that_cannot_be_had_is_named(monkeypatch):
    def absent(name, split):
        raise FileNotFoundError("no such set")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=absent))
    with pytest.raises(DataError, match="'any/set'"):
        list(corpus.hub_documents("any/set"))
