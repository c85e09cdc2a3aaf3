"""Only the gate makes a clearance; detectors only take tiers away; masking widens nothing by itself."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whit.routing.clearance import Clearance, Cleared, Gate, Policy, Scan, require
from whit.routing.errors import NotCleared
from whit.routing.request import ChatRequest, read_request

TIERS = ("local", "inside", "cheap", "strong")
INSIDE = ("local", "inside")


def ask(text: str) -> ChatRequest:
    return read_request(json.dumps({"messages": [{"role": "user", "content": text}]}).encode())


def clean(texts: Sequence[str], said: Sequence[str]) -> Scan:
    return Scan()


def finds_digits(texts: Sequence[str], said: Sequence[str]) -> Scan:
    found = [word for text in texts for word in text.split() if word.isdigit()]
    return Scan(frozenset({"card"} if found else ()), tuple(("card", word) for word in found))


EVERYWHERE = Policy("all", frozenset(TIERS))


def test_nobody_else_makes_one() -> None:
    with pytest.raises(NotCleared):
        Clearance(object(), TIERS, (), (), ())
    with pytest.raises(NotCleared):
        Cleared(object(), None, None, None, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        type("Mine", (Clearance,), {"allows": lambda self, tier: True})
    bare = object.__new__(Clearance)
    for forged in (bare, None, "strong", {"strong"}, type("Duck", (), {"allows": lambda self, tier: True})()):
        with pytest.raises(NotCleared):
            require(forged, "strong")


def test_one_does_not_change_and_is_not_copied() -> None:
    clearance = Gate(TIERS, INSIDE, finds_digits).clear(ask("4111"), [("t", EVERYWHERE)]).clearance
    with pytest.raises(AttributeError):
        clearance._plain = frozenset(TIERS)  # type: ignore[misc]
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            duplicate(clearance)
    assert clearance.tiers == {"local", "inside"}


def test_what_is_found_stays_inside_and_says_why_without_the_text() -> None:
    cleared = Gate(TIERS, INSIDE, finds_digits).clear(ask("my card 4111"), [("the tenant acme", EVERYWHERE)])
    assert cleared.clearance.tiers == set(INSIDE)
    assert "holds card" in cleared.clearance.reasons[0] and "4111" not in repr(cleared) + str(cleared.clearance.reasons)
    with pytest.raises(NotCleared):
        cleared.request_for("strong")
    assert cleared.request_for("local")[0].prompt() == "my card 4111"


def test_a_detector_that_raises_keeps_it_inside() -> None:
    def broken(texts: Sequence[str], said: Sequence[str]) -> Scan:
        raise RuntimeError("4111")

    cleared = Gate(TIERS, INSIDE, broken).clear(ask("hello"), [("t", EVERYWHERE)])
    assert cleared.clearance.tiers == set(INSIDE) and "4111" not in str(cleared.clearance.reasons)


def test_pictures_stay_inside() -> None:
    content = [{"type": "image_url", "image_url": {"url": "https://elsewhere.example/x.png"}}]
    request = read_request(json.dumps({"messages": [{"role": "user", "content": content}]}).encode())
    assert Gate(TIERS, INSIDE, clean).clear(request, [("t", EVERYWHERE)]).clearance.tiers == set(INSIDE)


def test_without_a_policy_it_goes_nowhere() -> None:
    assert not Gate(TIERS, INSIDE, clean).clear(ask("hello"), []).clearance.tiers


def test_its_causes_are_what_keeps_it_from_outside() -> None:
    gate, at_home = Gate(TIERS, INSIDE, finds_digits), Policy("home", frozenset(INSIDE))
    assert gate.clear(ask("4111"), [("t", EVERYWHERE)]).clearance.causes == ("card",)
    assert gate.clear(ask("4111"), [("t", EVERYWHERE), ("label x", at_home)]).clearance.causes == ("label x",)
    assert gate.clear(ask("hello"), [("t", EVERYWHERE)]).clearance.causes == ()
    fewer = Policy("fewer", frozenset({"inside", "cheap", "strong"}))  # without a tier that is inside anyway
    assert gate.clear(ask("hello"), [("t", fewer)]).clearance.causes == ()
    masking = Policy("m", frozenset(TIERS), frozenset({"card"}), frozenset({"cheap", "strong"}))
    assert gate.clear(ask("4111"), [("t", masking)]).clearance.causes == ()
    assert gate.decide(ask("x"), [("t", EVERYWHERE)], Scan(failed="too long")).clearance.causes == ("unread",)


def test_what_somebody_said_is_looked_at_apart_from_the_apis_own_words() -> None:
    seen: list[Sequence[str]] = []

    def heard(texts: Sequence[str], said: Sequence[str]) -> Scan:
        seen.append(said)
        return finds_digits(texts, said)

    masking = Policy("m", frozenset(TIERS), frozenset({"card"}), frozenset({"cheap"}))
    Gate(TIERS, INSIDE, heard).clear(ask("my card 4111 please"), [("t", masking)])
    assert list(seen[0]) == ["my card 4111 please"]
    assert list(seen[1]) == ["my card that please"], "placeholders are no names"


def test_masking_widens_only_as_every_policy_says() -> None:
    gate = Gate(TIERS, INSIDE, finds_digits)
    masking = Policy("m", frozenset(TIERS), frozenset({"card"}), frozenset({"cheap"}))
    cleared = gate.clear(ask("my card 4111 please"), [("t", masking)])
    assert cleared.clearance.tiers == {"local", "inside", "cheap"}
    request, masks = cleared.request_for("cheap")
    assert (
        masks is not None
        and "4111" not in str(request.body())
        and masks.restore(request.prompt()) == ask("my card 4111 please").prompt()
    )
    assert cleared.request_for("local")[1] is None
    assert gate.clear(ask("my card 4111"), [("t", masking), ("l", EVERYWHERE)]).clearance.tiers == set(INSIDE)


def test_what_a_mask_leaves_behind_is_found_by_the_second_look() -> None:
    def hidden(texts: Sequence[str], said: Sequence[str]) -> Scan:  # finds what masking cannot replace
        return Scan(frozenset({"card"}), (("card", "not there as written"),))

    masking = Policy("m", frozenset(TIERS), frozenset({"card"}), frozenset({"cheap"}))
    assert Gate(TIERS, INSIDE, hidden).clear(ask("x"), [("t", masking)]).clearance.tiers == set(INSIDE)


names = st.frozensets(st.sampled_from(TIERS))
kinds = st.frozensets(st.sampled_from(["card", "email"]))
policies = st.lists(
    st.builds(lambda t, m, g, i: Policy("p", t, m, t & g, i), names, kinds, names, kinds), min_size=1, max_size=3
)
scans = st.builds(
    lambda k, failed: Scan(k, tuple((kind, "4111") for kind in k), failed), kinds, st.sampled_from([None, "too long"])
)


@given(policies, scans)
@settings(deadline=None)
def test_detection_never_adds_a_tier(listed: list[Policy], scan: Scan) -> None:
    gate = Gate(TIERS, INSIDE, lambda texts, said: scan if any("4111" in text for text in texts) else Scan())
    declared = frozenset(TIERS).intersection(*(policy.tiers for policy in listed))
    pairs = [("p", policy) for policy in listed]
    found = gate.decide(ask("it is 4111"), pairs, scan)
    assert found.clearance.tiers <= declared
    assert gate.decide(ask("it is 4111"), pairs, Scan()).clearance.tiers == declared
    for tier in declared - set(INSIDE):
        if scan.failed or (scan.kinds and not all(scan.kinds <= policy.ignore for policy in listed)):
            assert not found.clearance.plain(tier)
        if found.clearance.allows(tier) and not found.clearance.plain(tier):
            assert all(tier in policy.masked_tiers for policy in listed)
            assert "4111" not in str(found.request_for(tier)[0].body())
