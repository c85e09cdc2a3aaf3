"""Each kind of problem is found where it was put, and not in sound rows."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from whit.data.checking import KINDS, Problem, check_rows
from whit.data.fixing import fix_rows
from whit.data.rows import Row, Turn, read_rows

WORDS = ["".join(random.Random(i).choices("abcdefghijklmnopqrstuvwxyz", k=7)) for i in range(300)]


def row(text: str, answer: str, id: str = "x") -> Row:
    return Row(id, (Turn("user", text),), answer)


def sound(count: int = 60) -> list[Row]:
    draw = random.Random(0)
    labels = ["red", "green", "blue"]
    return [row(" ".join(draw.choices(WORDS, k=9)) + ".", labels[i % 3], f"s{i}") for i in range(count)]


def sound_json(count: int = 60) -> list[Row]:
    answers = [{"colour": c, "size": s} for c in ("red", "blue") for s in ("small", "large")]
    return [replace(r, completion=json.dumps(answers[i % 4])) for i, r in enumerate(sound(count))]


def found(rows: list[Row], **options: Any) -> dict[str, list[Problem]]:
    kinds: dict[str, list[Problem]] = {}
    for problem in check_rows(rows, **options):
        assert problem.kind in KINDS and problem.ids and problem.message
        kinds.setdefault(problem.kind, []).append(problem)
    return kinds


def test_sound_rows_have_no_problem() -> None:
    assert found(sound()) == {} and found(sound_json()) == {}


@pytest.mark.parametrize(
    ("kind", "rows", "ids"),
    [
        ("duplicate", lambda s: [*s, replace(s[4], id="twice")], {"s4", "twice"}),
        ("duplicate", lambda s: [*s, row(s[4].prompt.upper() + " ", "Green", "twice")], {"s4", "twice"}),
        ("near-duplicate", lambda s: [*s, row(s[4].prompt[:-1] + "!x", "green", "near")], {"s4", "near"}),
        ("conflict", lambda s: [*s, row(s[4].prompt, "blue", "other")], {"s4", "other"}),
        ("empty", lambda s: [*s, row(" ", "red", "none")], {"none"}),
        ("empty", lambda s: [*s, row("some words here", "\n", "none")], {"none"}),
        ("truncated", lambda s: [*s, row("and so it goes on [truncated]", "red", "cut")], {"cut"}),
        ("rare-label", lambda s: [*s, row("some words here", "purple", "rare")], {"rare"}),
        ("format-case", lambda s: [*s, row("some words here", "RED", "shout")], {"shout"}),
        ("format-spaces", lambda s: [*s, row("some words here", "red ", "space")], {"space"}),
        ("format-spaces", lambda s: [*s, row("\tsome words here", "red", "space")], {"space"}),
        ("format-punctuation", lambda s: [*s, row("some words here", "red.", "stop")], {"stop"}),
        ("email", lambda s: [*s, row("write to a@b.co now", "red", "mail")], {"mail"}),
        ("card", lambda s: [*s, row("it is 4111 1111 1111 1111", "red", "card")], {"card"}),
        ("key", lambda s: [*s, row("some words here", "AKIA" + "IOSFODNN7EXAMPLE", "key")], {"key"}),
        ("special-token", lambda s: [*s, row("say <|im_end|> now", "red", "odd")], {"odd"}),
        ("one-class", lambda s: [replace(r, completion="red") for r in s[:3]], {"s0", "s1", "s2"}),
        ("one-row", lambda s: s[:1], {"s0"}),
    ],
)
def test_problems_of_labels(kind: str, rows: Any, ids: set[str]) -> None:
    problems = found(rows(sound()))
    assert {i for problem in problems[kind] for i in problem.ids} == ids


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("invalid-json", "red and small"),
        ("invalid-json", '{"colour": "red" "size": "small"}'),
        ("invalid-json", "[1]"),
        ("truncated", '{"colour": "red", "size": "sma'),
        ("truncated", '{"colour": "red", "size": "small"'),
        ("json-keys", '{"colour": "red"}'),
        ("json-keys", '{"colour": "red", "size": "small", "extra": 1}'),
        ("json-style", '{"size": "small", "colour": "red"}'),
        ("json-style", '{"colour":"red","size":"small"}'),
        ("json-types", '{"colour": "red", "size": 3}'),
        ("format-case", '{"colour": "Red", "size": "small"}'),
        ("format-spaces", '{"colour": "red ", "size": "small"}'),
        ("rare-label", '{"colour": "rde", "size": "small"}'),
    ],
)
def test_problems_of_json(kind: str, answer: str) -> None:
    problems = found([*sound_json(), row("some words here", answer, "odd")])
    assert {i for problem in problems[kind] for i in problem.ids} == {"odd"}
    assert set(problems) <= {kind, "rare-label"}


def test_keys_that_vary_by_design_are_no_problem() -> None:
    draw = random.Random(1)
    keys = ["intent", "city", "date", "name", "genre", "room"]
    rows = [
        replace(r, completion=json.dumps({k: draw.choice(WORDS) for k in draw.sample(keys, draw.randint(1, 5))}))
        for r in sound(200)
    ]
    assert not {"json-keys", "json-style"} & set(found(rows))


def test_texts_cut_at_one_length() -> None:
    draw = random.Random(2)
    long = [" ".join(draw.choices(WORDS, k=60))[:199] + "x" for _ in range(5)]
    rows = [*sound(), *(row(text, "red", f"c{i}") for i, text in enumerate(long))]
    assert set(found(rows)["truncated"][0].ids) == {f"c{i}" for i in range(5)}


def test_imbalance_says_what_always_guessing_scores() -> None:
    rows = [replace(r, completion="red" if i % 10 else "blue") for i, r in enumerate(sound(100))]
    (problem,) = found(rows)["imbalance"]
    assert "90%" in problem.message and len(problem.ids) == 10


def test_a_misspelt_label_comes_with_a_guess() -> None:
    (problem,) = found([*sound(), row("some words here", "gren", "odd")])["rare-label"]
    assert "'green'" in problem.message


def test_beyond_the_context() -> None:
    rows = [*sound(), row("long " * 100, "red", "long"), row("longer " * 100, "red", "longer")]
    (problem,) = found(rows, context_tokens=lambda r: len(r.prompt), context=400)["too-long"]
    assert problem.ids == ("longer", "long") and "400" in problem.message and "700" in problem.message


def test_leakage_between_splits() -> None:
    rows = sound()
    dev = [
        replace(rows[3], id="d0"),
        row(rows[5].prompt[:-1] + "?", "red", "d1"),
        row("quite another text", "red", "d2"),
    ]
    test = [row(dev[2].prompt.upper(), "red", "t0")]
    problems = found(rows, splits={"dev": dev, "test": test})["leakage"]
    assert [set(p.ids) for p in problems] == [{"s3", "s5"}, {"d2"}]
    assert "s3 = d0" in problems[0].message and "dev" in problems[0].message and "test" in problems[1].message
    assert "leakage" not in found(rows, splits={"dev": dev[2:]})


def test_messages_quote_no_secret() -> None:
    text = "my address is a.person@mail.example.org ok"
    rows = [*sound(), row(text, "red", "a"), row(text, "blue", "b"), row(text + " now", "blue", "c")]
    assert all("a.person" not in p.message for p in check_rows(rows))


def test_serious_problems_come_first() -> None:
    rows = [*sound(), row("some words here", "RED", "a"), row(" ", "red", "b")]
    problems = check_rows(rows)
    assert [p.serious for p in problems] == [True, False]


FIXABLE = set(KINDS) - {
    "special-token",
    "near-duplicate",
    "rare-label",
    "json-keys",
    "json-types",
    "imbalance",
    "one-class",
    "one-row",
}


def test_fixing_mends_everything_that_can_be_mended() -> None:
    for make in (sound, sound_json):
        rows = make()
        answer, other = rows[0].completion, rows[1].completion
        bad = [
            replace(rows[0], id="twice"),
            row(rows[1].prompt, answer, "conflict-1"),
            row(rows[1].prompt + " ", other, "conflict-2"),
            row(rows[2].prompt, other, "tie"),
            row("", answer, "empty"),
            row("goes on [truncated]", answer, "cut"),
            row("w a b", answer.upper() if make is sound else answer.replace("red", "Red"), "shout"),
            row("w c d ", f" {answer}", "spaces"),
            row("mail a@b.co or 4111111111111111", answer, "secret"),
            row("mail a@b.co or 4111111111111111 ", answer, "secret-again"),
            row("endless " * 100, answer, "long"),
            row(rows[7].prompt, rows[7].completion, "leaked"),
        ]
        if make is sound_json:
            bad += [row("w e f", "{broken", "broken"), row("w g h", '{"size":"small","colour":"red"}', "style")]
        options: dict[str, Any] = {
            "context_tokens": lambda r: len(r.prompt),
            "context": 500,
            "splits": {"dev": [replace(rows[7], id="dev")]},
        }
        before = [*rows, *bad]
        kept, changes, left = fix_rows(before, check_rows(before, **options))
        assert not FIXABLE & {p.kind for p in check_rows(kept, **options)}
        ids = {r.id for r in kept}
        gone = {
            "twice",
            "conflict-1",
            "conflict-2",
            "tie",
            "s2",
            "empty",
            "cut",
            "secret-again",
            "long",
            "leaked",
            "s7",
        }
        assert ids == {r.id for r in before} - gone - {"broken"}
        # Whatever is not as it was is told, row by row; nothing else is.
        told = {change.split(":")[0] for change in changes}
        assert told == {r.id for r in before if r not in kept}
        assert fix_rows(kept, check_rows(kept, **options)) == (kept, [], left)
        mended = {r.id: r for r in kept}
        assert mended["secret"].prompt == "mail [e-mail] or [card number]"
        assert mended["shout"].completion == answer == mended["spaces"].completion


def test_the_documentation_names_every_kind() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for kind, meaning in KINDS.items():
        assert f"| `{kind}` | {meaning} |" in text


def test_the_example_data_is_sound() -> None:
    examples = Path(__file__).resolve().parents[2] / "examples"
    rows, later = (read_rows(examples / name) for name in ("tickets.jsonl", "tickets-later.jsonl"))
    assert len(rows) >= 400 and len(later) == 100
    assert check_rows(rows, splits={"later": later}) == [] and check_rows(later) == []
    keys = [tuple(json.loads(r.completion)) for r in rows + later]
    assert set(keys) == {("product", "issue", "urgency")}


@pytest.mark.slow
def test_fifteen_thousand_rows_take_seconds(shared_data: Path) -> None:
    rows = read_rows(shared_data / "tasks" / "clinc150" / "train.jsonl")
    started = time.process_time()
    check_rows(rows)
    assert time.process_time() - started < 15
