"""Placeholders come back, wherever a stream cuts them."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from whit.routing.masking import Masks, Restorer


def test_there_and_back() -> None:
    masks = Masks([("email", "a@b.co"), ("card", "4111 1111"), ("email", "x@a@b.co")])
    text = "write a@b.co or x@a@b.co, not 4111 1111, a@b.co"
    masked = masks.mask(text)
    assert not any(each in masked for each in ("a@b.co", "4111"))
    assert masks.restore(masked) == text


def test_placeholders_are_not_in_the_text_by_themselves() -> None:
    first = Masks([("card", "1")]).mask("1")
    assert Masks([("card", "1")], avoid=first).mask("1") != first


def test_in_json_what_comes_back_is_quoted() -> None:
    masks = Masks([("key", 'a"b\nc')])
    inside = json.dumps({"key": masks.mask('a"b\nc')})
    assert json.loads(masks.restore(inside, quoted=True)) == {"key": 'a"b\nc'}


@given(st.text("ab<_ 4@", max_size=40), st.lists(st.integers(1, 5), max_size=60))
@settings(deadline=None)
def test_a_stream_is_restored_wherever_it_is_cut(text: str, cuts: list[int]) -> None:
    masks = Masks([("card", "4"), ("email", "a@b")], avoid=text)
    masked, said, at = masks.mask(text), "", 0
    restorer = Restorer(masks)
    for cut in [*cuts, 10_000]:
        said += restorer(masked[at : at + cut])
        at += cut
    assert said + restorer.rest() == text


def test_what_is_no_placeholder_is_not_held_back() -> None:
    restorer = Restorer(Masks([("card", "4")]))
    assert restorer("if a < b then <") == "if a < b then " and restorer("b>") == "<b>"
