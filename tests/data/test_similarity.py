"""Near-duplicates, against the definition."""

from __future__ import annotations

import random
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from whit.data.similarity import Union, jaccard, pieces, similar_sets


def test_pieces_ignore_case_spacing_and_punctuation() -> None:
    assert pieces("Hello,  World!") == pieces("hello world")
    assert pieces("") != pieces("a")
    assert jaccard(pieces(""), pieces("!")) == 1


def test_sets_are_those_of_exact_similarity() -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=5)) for _ in range(60)]
    texts = []
    for _ in range(60):
        said = draw.choices(words, k=draw.randint(4, 14))
        texts.append(" ".join(said))
        for _ in range(draw.randint(0, 2)):
            said = list(said)
            said[draw.randrange(len(said))] = draw.choice(words)
            texts.append(" ".join(said))
    union = Union(len(texts))
    for a, b in combinations(range(len(texts)), 2):
        if jaccard(pieces(texts[a]), pieces(texts[b])) >= 0.8:
            union.join(a, b)
    exact = sorted(found for found in union.sets() if len(found) > 1)
    assert len(exact) > 5
    assert similar_sets(texts, 0.8) == exact


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("ab c", max_size=12), max_size=12), st.randoms(use_true_random=False))
def test_sets_do_not_depend_on_order(texts: list[str], draw: random.Random) -> None:
    def found(of: list[str]) -> list[list[str]]:
        return sorted(sorted(of[i] for i in one) for one in similar_sets(of))

    assert found(texts) == found(draw.sample(texts, len(texts)))


def test_a_thousand_alike_do_not_cost_a_million() -> None:
    texts = [f"please send me the newest price list for garden chairs and tables, order {i}" for i in range(3000)]
    (one,) = similar_sets(texts, 0.7)
    assert len(one) == 3000
