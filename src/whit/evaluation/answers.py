"""How an answer in plain text is read: as a label, a number or JSON.

Every kind of answer is read twice. The *strict* reading is what a program that uses the answer
would do. The *lenient* reading looks through the format, so that a change of format can be told
from a change of skill (docs/proof.md). Readers never raise on an answer, however odd: an answer
comes from a model and may be anything. This module knows nothing of rows, scores or models.
"""

from __future__ import annotations

import ast
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

# An answer longer than this is read only so far: a reader must not be made slow by what it reads.
LONGEST = 20_000
_TRIES = 16  # places in one answer where a JSON object may begin

_SPACE = re.compile(r"\s+")
_JOINERS = re.compile(r"[\s_\-‐-―/]+")
_EDGES = "\"'`“”‘’«».,;:!?()[]{}<>*#_~…-–— \t\r\n"


def fold(text: str) -> str:
    """Unicode NFKC, lower case, every run of white space one space, none at the ends."""
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", text[:LONGEST]).casefold()).strip()


def normalise(text: str) -> str:
    """`fold`, and quotes and punctuation at the ends removed (unless nothing else is there)."""
    folded = fold(text)
    return folded.strip(_EDGES) or folded


def loosen(text: str) -> str:
    """`fold`, with space, underscore, hyphen and slash all one space: `Card_Arrival` is `card arrival`."""
    folded = fold(text)
    return _JOINERS.sub(" ", folded).strip() or folded


# --- labels ---------------------------------------------------------------------------------


class LabelReader:
    """Reads an answer as one of a closed set of labels.

    Case and space are forgiven, and punctuation around the answer where that keeps all labels apart
    (it does not for `c` and `c++`).
    """

    def __init__(self, labels: Iterable[str]) -> None:
        self.labels = tuple(dict.fromkeys(labels))
        apart = len({fold(label) for label in self.labels})
        self._normal = normalise if len({normalise(label) for label in self.labels}) == apart else fold
        self._strict: dict[str, str] = {}
        self._loose: dict[str, str] = {}
        for label in self.labels:
            self._strict.setdefault(self._normal(label), label)
            self._loose.setdefault(loosen(label), label)
        # The longest first: where two labels begin at the same place, the longer one was meant.
        choices = sorted((key for key in self._loose if key), key=lambda key: (-len(key), key))
        pattern = "|".join(re.escape(choice) for choice in choices) or r"(?!)"
        self._search = re.compile(rf"(?<!\w)(?:{pattern})(?!\w)")

    def same(self, answer: str, gold: str) -> bool:
        """Whether `answer` is `gold`, but for case, space and punctuation around it."""
        return self._normal(answer) == self._normal(gold)

    def strict(self, answer: str) -> str | None:
        """The label that the whole answer is, or None."""
        return self._strict.get(self._normal(answer))

    def lenient(self, answer: str) -> str | None:
        """The whole answer's label, else the label that is named first in it, or None."""
        whole = self.strict(answer)
        if whole is not None:
            return whole
        found = self._search.search(loosen(answer))
        return self._loose[found.group()] if found else None


# --- numbers --------------------------------------------------------------------------------

_NUMBER = re.compile(
    r"""(?<![\w.,])(?P<sign>(?<![)\]}])[-+])?[$€£¥]?
        (?P<body>(?:\d{1,3}(?:,\d{3})+(?![\d])|\d+)(?:\.\d+)?|\.\d+)
        (?P<exponent>[eE][-+]?\d{1,3}(?![\w.]))?
        (?:(?P<mixed>\s\d+)?\s?/\s?(?P<under>\d+)(?![\d/.]))?""",
    re.VERBOSE,
)
_VULGAR = re.compile("([¼-¾⅐-⅞])")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_MINUS = str.maketrans({"−": "-", "–": "-", "⁄": "/", "\u00a0": " ", "\u202f": ""})
_BOXED = re.compile(r"\\boxed\s*\{")
_STATED = re.compile(r"answer\s*(?:is|are|:|=|would be|will be)", re.IGNORECASE)
_LONGEST_NUMBER = 40  # digits


def _plain(text: str) -> str:
    text = _VULGAR.sub(r" \1", text[:LONGEST])
    text = unicodedata.normalize("NFKC", text).translate(_MINUS)
    return _LATEX_FRACTION.sub(r"\1/\2", text)


def _value(match: re.Match[str]) -> float | None:
    body = match["body"].replace(",", "")
    if len(body) > _LONGEST_NUMBER:
        return None
    number = float(body + (match["exponent"] or ""))
    if match["under"]:
        under = float(match["under"][:_LONGEST_NUMBER])
        if not under:
            return None
        if match["mixed"]:
            number += float(match["mixed"][:_LONGEST_NUMBER]) / under
        else:
            number /= under
    return -number if match["sign"] == "-" else number


def numbers_in(text: str) -> list[float]:
    """Every number in the text, in order.

    Understands `1,234`, `-3`, `.5`, `1e3`, `3/4`, `1 1/2`, `½`, `\\frac{3}{4}`, currency signs before
    a number and any unit after it (units, `%` among them, are ignored). A comma is a thousands
    separator and never a decimal point.
    """
    values = (_value(match) for match in _NUMBER.finditer(_plain(text)))
    return [value for value in values if value is not None and math.isfinite(value)]


def final_number(text: str) -> float | None:
    """The number that a text ends up at, or None.

    The first number after the last `####`, else inside the last `\\boxed{`, else after the last
    `answer is` (or `answer:`), else the last number of the text.
    """
    marker = text.rfind("####")
    if marker >= 0 and (marked := numbers_in(text[marker + 4 :])):
        return marked[0]
    for pattern in (_BOXED, _STATED):
        found = list(pattern.finditer(text[:LONGEST]))
        if found and (stated := numbers_in(text[found[-1].end() :])):
            return stated[0]
    every = numbers_in(text)
    return every[-1] if every else None


def same_number(one: float, other: float) -> bool:
    """Equal to nine digits, so that 1,000,000 is not 1,000,001 and 0.1 + 0.2 is 0.3."""
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)


# --- JSON -----------------------------------------------------------------------------------


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _no_constants(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constants)


def parse_json(text: str) -> Any:
    """JSON as RFC 8259 has it: one value, no key twice, no NaN. Raises ValueError."""
    try:
        return _DECODER.decode(text.strip())
    except RecursionError:
        raise ValueError("nested too deeply") from None


def is_json(text: str) -> bool:
    """Whether `parse_json` takes it."""
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


def same_json(one: Any, other: Any) -> bool:
    """Equal as JSON: `1` is `1.0`, but `true` is not `1`; the order of keys does not matter."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    if isinstance(one, bool) or isinstance(other, bool) or isinstance(one, str) or isinstance(other, str):
        return type(one) is type(other) and bool(one == other)
    return bool(one == other)


def fold_json(value: Any) -> Any:
    """The value with its format looked through: texts normalised, texts that are numbers made numbers."""
    if isinstance(value, dict):
        return {normalise(str(key)): fold_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [fold_json(inner) for inner in value]
    if isinstance(value, str):
        text = normalise(value)
        try:
            number = float(text)
        except ValueError:
            return {"true": True, "false": False, "null": None, "none": None}.get(text, text)
        return number if math.isfinite(number) else text
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**53 else value
    return value


_PAIR = re.compile(
    r"""["'“]?(?P<key>[\w][\w .\-]{0,60}?)["'”]?\s*[:=]\s*
        (?:"(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>(?:[^'\\]|\\.)*)'|(?P<bare>[^\s,;{}\[\]"']+))""",
    re.VERBOSE,
)


def find_object(text: str, keys: Iterable[str]) -> dict[str, Any] | None:
    """The JSON object that a text has somewhere in it, or None.

    Tried in turn: a JSON object that begins at any brace, the same written as a Python literal, and
    lastly pairs `key: value` whose key is one of `keys` (so that an object cut off at the end still
    gives what it had).
    """
    text = text[:LONGEST]
    places = [match.start() for match in re.finditer(r"\{", text)][:_TRIES]
    for place in places:
        try:
            found, _ = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    for place in places[:2]:
        end = text.rfind("}")
        if end > place and (literal := _literal(text[place : end + 1])) is not None:
            return literal
    return _pairs(text, keys)


def _literal(text: str) -> dict[str, Any] | None:
    if len(text) > 4_000 or text.count("{") + text.count("[") + text.count("(") > 50:
        return None  # Python's own parser is no place for a hostile text
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else None


def _pairs(text: str, keys: Iterable[str]) -> dict[str, Any] | None:
    wanted: Mapping[str, str] = {normalise(key): key for key in keys}
    found: dict[str, Any] = {}
    for match in _PAIR.finditer(text):
        key = wanted.get(normalise(match["key"]))
        if key is not None and key not in found:
            values = (match["double"], match["single"], match["bare"])
            found[key] = next(value for value in values if value is not None)
    return found or None
