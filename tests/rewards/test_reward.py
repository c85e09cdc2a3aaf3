"""Terms judge as they say, sums are sums, and format stays apart from skill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from whit.data.rows import Row, Turn
from whit.errors import DataError, ScoreError, UsageError
from whit.rewards import make_reward
from whit.rewards.functions import final_text
from whit.rewards.gym import parse_name, write_rows
from whit.rewards.reward import split_weight
from whit.rewards.schema import load_schema, matches
from whit.rewards.terms import make_term, named_scorer, needs_maths


def row(gold: str, **extra: object) -> Row:
    return Row("r", (Turn("user", "question"),), gold, extra=extra)


def value(name: str, answer: str, gold: str) -> tuple[float, float, bool]:
    term = make_term(name, [row(gold), row("7")])
    score = term.scores([answer], [row(gold)])[0]
    assert term.scorer.score(answer, row(gold)) == score
    term.close()
    return score.value, score.lenient, score.valid


@pytest.mark.parametrize(
    ("name", "answer", "gold", "wanted"),
    [
        ("exact", "Paris", "Paris", (1, 1, True)),
        ("exact", "paris.", "Paris", (0, 1, True)),
        ("numeric", "so it is 1,234", "1234", (1, 1, True)),
        ("numeric", "no idea", "3", (0, 0, False)),
        ("regex:^yes|no$", "yes, but", "x", (1, 1, True)),
        ("regex:#### (?P<answer>.*)", "2+2\n#### Four.", "four", (0, 1, True)),
        ("regex:#### (.*)", "four", "four", (0, 0, False)),
    ],
)
def test_terms(name: str, answer: str, gold: str, wanted: tuple[float, float, bool]) -> None:
    assert value(name, answer, gold) == wanted


def test_a_pattern_that_never_ends_is_told() -> None:
    term = make_term(r"regex:(a+)+$", [row("x")], seconds=0.5)
    with pytest.raises(ScoreError, match="row r: no answer within"):
        term.scores(["a" * 60 + "b"], [row("x")])


def test_mathematics_where_numbers_do_not_do() -> None:
    pytest.importorskip("math_verify")
    assert needs_maths(r"\frac{1}{\sqrt{2}}") and needs_maths("x^2") and not needs_maths("12 apples")
    assert not needs_maths("a = 3 b\n#### 12")
    assert value("numeric", r"it is $\frac{\sqrt{2}}{2}$", r"\frac{1}{\sqrt{2}}")[0] == 1
    assert value("numeric", r"it is $\frac{1}{3}$", r"\frac{1}{\sqrt{2}}")[0] == 0
    assert value("numeric", r"so \sqrt{49}", "7")[0] == 1


def test_a_schema_is_the_format(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({"type": "object", "required": ["a"], "properties": {"a": {"enum": [1, 2]}}}))
    term = make_term(f"json:{path}", [row('{"a": 1}')])
    scores = term.scores(['{"a": 1}', '{"a": 2}', '{"a": 3}', "a"], [row('{"a": 1}')] * 4)
    assert [(score.value, score.valid) for score in scores] == [(1, True), (0, True), (0, False), (0, False)]
    schema = load_schema(path)
    assert matches({"a": 1.0, "b": 0}, schema) and not matches({"a": True}, schema) and not matches([], schema)
    path.write_text('{"type": "object", "oneOf": []}')
    with pytest.raises(UsageError, match="oneOf is not understood"):
        load_schema(path)


def test_a_sum_is_its_terms_and_format_stays_apart() -> None:
    reward = make_reward(["numeric", "-0.5*regex:um"], [row("7")], format_weight=0.25)
    assert reward.name == "numeric + -0.5 regex:um + 0.25 format"
    grades = reward.grade(["7", "um 7", "um"], [row("7")] * 3)
    assert [grade.reward for grade in grades] == [1.25, 0.75, -0.5]
    assert [(grade.right, grade.skill, grade.format) for grade in grades] == [(1, 1, 1), (1, 1, 1), (0, 0, 0)]
    reward.close()


def test_words_that_are_no_reward() -> None:
    assert split_weight("0.5*regex:a*b") == (0.5, "regex:a*b") and split_weight("regex:2*3") == (1.0, "regex:2*3")
    for text, told in (("numerc", "did you mean numeric"), ("regex:(", "not a regular expression")):
        with pytest.raises(UsageError, match=told):
            make_reward([text], [row("7")])
    for text in ("0*numeric", ""):
        with pytest.raises(UsageError, match="WEIGHT"):
            make_reward([text], [row("7")])
    with pytest.raises(UsageError, match="at least one"):
        make_reward([], [row("7")])
    with pytest.raises(DataError, match="no answer"):
        make_reward(["numeric"], [row(" ")])


def test_a_gym_gives_rows_and_judges_them(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    from whit.data.rows import read_rows

    rest = "chain_sum,max_terms=2,max_digits=1"
    rows = read_rows(write_rows(tmp_path / "sums.jsonl", rest, count=6, seed=3))
    assert (
        rows
        and write_rows(tmp_path / "again.jsonl", rest, count=6, seed=3).read_text()
        == (tmp_path / "sums.jsonl").read_text()
    )
    term = make_term(f"gym:{rest}", rows)
    given = [rows[0].completion, f"The answer is {rows[0].completion}.", "I do not know", "<answer>x</answer>"]
    scores = term.scores(given, [rows[0]] * 4)
    assert [score.value for score in scores][:2] == [1.0, 1.0] and scores[2].value < 1 and scores[3].value < 1
    assert [score.valid for score in scores] == [True, False, True, True]
    term.close()
    with pytest.raises(UsageError, match=r"nearest: .*chain_sum"):
        parse_name("chain_sm")
    with pytest.raises(UsageError, match=r"its options are .*max_terms"):
        write_rows(tmp_path / "x.jsonl", "chain_sum,max_term=2", count=3, seed=0)
    with pytest.raises(DataError, match="does not say which entry"):
        make_term("gym:chain_sum", [row("7")])
    assert final_text("a\n#### 3") == "3" and final_text("<answer> 4 </answer>!") == "4"


def test_eval_knows_the_scorers_that_rewards_know() -> None:
    assert named_scorer("regex:^7$", [row("7")]).score("7", row("7")).value == 1
    assert named_scorer("numeric", [row("7")]).name == "numeric"
