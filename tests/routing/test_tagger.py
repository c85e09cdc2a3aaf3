"""The adapter that marks names, places and health: windows, marks, time, and learning it from rows."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whit.errors import AdapterError, DataError, UsageError
from whit.routing.config import Detection
from whit.routing.detection import tagger, teaching
from whit.routing.detection.scanner import Scanner
from whit.routing.detection.tagger import LABELS, Tagger, Word, Words
from whit.settings import RouteSettings
from whit.verbs.route import route

NAMES = ("Ada Byron", "Tomas Vogel", "Chidi Okafor", "Greta Lind", "Ines Duarte", "Kenji Mori")
PLACES = ("Leeds", "Porto", "Tallinn", "Osaka", "Graz", "Cork")
TEMPLATES = ("call {P} today", "{P} lives in {L}", "the train to {L} is late", "ask {P}", "I met {P} in {L}", "in {L}")
PLAIN = (
    "how do I reset it?",
    "the train is late",
    "ask again today",
    "I like the sea",
    "call me later",
    "why is that?",
)


def rows(count: int = 60) -> list[dict[str, Any]]:
    draw, found = random.Random(0), []
    for at in range(count):
        template = TEMPLATES[at % len(TEMPLATES)]
        text, spans = "", []
        for part in template.replace("{", "|{").replace("}", "}|").split("|"):
            kind = {"{P}": ("PERSON", NAMES), "{L}": ("GPE", PLACES)}.get(part)
            said = draw.choice(kind[1]) if kind else part
            if kind:
                spans.append({"type": kind[0], "start": len(text), "end": len(text) + len(said)})
            text += said
        found.append({"text": text, "spans": spans, "template": f"t{at % 24}"})
        found.append({"text": PLAIN[at % len(PLAIN)], "spans": [], "template": f"p{at % 24}"})
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from whit.bases import load_base
    from whit.testing import write_tiny_base

    return load_base(write_tiny_base(tmp_path_factory.mktemp("tiny") / "base", context=256), dtype="float32")


@pytest.fixture(scope="module")
def learnt(base: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `whit route learn` leaves it."""
    folder = tmp_path_factory.mktemp("learn")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()), "utf-8")
    result = route(
        RouteSettings(words=("learn", str(folder / "rows.jsonl")), base=str(base.path), rank=8, epochs=14.0,
                      learning_rate=0.01, out=folder / "out")
    )  # fmt: skip
    assert result is not None
    found = result.to_json()
    assert found["rows"] > 80 and found["held_out"] > 5 and 0 < found["threshold"] < 1
    assert "names" not in found and "tiers.toml" in result.to_text()
    return folder / "out"


def test_what_was_learnt_is_found_and_the_rest_is_left(learnt: Path) -> None:
    marks = Tagger.load(str(learnt))
    hits = sum(("person", name) in marks(f"call {name} today") for name in NAMES)
    assert hits >= 5
    assert sum(bool(marks(text)) for text in PLAIN) <= 1
    scan = Scanner(Detection(), hook=marks)([f"call {NAMES[0]} today"])
    assert scan.kinds == {"person"} and scan.failed is None
    assert Scanner(Detection(kinds=("card",)), hook=marks)([f"call {NAMES[0]} today"]).clean


def test_the_same_rows_make_the_same_adapter(base: Any) -> None:
    few = teaching_rows()
    one, two = (teaching.learn(base, few, rank=2, epochs=0.5, seed=3) for _ in range(2))
    assert one.adapter.lora is not None and two.adapter.lora is not None
    assert all(bool((part == two.adapter.lora.B[name]).all()) for name, part in one.adapter.lora.B.items())
    assert one.losses == two.losses and one.threshold == two.threshold


def teaching_rows() -> list[teaching.Marked]:
    return [
        teaching.Marked(row["text"], tuple(teaching.Span(each["type"], each["start"], each["end"])
                                           for each in row["spans"]), row["template"])
        for row in rows(30)
    ]  # fmt: skip


def test_too_little_time_is_a_scan_that_failed(learnt: Path) -> None:
    marks = Tagger.load(str(learnt), seconds=-1.0)
    with pytest.raises(TimeoutError):
        marks("call Ada")
    assert "too long" in str(Scanner(Detection(), hook=marks)(["call Ada"]).failed)


def test_every_word_is_looked_at_whatever_the_length(learnt: Path) -> None:
    marks = Tagger.load(str(learnt))
    words = marks._words("word " * 3000)
    chances = marks.chances(words)
    assert chances.shape == (3000, len(LABELS)) and np.allclose(chances.sum(1), 1.0, atol=1e-4)
    assert marks("") == [] and marks(" \n ") == [] and isinstance(marks("x" * 100_000), list)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=200))
@settings(max_examples=100, deadline=None)
def test_windows_cover_all_words_and_overlap(sizes: list[int]) -> None:
    words = [Word(at, at + 1, (0,) * size) for at, size in enumerate(sizes)]
    windows = list(tagger._windows(words))
    assert windows[0][0] == 0 and windows[-1][1] == len(words)
    for (start, stop), (next_start, next_stop) in itertools.pairwise(windows):
        assert start < next_start <= stop < next_stop
    for start, stop in windows:
        assert sum(sizes[start:stop]) <= 192 or stop == start + 1


@given(st.text(max_size=120))
@settings(max_examples=100, deadline=None)
def test_words_stand_where_they_say(base: Any, text: str) -> None:
    words = Words(base)(text)
    assert all(0 <= word.start < word.stop <= len(text) and word.ids for word in words)
    covered = {at for word in words for at in range(word.start, word.stop)}
    assert all(at in covered for at, character in enumerate(text) if character.isalnum())


def test_marks_join_words_of_one_kind() -> None:
    text = "Dr. Ada-Mae O'Neil, Cork\nLeeds"
    words = [Word(*match.span(), (0,)) for match in tagger._WORD.finditer(text)]
    kinds = {"Ada": 1, "Mae": 1, "O": 1, "Neil": 1, "Cork": 2, "Leeds": 2}
    chances = np.zeros((len(words), 4), np.float32)
    for at, word in enumerate(words):
        chances[at, kinds.get(text[word.start : word.stop], 0)] = 1.0
    marks = [(mark.kind, text[mark.start : mark.stop]) for mark in tagger._joined(text, words, chances, 0.5)]
    assert marks == [("person", "Ada-Mae O'Neil"), ("place", "Cork"), ("place", "Leeds")]


def test_labels_follow_spans_and_leave_open_what_is_open(base: Any) -> None:
    row = teaching.Marked("Ada of Acme in Leeds", (teaching.Span("PERSON", 0, 3), teaching.Span("ORGANIZATION", 7, 11),
                                                   teaching.Span("GPE", 15, 20)), "t")  # fmt: skip
    assert teaching.label_words(row, Words(base)(row.text)) == [1, 0, -100, 0, 2]


@given(st.integers(0, 10_000))
@settings(max_examples=100, deadline=None)
def test_varied_rows_keep_their_spans(seed: int) -> None:
    pools = {"PERSON": list(NAMES), "GPE": list(PLACES)}
    known = {each.lower() for each in (*NAMES, *PLACES)}
    for row in teaching_rows()[:12]:
        new = teaching.varied(row, pools, random.Random(seed))
        assert [span.type for span in new.spans] == [span.type for span in row.spans]
        assert all(new.text[span.start : span.stop].lower() in known for span in new.spans)


def test_bad_rows_and_wrong_adapters_are_told(base: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for line in ('{"spans": []}', "[]", '{"text": "ab", "spans": [{"type": "GPE", "start": 1, "end": 9}]}', "{"):
        path.write_text('{"text": "fine"}\n' + line + "\n", "utf-8")
        with pytest.raises(DataError, match=r"rows\.jsonl:2"):
            teaching.read_marked(path)
    path.write_text('{"text": "fine"}\n', "utf-8")
    with pytest.raises(DataError, match="too few rows"):
        teaching.learn(base, teaching.read_marked(path))
    with pytest.raises(DataError, match="cannot be read"):
        teaching.read_marked(tmp_path / "none.jsonl")
    with pytest.raises(AdapterError, match="whit route learn"):
        Tagger.load(str(tmp_path))
    (tmp_path / "card.json").write_text('{"marks": {"labels": ["a"], "threshold": 2}}')
    with pytest.raises(UsageError, match="not a card"):
        tagger.card(str(tmp_path))
    with pytest.raises(UsageError, match="one or more files"):
        route(RouteSettings(words=("learn",)))


def test_the_built_in_adapter_finds_names_and_places_and_fits_its_base() -> None:
    """Where this fails because `eeny` was made anew, make the adapter anew too: see `docs/routing.md`."""
    folder = tagger.folder_of("names")
    assert sum(path.stat().st_size for path in folder.iterdir()) < 300_000
    marks = Tagger.load("names")
    marks.threshold = 0.3
    wanted = (
        ("Please call Maria Lopez tomorrow about the contract.", "person", "Maria"),
        ("Forward this to John Smith in accounting.", "person", "Smith"),
        ("She moved from Toronto to Leeds in 2019.", "place", "Toronto"),
        ("My address is 12 Harbour Street.", "place", "Harbour"),
        ("I was diagnosed with asthma last spring.", "health", "asthma"),
        ("The patient suffers from epilepsy and takes insulin twice a day.", "health", "epilepsy"),
    )
    hits = [any(found == kind and said in written for found, written in marks(text)) for text, kind, said in wanted]
    assert sum(hits) >= 5, hits
    assert Scanner(Detection(), hook=marks)([wanted[0][0]]).failed is None
    marks.threshold = 0.8
    plain = ("How do I reset my password?", "Write a haiku about autumn leaves.", "Sort this list in descending order.",
             "What is the boiling point of water?", "Please keep it short.", "The train was late again.")  # fmt: skip
    assert sum(bool(marks(text)) for text in plain) <= 2
