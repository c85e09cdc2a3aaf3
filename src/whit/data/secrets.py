"""E-mail addresses, card numbers and API keys in a text.

Promises that what it reports can be masked by `mask`, and that a card number is one by its length, its
issuer's first digits and its check digit (ISO/IEC 7812-1, Luhn). Patterns only: what has no pattern, such as
a name, is not seen. Knows nothing of rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w@])")
_RUN = re.compile(r"(?<![\d.])\d{3,19}(?:[ -]\d{3,19})*(?!\d)")
_GROUP = re.compile(r"\d+")
_ISSUER = re.compile(r"4|5[1-5]|2[2-7]|3[0-689]|6")
Span = tuple[int, int]


@dataclass(frozen=True)
class Shape:
    """A pattern, and texts of which one must be in what it matches (in lower case where it ignores case).

    `reach`: how far a match goes at most before and after the beginning of such a text; None where that is far.
    `run`: whether every match has `RUN` characters of a key in a row; `signs`: of which every match has one.
    """

    pattern: re.Pattern[str]
    anchors: tuple[str, ...]
    any_case: bool = False
    reach: tuple[int, int] | None = None
    run: bool = True
    signs: tuple[str, ...] = ()

    def find(self, text: str, low: str) -> Iterator[Span]:
        """The matches in `text`, of which `low` is the folded form, looked for only where one can be."""
        looked = low if self.any_case else text
        there = [anchor for anchor in self.anchors if anchor in looked]
        if not there:
            return
        if self.reach is None or len(low) != len(text):
            windows: Iterable[Span] = ((0, len(text)),)
        else:
            before, after = self.reach
            places = sorted(found.start() for each in there for found in re.finditer(re.escape(each), looked))
            windows = merged((max(0, place - before), place + after) for place in places)
        for window in windows:
            for match in self.pattern.finditer(text, *window):
                yield match.span()


class Shapes:
    """Shapes that are looked for together: most texts hold none of their anchors, and are done with at a glance."""

    def __init__(self, *shapes: Shape) -> None:
        self.shapes = shapes
        anchors: dict[tuple[bool, tuple[str, ...], bool], tuple[str, ...]] = {}
        for shape in shapes:
            alike = shape.run, shape.signs, shape.any_case
            anchors[alike] = anchors.get(alike, ()) + shape.anchors
        self._anchors = [(*alike, some) for alike, some in anchors.items()]

    def find(self, text: str, low: str, run: bool = True) -> Iterator[Span]:
        """The matches of each in turn. `low` is the folded text, `run` whether it has a run as `has_run` says."""
        for needs_run, signs, any_case, anchors in self._anchors:
            if (run or not needs_run) and (not signs or any(map(text.__contains__, signs))):
                looked = low if any_case else text
                if any(map(looked.__contains__, anchors)):
                    break
        else:
            return
        for shape in self.shapes:
            yield from shape.find(text, low)


RUN = 13
_PLAIN = bytes(46 if chr(code).isalnum() or chr(code) in "+/_-.~?" else 32 for code in range(128)) + b" " * 128


def has_run(text: str, replaced: bytes | None = None) -> bool:
    """Whether `RUN` letters, digits and signs that keys are made of stand in a row; what is not ASCII counts as one."""
    raw = text.encode("ascii", "replace") if replaced is None else replaced
    return b"." * RUN in raw.translate(_PLAIN)


def merged(spans: Iterable[Span]) -> Iterator[Span]:
    """Spans that come in the order of their starts, those that touch as one."""
    last: Span | None = None
    for start, stop in spans:
        if last is not None and start <= last[1]:
            last = last[0], max(stop, last[1])
            continue
        if last is not None:
            yield last
        last = start, stop
    if last is not None:
        yield last


_KEYS = Shapes(
    Shape(re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), ("AKIA", "ASIA")),
    Shape(re.compile(r"\bsk-(?:[a-z]+-)*[A-Za-z0-9_-]{20,200}"), ("sk-",)),
    Shape(re.compile(r"\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,200}"), ("k_live_", "k_test_")),
    Shape(re.compile(r"\bgh[pousr]_[A-Za-z0-9]{30,255}"), ("ghp_", "gho_", "ghu_", "ghs_", "ghr_")),
    Shape(re.compile(r"\bgithub_pat_[A-Za-z0-9_]{30,255}"), ("github_pat_",)),
    Shape(re.compile(r"\bglpat-[A-Za-z0-9_-]{20,100}"), ("glpat-",)),
    Shape(re.compile(r"\bhf_[A-Za-z0-9]{30,100}"), ("hf_",)),
    Shape(re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,200}"), ("xox",)),
    Shape(re.compile(r"\bAIza[0-9A-Za-z_-]{35}"), ("AIza",)),
    Shape(re.compile(r"\beyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,1000}"), ("eyJ",)),
    Shape(re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----"), ("-----BEGIN ",), run=False),
    Shape(
        re.compile(
            r"\b(?i:api[_-]?key|secret|access[_-]?token|password|passwd)\b['\"]?\s{0,3}[:=]\s{0,3}['\"]?"
            r"(?=[^\s'\"]{0,64}\d)[^\s'\",;}]{12,200}"
        ),
        ("apikey", "api_key", "api-key", "secret", "accesstoken", "access_token", "access-token", "passw"),
        any_case=True,
        reach=(1, 300),
        run=False,
        signs=(":", "="),
    ),
)
# What a pattern that ignores case takes for an ASCII letter though lower case does not make it one.
_ALIKE = str.maketrans({"\u0130": "i", "\u0131": "i", "\u017f": "s", "\u212a": "k"})
_MASKS = {"email": "[e-mail]", "card": "[card number]", "key": "[key]"}


def luhn(digits: str) -> bool:
    """Whether the last of `digits` is their check digit."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def folded(text: str) -> str:
    """The text as patterns that ignore case see it, for a quick look whether a word is in it at all."""
    if not text.isascii() and any(letter in text for letter in "\u0130\u0131\u017f\u212a"):
        text = text.translate(_ALIKE)
    return text.lower()


def keys(text: str, low: str | None = None, run: bool = True) -> Iterator[Span]:
    """Where API keys, private keys and passwords that are named so stand.

    `low` is the folded text, where known; `run` is False where `has_run` says so.
    """
    return _KEYS.find(text, folded(text) if low is None else low, run)


def find(text: str) -> Iterator[tuple[str, int, int]]:
    """Each secret's kind (`email`, `card` or `key`), start and end."""
    for start, stop in merged(sorted(keys(text))):  # `api_key=sk-…` is a key by two shapes, and is one
        yield "key", start, stop
    if "@" in text:
        for match in _EMAIL.finditer(text):
            yield "email", *match.span()
    for match in _RUN.finditer(text):
        yield from _cards(text, match.start(), match.end())


def _cards(text: str, start: int, end: int) -> Iterator[tuple[str, int, int]]:
    # Other digits may stand before or after a number's own groups, so every row of whole groups is tried.
    groups = [found.span() for found in _GROUP.finditer(text, start, end)]
    first = 0
    while first < len(groups):
        digits, after = "", first + 1
        for last in range(first, len(groups)):
            digits += text[slice(*groups[last])]
            if len(digits) > 19:
                break
            if len(digits) >= 13 and _ISSUER.match(digits) and len(set(digits)) > 1 and luhn(digits):
                yield "card", groups[first][0], groups[last][1]
                after = last + 1
                break
        first = after


def mask(text: str) -> str:
    """The text with each secret replaced by its kind in brackets."""
    for _ in range(4):  # what overlapped a secret may be one by itself once that is masked
        end = len(text)
        for kind, start, stop in sorted(find(text), key=lambda found: found[1], reverse=True):
            if stop <= end:
                text, end = text[:start] + _MASKS[kind] + text[stop:], start
        if end == len(text):
            break
    return text
