from __future__ import annotations

import contextlib
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whit.evaluation import answers


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("He has 1,234,567 apples", [1234567]),
        ("$1,200.50 and €3", [1200.5, 3]),
        ("-5 degrees, −7 at night", [-5, -7]),
        ("12-5=7", [12, 5, 7]),
        ("1/2 cup", [0.5]),
        ("1 1/2 cups", [1.5]),
        ("½ or 2¾", [0.5, 2.75]),
        (r"\frac{3}{4}", [0.75]),
        ("50% of 80kg", [50, 80]),
        (".5", [0.5]),
        ("1.5e3", [1500]),
        ("1,2,3", [1]),  # no thousands: what follows the comma belongs to no number that can be told
        ("1, 2, 3", [1, 2, 3]),
        ("call B52", []),
        ("5/0", []),
        ("9" * 400, []),
        ("none", []),
    ],
)
def test_numbers(text: str, numbers: list[float]) -> None:
    assert answers.numbers_in(text) == pytest.approx(numbers)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 48/2=24 and 48+24 = <<48+24=72>>72 clips.\n#### 72", 72),
        ("#### 1,000\nThat took 5 minutes", 1000),
        ("####", None),
        (r"we get \boxed{42} after 3 steps", 42),
        ("The answer is 7, since 9 - 2 = 7 and not 8", 7),
        ("first 3 then 4", 4),
        ("12 apples.", 12),
        ("no idea", None),
    ],
)
def test_the_number_that_a_text_ends_up_at(text: str, number: float | None) -> None:
    assert answers.final_number(text) == number


@given(st.integers(-(10**12), 10**12))
def test_any_integer_is_read_with_and_without_separators(n: int) -> None:
    assert answers.final_number(f"It is {n:,}.") == n
    assert answers.final_number(str(n)) == n


def test_large_numbers_that_differ_are_different() -> None:
    assert not answers.same_number(1_000_000, 1_000_001)
    assert answers.same_number(0.1 + 0.2, 0.3)


def test_labels_forgive_case_space_and_outer_punctuation_only() -> None:
    reader = answers.LabelReader(["positive", "negative", "card_arrival"])
    assert [reader.strict(text) for text in (" Positive.", '"NEGATIVE"', "card_arrival!")] == list(reader.labels)
    assert reader.strict("it is positive") is None
    assert reader.strict("card arrival") is None
    assert reader.lenient("Card arrival, I think") == "card_arrival"


def test_lenient_takes_the_first_label_and_whole_words() -> None:
    reader = answers.LabelReader(["spam", "ok", "card", "card arrival"])
    assert reader.lenient("Not ok: spam") == "ok"
    assert reader.lenient("spammy look") is None
    assert reader.lenient("about card arrival") == "card arrival"


def test_labels_that_punctuation_keeps_apart_stay_apart() -> None:
    reader = answers.LabelReader(["c", "c++", "+", "-"])
    assert [reader.strict(text) for text in ("C++", "c", "+", "-")] == ["c++", "c", "+", "-"]
    assert reader.lenient("use c++ here") == "c++"


@pytest.mark.parametrize("text", ['{"a":1,"a":2}', "NaN", '{"a":Infinity}', "[" * 100_000, "", "{'a':1}", "{} x"])
def test_strict_json_refuses(text: str) -> None:
    with pytest.raises(ValueError):
        answers.parse_json(text)


def test_json_equality() -> None:
    assert answers.same_json({"a": 1, "b": [1.0]}, {"b": [1], "a": 1.0})
    assert not answers.same_json(True, 1)
    assert not answers.same_json("1", 1)
    assert not answers.same_json([1, 2], [2, 1])
    assert answers.same_json(None, None) and not answers.same_json(None, False)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('Sure! ```json\n{"intent": "x", "n": 1}\n```', {"intent": "x", "n": 1}),
        ("{'intent': 'x', 'n': 1}", {"intent": "x", "n": 1}),
        ('{"intent": "x", "n": 1,}', {"intent": "x", "n": 1}),
        ('{"intent": "x", "n": "ca', {"intent": "x"}),
        ("intent: x", {"intent": "x"}),
        ("nothing here", None),
        ("note: nothing", None),
    ],
)
def test_objects_are_found_in_text(text: str, found: object) -> None:
    assert answers.find_object(text, ["intent", "n"]) == found


def test_folding_looks_through_case_and_quoted_numbers() -> None:
    assert answers.fold_json({" Name": "Bob ", "n": "2", "t": "True"}) == {"name": "bob", "n": 2.0, "t": True}


@settings(max_examples=300)
@given(st.text() | st.text(alphabet="{}[]\"':,=a1. \\#$-/"))
def test_no_answer_makes_a_reader_raise(text: str) -> None:
    answers.numbers_in(text)
    answers.final_number(text)
    answers.find_object(text, ["a", "1"])
    answers.LabelReader(["a", text]).lenient(text)
    with contextlib.suppress(ValueError):
        answers.fold_json(answers.parse_json(text))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_json_is_the_same_after_a_round_trip(value: object) -> None:
    assert answers.same_json(answers.parse_json(json.dumps(value)), value)


@pytest.mark.parametrize("piece", ["{", '{"a":', "a:", '"a":"', "1 1/", "1,111,", "\\frac{1}", "(", "####", "label "])
def test_hostile_answers_are_read_in_no_time(piece: str) -> None:
    text = piece * 200_000
    reader = answers.LabelReader([f"label {n}" for n in range(200)])
    start = time.perf_counter()
    answers.final_number(text)
    answers.find_object(text, ["a"])
    reader.lenient(text)
    assert time.perf_counter() - start < 2
