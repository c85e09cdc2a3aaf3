"""The local tier's own part: an answer ends where the client said it should, wherever its pieces are cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from whit.routing.tiers.local import Until, WhitModel

texts = st.text("ab.\n", max_size=30)


@given(st.lists(st.text("ab.\n", max_size=4)), st.lists(st.text("ab.\n", min_size=1, max_size=4), max_size=3))
def test_it_ends_at_the_first_stop_however_it_is_cut(pieces: list[str], stops: list[str]) -> None:
    until, said = Until(stops), ""
    for piece in pieces:
        said += until(piece)
        if until.reached:
            break
    said += until.rest()
    whole = "".join(pieces)
    places = [whole.find(stop) for stop in stops if stop in whole]
    if places:
        # A stop that ends earlier ends the answer, though one that began before it may end later.
        assert until.reached and whole.startswith(said) and not any(stop in said for stop in stops)
        assert any(whole.startswith(stop, len(said)) for stop in stops)
    else:
        assert said == whole and not until.reached


def test_a_model_stops_where_it_is_told_to() -> None:
    from whit.data.rows import Turn
    from whit.routing.config import Tier
    from whit.testing import tiny_base

    model = WhitModel.__new__(WhitModel)
    model._tier, model._paths, model._bound, model._base = Tier("t", "whit", True, "tiny"), {"": None}, {}, tiny_base()

    def answer(*stop: str) -> tuple[str, object]:
        said: list[str] = []
        end = model.generate(
            [Turn("user", "hello")], adapter=None, max_tokens=12, temperature=0.0, top_p=1.0, seed=0, stop=stop,
            on_text=lambda piece: said.append(piece) or True,  # type: ignore[func-returns-value]
        )  # fmt: skip
        return "".join(said), end

    whole, end = answer()
    assert len(whole) > 4
    stop = whole[3:5]
    cut, cut_end = answer(stop)
    assert cut == whole[: whole.index(stop)] and cut_end.finish == "stop"  # type: ignore[attr-defined]
    assert cut_end.tokens_out <= end.tokens_out and 0 < cut_end.confidence <= 1  # type: ignore[attr-defined]
