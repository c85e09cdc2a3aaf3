"""Addresses, card numbers and keys: found, masked, and not seen where there are none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whit.data.secrets import find, luhn, mask

# Put together here, so that no scanner takes this file for a leak.
KEYS = [
    "AKIA" + "IOSFODNN7EXAMPLE",
    "sk-" + "proj-abcdefghijklmnopqrstuvwx",
    "sk_" + "live_abcdefghijklmnop1234",
    "ghp_" + "a1" * 18,
    "hf_" + "Ab" * 17,
    "AIza" + "x" * 35,
    "xoxb-" + "123456789012-abcdef",
    "eyJ" + "hbGciOiJIUzI1NiJ9.eyJ" + "zdWIiOiIxMjM0NTY3ODkwIn0.abcdefghijkl",
    "-----BEGIN RSA PRIVATE" + " KEY-----",
    "password: hunter2hunter2",
    'api_key="8f14e45fceea167a5a36"',
]


def kinds(text: str) -> set[str]:
    return {kind for kind, _, _ in find(text)}


@pytest.mark.parametrize("key", KEYS)
def test_keys(key: str) -> None:
    assert kinds(f"it is {key} I think") == {"key"}
    assert mask(f"it is {key} I think").startswith("it is [key]")


@pytest.mark.parametrize("address", ["a@b.co", "first.last+tag@mail.example.org", "X_y-1@sub-domain.io"])
def test_addresses(address: str) -> None:
    assert mask(f"write to {address}, please") == "write to [e-mail], please"


@pytest.mark.parametrize("text", ["a@b", "@home tonight", "2@3.4", "meet @ noon.today", "x@@y.com"])
def test_no_addresses(text: str) -> None:
    assert kinds(text) == set()


@pytest.mark.parametrize(
    "number",
    ["4111111111111111", "4111 1111 1111 1111", "5500-0000-0000-0004", "340000000000009", "6011000000000004"],
)
def test_cards(number: str) -> None:
    assert mask(f"card {number}.") == "card [card number]."


def test_a_card_among_other_digits() -> None:
    assert mask("on 123 4111 1111 1111 1111 999") == "on 123 [card number] 999"


@pytest.mark.parametrize(
    "text", ["4111111111111112", "0000000000000000", "call 09065171142", "7911111111111111", "3.141592653589793238"]
)
def test_no_cards(text: str) -> None:
    assert "card" not in kinds(text)


@given(st.text("0123456789", min_size=12, max_size=18))
def test_luhn_accepts_exactly_one_check_digit(digits: str) -> None:
    assert sum(luhn(digits + last) for last in "0123456789") == 1


@given(st.lists(st.sampled_from([*KEYS, "a@b.co", "4111111111111111", "hello", " and ", "12", "@", "-"]), max_size=6))
def test_what_is_masked_is_not_found_again(parts: list[str]) -> None:
    assert kinds(mask(" ".join(parts))) == set()


@given(st.text(max_size=200))
def test_any_text_without_findings_stays_as_it_is(text: str) -> None:
    if not kinds(text):
        assert mask(text) == text


def test_long_hostile_texts_take_no_time() -> None:
    import time

    started = time.process_time()
    many = ("a@" * 50_000, "1 " * 50_000, "a." * 50_000 + "@", "sk-" * 30_000, "eyJ" + "a" * 100_000)
    for text in (*many, "-" * 90_000, "4111 " * 20_000, "password:" * 9_000):
        mask(text)
    assert time.process_time() - started < 3
