"""Seeing through ways to write that hide a number or an address from a pattern.

`plain` gives the text with full-width and other scripts' digits, invisible characters, dashes and spaces made
ordinary; `decodings` gives what is hidden in URL, HTML, backslash, quoted-printable, hexadecimal and base64 forms,
compressed ones too, and in numbers spelt out. Work is bounded by the text's size. What no rule here undoes stays
hidden: this is why detection is not the guarantee.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import html
import quopri
import re
import string
import unicodedata
import urllib.parse
import zlib
from collections.abc import Callable, Iterator
from functools import partial

from whit.data.secrets import merged
from whit.routing.detection.view import View, classes, runs

DEPTH = 3
_LARGEST = 65_536
_DASHES = dict.fromkeys(map(ord, "‐‑‒–—―−﹘﹣－⁃➖・·•‧∙⋅"), "-")
# Wrapped lines first: they are one text.
_BASE64 = re.compile(r"(?:(?:[A-Za-z0-9+/_-]{40,100}\r?\n)+[A-Za-z0-9+/_-]+|[A-Za-z0-9+/_-]{16,})={0,2}")
_BASE64_TABLE = classes(string.ascii_letters + string.digits + "+/_-")
_HEX = re.compile(r"(?:0x|\\x|%|\b)?(?:[0-9a-fA-F]{2}[ :,-]?(?:0x|\\x)?){11,}")
_HEX_TABLE = classes("0123456789abcdefABCDEF :,-x\\%")
_SOME_CODES = re.compile(r"\d[ ,;]{1,2}\d{2,3}[ ,;]{1,2}\d{2,3}[ ,;]")
# Backslashes are doubled by every text that holds another: JSON in JSON.
_ESCAPE = re.compile(
    r"\\+(?:u\{(?P<braced>[0-9a-fA-F]{1,6})\}"
    r"|u(?P<high>[dD][89abAB][0-9a-fA-F]{2})\\+u(?P<low>[dD][c-fC-F][0-9a-fA-F]{2})|u(?P<four>[0-9a-fA-F]{4})"
    r"|U(?P<eight>[0-9a-fA-F]{8})|x(?P<two>[0-9a-fA-F]{2})|(?P<octal>[0-7]{2,3})|(?P<space>[nrtbfv])"
    r"|(?P<itself>[^\w\s\\]))"
)
_CODES = re.compile(r"(?:\b\d{2,3}\b[ ,;]{1,2}){11,}\d{2,3}\b")
_WORDS = {
    "zero": "0", "oh": "0", "nought": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9",
}  # fmt: skip
_AROUND = 256  # characters beside what is escaped that are looked at with it: no number or address is as long
_APART = "\n~~~~\n"  # parts no number
_SPELT = re.compile(r"(?i)\b(?:(?:" + "|".join(_WORDS) + r")\b[\s,.-]{0,3}){7,}")


class _Plain(dict[int, str]):
    """What each character becomes, worked out once; `str.translate` asks it."""

    def __missing__(self, code: int) -> str:
        if len(self) > 20_000:  # no text may fill the memory
            self.clear()
        found = self[code] = _plain_character(chr(code))
        return found


_TABLE = _Plain()
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]+")
_FAR = re.compile(r"[^\x00-\x7e]+")  # a table is slow for those that it leaves as they are


def plain(text: str) -> str:
    """The text with its digits, dashes and spaces made ASCII and its invisible characters gone."""
    if text.isascii():
        if text.replace("\n", "").isprintable():
            return text
        return _CONTROL.sub("", text)
    return _FAR.sub(_made_plain, unicodedata.normalize("NFKC", text))


def _made_plain(match: re.Match[str]) -> str:
    return match.group().translate(_TABLE)


def _plain_character(character: str) -> str:
    if character < "\x7f":
        return character
    kind = unicodedata.category(character)
    if kind in ("Cf", "Me", "Mn", "Cc", "Co", "Cn"):
        return ""
    if kind == "Nd":
        return str(unicodedata.digit(character))
    if kind == "No" and (value := unicodedata.digit(character, None)) is not None:
        return str(value)
    if kind.startswith("Z"):
        return " "
    if kind == "Pd":
        return "-"
    return _DASHES.get(ord(character), character)


def decodings(view: View, depth: int = DEPTH) -> Iterator[View]:
    """Views of texts that are hidden in one, each made plain; hidden ones within them too, `depth` deep."""
    for found in _once(view):
        clear = plain(found)
        if clear != view.text:
            inner = View(clear, view.known)
            yield inner
            if depth > 1:
                yield from decodings(inner, depth - 1)


def opaque(view: View) -> bool:
    """Whether a part of the text is long and encoded, and decodes to no text: a picture, an archive, cipher."""
    words = base64s(view.text) if view.long else ()
    return any(len(word) >= 400 and _is_mixed(word) and _decoded(word) is None for word in words)


def _once(view: View) -> Iterator[str]:
    """What one undoing gives. Each costly pattern is asked only where something that it needs is in the text."""
    text = view.text
    for sign, marks, undo in _ESCAPES:
        if sign in text and (changed := _undone(text, marks, undo)) is not None:
            yield changed
    for word in base64s(text) if view.long else ():
        for part in {word, *word.split()}:  # the lines by themselves too: one that is none would spoil the rest
            if (found := _decoded(part)) is not None:
                yield found
    for match in hexadecimals(text, view.ascii):
        digits = re.sub(r"0x|\\x|[^0-9a-fA-F]", "", match.group())
        if (found := _readable(bytes.fromhex(digits[: len(digits) // 2 * 2]))) is not None:
            yield found
    if view.count > 23 and _SOME_CODES.search(text) is not None:
        for match in _CODES.finditer(text):
            values = [int(each) for each in re.findall(r"\d+", match.group())]
            if all(9 <= value < 127 for value in values):
                yield "".join(map(chr, values))
    # Seven in a row, so five between the first and the last stand between what may part them.
    if sum(map(view.low.count, _WORDS)) < 7:
        return
    words = view.low.replace(",", " ").replace(".", " ").replace("-", " ").split()
    if sum(map(_WORDS.__contains__, words)) >= 5:
        for match in _SPELT.finditer(text):
            yield "".join(_WORDS[word.lower()] for word in re.findall(r"[A-Za-z]+", match.group()))


def _undone(text: str, marks: re.Pattern[str], undo: Callable[[str], str]) -> str | None:
    """The parts of the text around what is escaped, with that undone; None where nothing is."""
    spans = ((max(0, mark.start() - _AROUND), mark.end() + _AROUND) for mark in marks.finditer(text))
    pairs = [(text[start:stop], undo(text[start:stop])) for start, stop in merged(spans)]
    changed = [after for before, after in pairs if after != before]
    return _APART.join(changed) if changed else None


def base64s(text: str) -> Iterator[str]:
    """What may be base64. A match begins where 16 characters of it do, so it is looked for only there."""
    end = 0
    for start, _ in runs(text.encode("ascii", "replace").translate(_BASE64_TABLE), 16):
        if start >= end and (match := _BASE64.match(text, start)) is not None:
            end = match.end()
            yield match.group()


def hexadecimals(text: str, replaced: bytes | None = None) -> Iterator[re.Match[str]]:
    """Eleven bytes or more in hexadecimal, looked for only where 22 characters in a row could be that."""
    raw = text.encode("ascii", "replace") if replaced is None else replaced
    for window in runs(raw.translate(_HEX_TABLE), 22):
        yield from _HEX.finditer(text, *window)


def _escaped(match: re.Match[str]) -> str:
    found = match.groupdict()
    if found["space"]:
        return " "
    if found["itself"]:
        return found["itself"]
    if found["high"]:
        return chr(0x10000 + ((int(found["high"], 16) & 0x3FF) << 10) + (int(found["low"], 16) & 0x3FF))
    digits = next(found[name] for name in ("braced", "four", "eight", "two", "octal") if found[name])
    code = int(digits, 8 if found["octal"] else 16)
    return chr(code) if code < 0x110000 and not 0xD800 <= code < 0xE000 else ""


def _quoted_printable(text: str) -> str:
    return quopri.decodestring(text.encode("utf-8", "replace")).decode("utf-8", "replace")


# A sign that must be there, what is escaped, and what undoes it.
_ESCAPES: tuple[tuple[str, re.Pattern[str], Callable[[str], str]], ...] = (
    ("%", re.compile(r"%[0-9A-Fa-f]{2}"), partial(urllib.parse.unquote, errors="replace")),
    ("&", re.compile(r"&(?:#|[A-Za-z])"), html.unescape),
    ("\\", _ESCAPE, lambda part: _ESCAPE.sub(_escaped, part)),
    ("=", re.compile(r"=[0-9A-Fa-f]{2}|=\r?\n"), _quoted_printable),
)


def _is_mixed(word: str) -> bool:
    # Long words of a language and lines of dashes are letters alone, of one case.
    return any(c.islower() for c in word) and any(c.isupper() for c in word)


def _decoded(word: str) -> str | None:
    word = "".join(word.split())
    if len(word) > _LARGEST * 2:
        return None
    bare = word.rstrip("=").replace("-", "+").replace("_", "/")
    for cut in (0, 1, 2, 3):  # a prefix such as `key/` may stand before it
        part = bare[cut:]
        part = part[: len(part) - (len(part) % 4 == 1)]
        try:
            raw = base64.b64decode(part + "=" * (-len(part) % 4), validate=True)
        except (binascii.Error, ValueError):
            continue
        if (text := _readable(raw)) is not None:
            return text
    return None


def _readable(raw: bytes) -> str | None:
    """Bytes as text, unpacked if they are packed; nothing where they are no text."""
    if raw[:2] == b"\x1f\x8b" or raw[:1] == b"\x78":
        with contextlib.suppress(zlib.error):  # a text may begin with the letter x too
            raw = zlib.decompressobj(47).decompress(raw, _LARGEST)
    # Most of what is text in UTF-16 here has a zero byte.
    wide = ("utf-16-le", "utf-16-be") if raw.count(0) >= 0.3 * len(raw) else ()
    for encoding in ("utf-8", *wide):
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        if len(text) >= 6 and sum(c.isascii() and (c.isprintable() or c in "\r\n\t") for c in text) >= 0.9 * len(text):
            return text
    return None
