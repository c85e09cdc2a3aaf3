"""E-mail addresses, card numbers and API keys in a text.

Promises that what it reports can be masked by `mask`, and that a card number is one by its length, its
issuer's first digits and its check digit (ISO/IEC 7812-1, Luhn). Patterns only: what has no pattern, such as
a name, is not seen. Knows nothing of rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w@])")
_RUN = re.compile(r"(?<![\d.])\d{3,19}(?:[ -]\d{3,19})*(?!\d)")
_GROUP = re.compile(r"\d+")
_ISSUER = re.compile(r"4|5[1-5]|2[2-7]|3[0-689]|6")
# Each shape of a key, and texts of which one must be there (in lower case where the shape ignores case).
_KEYS: tuple[tuple[re.Pattern[str], tuple[str, ...], bool], ...] = (
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), ("AKIA", "ASIA"), False),
    (re.compile(r"\bsk-(?:[a-z]+-)*[A-Za-z0-9_-]{20,200}"), ("sk-",), False),
    (re.compile(r"\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,200}"), ("k_live_", "k_test_"), False),
    (re.compile(r"\bgh[pousr]_[A-Za-z0-9]{30,255}"), ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), False),
    (re.compile(r"\bgithub_pat_[A-Za-z0-9_]{30,255}"), ("github_pat_",), False),
    (re.compile(r"\bglpat-[A-Za-z0-9_-]{20,100}"), ("glpat-",), False),
    (re.compile(r"\bhf_[A-Za-z0-9]{30,100}"), ("hf_",), False),
    (re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,200}"), ("xox",), False),
    (re.compile(r"\bAIza[0-9A-Za-z_-]{35}"), ("AIza",), False),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,1000}"), ("eyJ",), False),
    (re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----"), ("-----BEGIN ",), False),
    (
        re.compile(
            r"\b(?i:api[_-]?key|secret|access[_-]?token|password|passwd)\b['\"]?\s{0,3}[:=]\s{0,3}['\"]?"
            r"(?=[^\s'\"]{0,64}\d)[^\s'\",;}]{12,200}"
        ),
        ("api", "secret", "access", "passw"),
        True,
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
    return text.lower() if text.isascii() else text.translate(_ALIKE).lower()


def keys(text: str) -> Iterator[tuple[int, int]]:
    """Where API keys, private keys and passwords that are named so stand."""
    low = folded(text)
    for shape, anchors, any_case in _KEYS:
        looked = low if any_case else text
        if any(anchor in looked for anchor in anchors):
            for match in shape.finditer(text):
                yield match.span()


def keys_slowly(text: str) -> Iterator[tuple[int, int]]:
    """The same without looking first what is worth it: what `keys` is tested against."""
    for shape, _, _ in _KEYS:
        for match in shape.finditer(text):
            yield match.span()


def find(text: str) -> Iterator[tuple[str, int, int]]:
    """Each secret's kind (`email`, `card` or `key`), start and end."""
    for start, stop in _apart(sorted(keys(text))):
        yield "key", start, stop
    if "@" in text:
        for match in _EMAIL.finditer(text):
            yield "email", *match.span()
    for match in _RUN.finditer(text):
        yield from _cards(text, match.start(), match.end())


def _apart(spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    # `api_key=sk-…` is a key by two shapes, and is one.
    last: tuple[int, int] | None = None
    for start, stop in spans:
        if last is not None and start < last[1]:
            last = last[0], max(stop, last[1])
            continue
        if last is not None:
            yield last
        last = start, stop
    if last is not None:
        yield last


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
