"""Causes: each kind is found with its evidence, in an order, and free text is never called wrong."""

from __future__ import annotations

from whit.data.checking import check_rows
from whit.data.rows import Row, Turn
from whit.evaluation.causes import CAUSES, Causes
from whit.evaluation.scoring import ExactScorer, LabelScorer, Scorer


def row(identity: str, prompt: str, completion: str) -> Row:
    return Row(identity, (Turn("user", prompt),), completion)


ROWS = [
    row(f"r{at}", f"please tell me about the thing number {at * 7919} of the list", "AB"[at % 2]) for at in range(40)
]
LABELS = LabelScorer(["A", "B"])


def cause(rows: list[Row], of: Row, answer: str, scorer: Scorer = LABELS, **pulls: float) -> tuple[str, str]:
    found = Causes(rows, check_rows(rows), {one.id: 1.0 for one in rows} | pulls).of(of, answer, scorer)
    assert found.kind in CAUSES
    return found.kind, found.why


def test_the_same_input_with_another_answer() -> None:
    twice = row("twice", ROWS[0].prompt.upper(), "B")
    kind, why = cause([*ROWS, twice], twice, "A")
    assert kind == "another-answer" and why == "r0 has 'A' to nearly the same input"
    assert cause([*ROWS, twice], ROWS[0], "A")[0] == "another-answer"
    same = row("same", ROWS[0].prompt, "A")
    assert cause([*ROWS, same], same, "A")[0] == "unclear"


def test_an_odd_form() -> None:
    odd = row("odd", "quite another question, is it not", "a.")
    assert cause([*ROWS, odd], odd, "A")[0] == "odd-format"
    strange = row("strange", "quite another question, is it not", "perhaps")
    kind, why = cause([*ROWS, strange], strange, "A")
    assert kind == "odd-format" and "perhaps" in why


def test_a_wrong_label_only_where_answers_are_a_closed_set() -> None:
    assert cause(ROWS, ROWS[0], "B") == ("wrong-label", "the adapter answers 'B'")
    assert cause(ROWS, ROWS[0], "A") == ("unclear", "its answer is given, but unsurely")
    assert cause(ROWS, ROWS[0], "neither, I think") == ("unclear", "the adapter answers 'neither, I think'")
    assert cause(ROWS, ROWS[0], "B", ExactScorer()) == ("unclear", "the adapter answers 'B'")


def test_outliers() -> None:
    long = row("long", ("a word and another " * 40).strip(), "A")
    kind, why = cause([*ROWS, long], long, "A")
    assert kind == "outlier" and "times as long as most" in why
    assert cause(ROWS, ROWS[0], "A", r0=20.0) == ("outlier", "it pulls the numbers 20 times as far as most rows")


def test_secrets_are_not_told() -> None:
    kind, why = cause(ROWS, ROWS[0], "write to mary.smith@example.org at once", ExactScorer())
    assert kind == "unclear" and "mary" not in why
