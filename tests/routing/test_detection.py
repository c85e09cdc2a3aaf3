"""The detectors: what they see, through which disguises, what they leave alone, and how they fail."""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
import time
import unicodedata
import urllib.parse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from whit.data import secrets
from whit.data.secrets import luhn
from whit.routing.config import Detection
from whit.routing.detection import finders, normalise, numbers
from whit.routing.detection.scanner import Scanner, read_adapter_answer
from whit.routing.detection.view import Span, View

# What is seen must not hang on how fast the machine is; the limit has a test of its own.
SCANNER = Scanner(Detection(terms=("Projekt Nachtigall", "Zürich"), timeout=60))
CARD = "4111111111111111"


def kinds(*texts: str) -> frozenset[str]:
    scan = SCANNER(texts)
    assert scan.failed is None, scan.failed
    return scan.kinds


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("card", CARD), ("card", "4111-1111-1111-1111"), ("card", "3782 822463 10005"), ("card", "6011.1111.1111.1117"),
        ("card", "5 5 5 5 5 5 5 5 5 5 5 5 4 4 4 4"), ("iban", "DE89 3704 0044 0532 0130 00"),
        ("iban", "gb82west12345698765432"), ("national_id", "it is 078-05-1120"), ("national_id", "SSN: 123456788"),
        ("national_id", "AB 12 34 56 C"), ("national_id", "12345678Z"), ("national_id", "X1234567L"),
        ("national_id", "RSSMRA85T10A562S"), ("national_id", "86095742719"), ("national_id", "44051401359"),
        ("national_id", "811218-9876"), ("national_id", "529.982.247-25"), ("national_id", "2341 2341 2346"),
        ("national_id", "130 692 544"), ("national_id", "nhs number 943 476 5919"), ("national_id", "BSN 111222333"),
        ("national_id", "1 85 05 78 006 084 91"), ("document", "my driver's license number is A125325867"),
        ("email", "a.b+c@mail.example.org"), ("email", "jo (at) example (dot) org"), ("email", "jo at example dot org"),
        ("phone", "+49 30 901820"), ("phone", "(202) 456-1111"), ("phone", "call 33 93 31 11"),
        ("phone", "042 078 6381-office"), ("ip", "106.31.73.20"), ("ip", "2001:db8::8a2e:370:7334"),
        ("key", "AKIA" + "IOSFODNN7EXAMPLE"), ("key", "postgres" + "://me:hunter2hunter@db.example/x"),
        ("key", "-----BEGIN OPENSSH PRIVATE" + " KEY-----\nb3BlbnNza"), ("term", "about projekt  nachtigall today"),
        ("term", "ZURICH"),
    ],
)  # fmt: skip
def test_what_is_sensitive_is_seen(kind: str, text: str) -> None:
    assert kind in kinds(f"Please note: {text} thanks.")


@pytest.mark.parametrize(
    "text",
    [
        "order 4111111111111112 and 1234567890123456", "born 6/24/1991, aged 79", "12 Main St, Dallas TX 48486",
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14", "version 10.2.3 of 2024-01-02 12:30:45", "DE89 is a road",
        "127.0.0.1:8080", "pi is 3.14159265358979", "Nachtigall", "The ratio of men to women is 5:9 of 84.",
        "commit 3f786850e387550fdab836ed7e6dc881de23001b", "a" * 3000, "ThisIsALongCamelCaseIdentifierName",
    ],
)  # fmt: skip
def test_what_is_ordinary_is_left_alone(text: str) -> None:
    assert kinds(text) == frozenset()


DISGUISES = {
    "full width": lambda t: "".join(chr(ord(c) + 0xFEE0) if c.isdigit() else c for c in t),
    "arabic digits": lambda t: "".join(chr(0x660 + int(c)) for c in t),
    "mathematical digits": lambda t: "".join(chr(0x1D7CE + int(c)) for c in t),
    "superscripts": lambda t: "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(c)] for c in t),
    "circled": lambda t: "".join("⓪①②③④⑤⑥⑦⑧⑨"[int(c)] for c in t),
    "keycaps": lambda t: "".join(c + "\ufe0f\u20e3" for c in t),
    "zero width": "\u200b".join,
    "soft hyphens": "\u00ad".join,
    "word joiners": "\u2060".join,
    "tags": lambda t: "\U000e0041".join(t),
    "no-break spaces": lambda t: "\u00a0".join(t[i : i + 4] for i in range(0, 16, 4)),
    "dashes": lambda t: "\u2011".join(t[i : i + 4] for i in range(0, 16, 4)),
    "dots": ".".join,
    "lines": lambda t: "\n".join(t[i : i + 4] for i in range(0, 16, 4)),
    "slashes": " / ".join,
    "url": lambda t: "".join(f"%{ord(c):02X}" for c in t),
    "url twice": lambda t: urllib.parse.quote("".join(f"%{ord(c):02X}" for c in t)),
    "html": lambda t: "".join(f"&#{ord(c)};" for c in t),
    "html hex": lambda t: html.escape("".join(f"&#x{ord(c):x};" for c in t)),
    "backslash u": lambda t: "".join(f"\\u{ord(c):04x}" for c in t),
    "backslash x": lambda t: "".join(f"\\x{ord(c):02x}" for c in t),
    "base64": lambda t: base64.b64encode(t.encode()).decode(),
    "base64 of a sentence": lambda t: base64.b64encode(f"my card is {t}".encode()).decode(),
    "base64 url": lambda t: base64.urlsafe_b64encode(f"??>>{t}~~".encode()).decode().rstrip("="),
    "base64 twice": lambda t: base64.b64encode(base64.b64encode(t.encode())).decode(),
    "base64 of utf-16": lambda t: base64.b64encode(t.encode("utf-16-le")).decode(),
    "gzip": lambda t: base64.b64encode(gzip.compress(f"the number is {t}".encode())).decode(),
    "hex": lambda t: t.encode().hex(),
    "hex with spaces": lambda t: t.encode().hex(" "),
    "quoted-printable": lambda t: "".join(f"={ord(c):02X}" for c in t),
    "decimal codes": lambda t: ", ".join(str(ord(c)) for c in t),
    "words": lambda t: " ".join(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"][int(c)]
                                for c in t),
    "json": lambda t: json.dumps({"n": t}),
}  # fmt: skip


@pytest.mark.parametrize("disguise", DISGUISES)
def test_disguises_are_seen_through(disguise: str) -> None:
    assert "card" in kinds("this is public: " + DISGUISES[disguise](CARD) + " end")


@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize("plain_json", [False, True])
def test_disguises_are_seen_through_in_the_arguments_of_a_tool(disguise: str, plain_json: bool) -> None:
    """JSON in JSON: backslashes are doubled, and other scripts' digits are escaped, as two halves where need be."""
    hidden = {"q": f"please check {DISGUISES[disguise](CARD)} now"}
    once = json.dumps(hidden, ensure_ascii=plain_json)
    for text in (once, json.dumps({"inner": once}, ensure_ascii=plain_json), json.dumps(json.dumps(once))):
        assert "card" in kinds(text)


@pytest.mark.parametrize(
    "text",
    [
        r"4111\-1111\-1111\-1111", r"4111\n1111\n1111\n1111", r"\u{34}111 1111 1111 1111", r"\064111111111111111",
        r"\U00000034111111111111111", "4\\u200b111\\u200b1111\\u200b1111\\u200b1111", r"\ud835\udfd2111 1111 1111 1111",
    ],
)  # fmt: skip
def test_escapes_of_every_kind_are_undone(text: str) -> None:
    assert "card" in kinds(f"so: {text} end")


def test_a_number_cut_between_messages_is_seen() -> None:
    assert "card" in kinds("4111 1111", "1111 1111")


def test_a_long_blob_that_is_no_text_fails_the_scan() -> None:
    import random

    blob = base64.b64encode(random.Random(0).randbytes(900)).decode()
    assert SCANNER([blob]).failed is not None


def test_too_large_too_slow_and_broken_all_fail() -> None:
    assert "too large" in str(Scanner(Detection(largest=10))(["x" * 11]).failed)
    assert "too long" in str(Scanner(Detection(timeout=1e-9))(["hello"]).failed)
    slow = Scanner(Detection(adapter_timeout=0.05), hook=lambda text: time.sleep(0.3) or [])  # type: ignore[func-returns-value]
    assert "too long" in str(slow(["hello"]).failed)

    def broken(text: str) -> list[tuple[str, str]]:
        raise ValueError("secret")

    failed = str(Scanner(Detection(), hook=broken)(["hello"]).failed)
    assert "ValueError" in failed and "secret" not in failed


def test_an_adapter_adds_what_it_names() -> None:
    scanner = Scanner(Detection(), hook=lambda text: read_adapter_answer('{"PERSON": ["Rubija"]}', text))
    assert scanner(["I am Rubija"]).kinds == {"person"}
    assert scanner(["I am Rubija, call 4111 1111 1111 1111"]).kinds == {"person", "card"}
    address = Scanner(Detection(), hook=lambda text: [("person", "ada@example.org"), ("place", "example")])
    assert address(["to ada@example.org"]).kinds == {"email"}, "a part of an address is no name beside it"
    asked: list[str] = []
    Scanner(Detection(), hook=lambda text: asked.append(text) or [])(["hello", "user"], ["hello"])  # type: ignore[func-returns-value]
    assert asked == ["hello"]
    for garbled in ("Rubija", "[]", '{"PERSON": [5]}', '{"PERSON": [""]}'):
        with pytest.raises(ValueError):
            read_adapter_answer(garbled, "x")


@given(st.sampled_from(["4", "51", "37", "6011", "35"]), st.integers(0, 10**14), st.sampled_from(["", " ", "-", "."]))
@settings(max_examples=150, deadline=None)
def test_every_card_number_is_seen_in_groups_of_four(prefix: str, body: int, between: str) -> None:
    length = 15 if prefix == "37" else 16
    digits = (prefix + str(body).zfill(15))[: length - 1]
    digits += next(c for c in "0123456789" if luhn(digits + c))
    grouped = between.join(digits[at : at + 4] for at in range(0, length, 4))
    assert list(numbers.cards(View(f"pay with {grouped} now")))


@given(st.text(max_size=300))
@settings(max_examples=150, deadline=None)
def test_no_text_breaks_a_scan(text: str) -> None:
    scan = SCANNER([text])
    assert scan.failed is None or "encoded" in scan.failed or "OverflowError" in scan.failed


def test_recall_on_the_shared_rows(shared_data: Path) -> None:
    wanted = {"CREDIT_CARD": "card", "EMAIL_ADDRESS": "email", "IBAN_CODE": "iban"}
    hits = total = 0
    for line in (shared_data / "tasks" / "pii" / "dev.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        for span in row["spans"]:
            if span["type"] in wanted:
                total += 1
                hits += wanted[span["type"]] in kinds(row["text"])
    assert total > 50 and hits / total >= 0.99


# What a text is made of that the quick looks could get wrong: parts of every pattern, and what nearly is one.
_PIECES = st.sampled_from([
    "4111 1111", "1111", "078-05-1120", "AB 12 34 56 C", "X1234567L", "12.345.678-Z", "RSSMRA85T10A562S",
    "1 85 05 2A 078", "006 36", "811218-9876", "529.982.247-25", "2341 2341 2346", "nhs number", "943 476 5919",
    "BSN 111222333", "cpf", "52998224725", "\u017f\u017fn", "123456788", "pa\u017f\u017fport", "dr\u0131ving licence",
    "A125325867", "106.31.73.20", "1.2.3", "2001:db8::1", "::1", "10:20:30", "AKIA" + "IOSFODNN7EXAMPLE",
    "sk-" + "a" * 24, "password: hunter2hunter2", "Bearer " + "x" * 24, "https" + "://me:secret@db.example/x",
    "npm_" + "a" * 36, "+49 30 901820", "(202) 456-1111", "call 33 93 31 11", " ", "\n", "-", ".", ":", "é", "\u0664",
    "the ", "id card ", "one two three four five six seven eight", "34313131", "\\x34\\x31", "ad be ef", "%34%31",
    "a.b+c@mail.example.org", "jo (at) example (dot) org", "jo at example dot org", "@", "b.c", "(at)", "api_key=",
    "aGVsbG8gd29ybGQgdGhpcyBpcw==", "52, 49, 49, 49", "0x41 0x42",
])  # fmt: skip
_TEXTS = st.lists(st.one_of(_PIECES, st.text(max_size=6)), max_size=14).map("".join)


# The same patterns, looked for everywhere: what the quick ones are tested against.
def emails_slowly(text: str) -> Iterator[Span]:
    for shape in (finders._EMAIL, finders._SPOKEN):
        yield from (match.span() for match in shape.finditer(text))


def keys_slowly(text: str) -> Iterator[Span]:
    for shape in secrets._KEYS.shapes:
        yield from (match.span() for match in shape.pattern.finditer(text))
    for shape in finders._KEYS.shapes:
        yield from finders._private(text, (match.span() for match in shape.pattern.finditer(text)))


def addresses_slowly(text: str) -> Iterator[Span]:
    for shape in (finders._IP4, finders._IP6):
        yield from finders._addresses(shape, text, [(0, len(text))])


_RUN = re.compile(r"(?<!\d)\d+(?:[ \t\r\n._,;:/|*'\"()+-]{1,3}\d+)*")


def cards_slowly(text: str) -> Iterator[Span]:
    for run in _RUN.finditer(text):
        groups = [found.span() for found in re.finditer(r"\d+", run.group())]
        for start, stop in numbers._cards(groups, re.sub(r"\D", "", run.group())):
            yield run.start() + start, run.start() + stop


def phones_slowly(text: str) -> Iterator[Span]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(View, "chains", lambda view, between, most, least: [[(0, len(view.text))]])
        yield from finders.phones(View(text), ("US", "GB"))


def documents_slowly(text: str) -> Iterator[Span]:
    yield from (match.span(1) for match in numbers._DOCUMENT.finditer(text))


def ibans_slowly(text: str) -> Iterator[Span]:
    for match in numbers._IBAN.finditer(text):
        yield from numbers._iban(text, match)


def national_ids_slowly(text: str) -> Iterator[Span]:
    shapes = [(shape, check) for _, shape, check, _ in (*numbers._DIGITS, *numbers._NAMED)]
    for shape, check in (*shapes, (numbers._CODICE, numbers._codice_fiscale)):
        yield from numbers._held(shape.finditer(text), check)


@given(_TEXTS)
@example("\u066412.345.678-Z")
@settings(max_examples=400, deadline=None)
def test_looking_first_misses_nothing(text: str) -> None:
    for quick, slow in (
        (numbers.national_ids, national_ids_slowly), (numbers.documents, documents_slowly),
        (numbers.ibans, ibans_slowly), (finders.keys, keys_slowly), (finders.addresses, addresses_slowly),
        (finders.emails, emails_slowly), (numbers.cards, cards_slowly),
        (partial(finders.phones, regions=("US", "GB")), phones_slowly),
    ):  # fmt: skip
        try:
            wanted = set(slow(text))
        except (ValueError, IndexError, KeyError):  # a check that breaks on a letter of another script fails a scan
            with pytest.raises((ValueError, IndexError, KeyError)):
                set(quick(View(text)))
            continue
        assert set(quick(View(text))) == wanted
    hexadecimals = {match.span() for match in normalise._HEX.finditer(text)}
    assert {match.span() for match in normalise.hexadecimals(text)} == hexadecimals
    assert list(normalise.base64s(text)) == [match.group() for match in normalise._BASE64.finditer(text)]


@given(_TEXTS)
@settings(max_examples=200, deadline=None)
def test_looking_first_misses_nothing_that_is_encoded(text: str) -> None:
    found = [(view.text, normalise.opaque(view)) for view in normalise.decodings(View(text))]
    with pytest.MonkeyPatch.context() as patch:  # as if every text were full of digits and of what is long
        patch.setattr(View, "count", 10**6)
        patch.setattr(View, "long", True)
        assert [(view.text, normalise.opaque(view)) for view in normalise.decodings(View(text))] == found


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_a_table_makes_the_same_plain_text_as_looking_at_each_character(text: str) -> None:
    nfkc = unicodedata.normalize("NFKC", text)
    if not text.isascii():
        assert normalise.plain(text) == "".join(map(normalise._plain_character, nfkc))
    assert normalise.plain(normalise.plain(text)) == normalise.plain(text) or not text.isascii()


@pytest.mark.parametrize("disguise", ["url", "html", "backslash u", "quoted-printable", "url twice"])
def test_what_is_escaped_is_seen_anywhere_in_a_long_text(disguise: str) -> None:
    hidden = DISGUISES[disguise](CARD)
    for before, after in (("", "word " * 900), ("word " * 900, ""), ("%41 &amp; =3D " + "word " * 300, "word " * 300)):
        assert "card" in kinds(before + hidden + after)
    assert "card" in kinds("word " * 200 + "4111 %31111 " + "1111 1111" + " word" * 200), "half of it is escaped"
    many = "".join(f"&amp; {'word ' * 110}" for _ in range(400))
    assert kinds(many) == frozenset(), "escapes here and there are no reason to give up"


def test_wrapped_base64_is_one_text() -> None:
    packed = base64.b64encode(f"{'x' * 47} card {CARD} and {'more words ' * 9}".encode()).decode()
    wrapped = "\n".join(packed[at : at + 76] for at in range(0, len(packed), 76))
    assert "card" in kinds(wrapped)


def test_four_kilobytes_are_looked_through_in_time(shared_data: Path) -> None:
    rows = (shared_data / "tasks" / "pii" / "train.jsonl").read_text("utf-8").splitlines()
    joined = " ".join(json.loads(line)["text"] for line in rows)
    times = []
    for at in range(0, 4096 * 30, 4096):
        began = time.thread_time()
        SCANNER([joined[at : at + 4096]])
        times.append(time.thread_time() - began)
    assert sorted(times)[len(times) // 2] < 0.02  # twice what is promised at the 99th percentile: machines differ
