"""Numbers that carry their own check: cards, IBANs, national identifiers.

Each finder takes a view of a plain text and yields where a number stands. Checks are the published ones: Luhn (ISO/IEC
7812-1), mod 97 (ISO 13616 and ISO/IEC 7064), Verhoeff for Aadhaar, and each country's own. Knows nothing of who asks.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Iterator

from whit.data.secrets import luhn, merged
from whit.routing.detection.view import Span, View, classes, runs

_BETWEEN = frozenset(" \t\r\n._,;:/|*'\"()+-")  # what may part a card's groups of digits, lines too
_GROUP = re.compile(r"\d+")
_CARD = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]|2[2-7])\d{14}|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11,16}"
    r"|6(?:011|4[4-9]\d|5\d\d)\d{12,15}|62\d{14,17}|(?:35\d\d)\d{12,15}|(?:2131|1800)\d{11}"
    r"|(?:50|5[6-8]|6\d)\d{10,17}|220[0-4]\d{12,15}|9792\d{12}|65\d{14}|8[12]\d{14,17}"
)
_SHAPES = {(4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 3), (6, 13), (4, 4, 5), (8, 8), (4, 12), (12, 4), (5, 5, 5), (6, 4, 6)}
# Lengths of an IBAN by country (SWIFT's registry, release 97).
_IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BI": 27, "BR": 29,
    "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27, "DK": 18, "DO": 28, "EE": 20, "EG": 29,
    "ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28,
    "HN": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20,
    "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19,
    "MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23, "PK": 24, "PL": 28, "PS": 29,
    "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24, "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24,
    "SM": 27, "SO": 23, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20,
    "YE": 30,
}  # fmt: skip
_IBAN = re.compile(r"(?<![A-Za-z0-9])([A-Za-z]{2})[ -]?\d[ -]?\d(?:[ .-]{0,2}[A-Za-z0-9]){11,29}")


def cards(view: View) -> Iterator[Span]:
    """Card numbers: an issuer's first digits, one of its lengths, and the check digit; grouped in any usual way."""
    if view.count < 12:
        return
    for groups in view.chains(_BETWEEN, most=3, least=12):
        yield from _cards(groups, "".join(view.text[start:stop] for start, stop in groups))


def _cards(groups: list[Span], digits: str) -> Iterator[Span]:
    offsets, total = [], 0
    for start, stop in groups:
        offsets.append(total)
        total += stop - start
    first = 0
    while first < len(groups):
        after = first + 1
        for last in range(first, min(first + 19, len(groups))):
            size = offsets[last] + groups[last][1] - groups[last][0] - offsets[first]
            if size > 19:
                break
            if size < 12:
                continue
            number = digits[offsets[first] : offsets[first] + size]
            sizes = [stop - start for start, stop in groups[first : last + 1]]
            whole = first == 0 and last == len(groups) - 1
            if (whole or _usual(sizes)) and _CARD.fullmatch(number) and len(set(number)) > 1 and luhn(number):
                yield groups[first][0], groups[last][1]
                after = last + 1
                break
        first = after


def _usual(sizes: list[int]) -> bool:
    if len(sizes) == 1 or tuple(sizes) in _SHAPES:
        return True
    return len(set(sizes[:-1])) == 1 and sizes[-1] <= max(sizes[0], 4)


def ibans(view: View) -> Iterator[Span]:
    """IBANs: the country's length, and 1 as the remainder by 97."""
    text, end = view.text, 0
    for digit, _ in view.digits:
        # The country stands before the first check digit, perhaps with a separator between.
        start = digit - 3 if text[digit - 1 : digit] in (" ", "-") else digit - 2
        if start >= end and (match := _IBAN.match(text, start)) is not None:
            end = match.end()
            yield from _iban(text, match)


def _iban(text: str, match: re.Match[str]) -> Iterator[Span]:
    length = _IBAN_LENGTHS.get(match[1].upper())
    if length is None:
        return
    kept, end = "", match.start()
    for place in range(match.start(), match.end()):
        if text[place].isalnum():
            kept += text[place].upper()
            end = place + 1
            if len(kept) == length:
                break
    if len(kept) == length and int("".join(str(int(c, 36)) for c in kept[4:] + kept[:4])) % 97 == 1:
        yield match.start(), end


def _weighted(digits: str, weights: tuple[int, ...]) -> int:
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=False))


def _ssn(number: str) -> bool:
    return number[:3] not in ("000", "666") and number[3:5] != "00" and number[5:] != "0000" and len(set(number)) > 1


def _nhs(number: str) -> bool:
    return (11 - _weighted(number, tuple(range(10, 1, -1)))) % 11 == int(number[9]) and len(set(number)) > 1


def _steuer_id(number: str) -> bool:
    if number[0] == "0" or not 8 <= len(set(number[:10])) <= 9:
        return False
    product = 10
    for digit in number[:10]:
        total = (int(digit) + product) % 10 or 10
        product = 2 * total % 11
    return (11 - product) % 10 == int(number[10])


def _nir(number: str) -> bool:
    body = number[:13].replace("2A", "19").replace("2B", "18")
    return body.isdigit() and number[0] in "12" and 97 - int(body) % 97 == int(number[13:])


def _dni(number: str) -> bool:
    number = number.upper()
    digits = number[:-1].translate(str.maketrans("XYZ", "012"))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(digits) % 23] == number[-1]


_ODD = dict(zip("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
                (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12,
                 14, 16, 10, 22, 25, 24, 23), strict=True))  # fmt: skip


def _codice_fiscale(code: str) -> bool:
    code = code.upper()
    total = sum(
        _ODD[c] if place % 2 == 0 else int(c) if c.isdigit() else ord(c) - 65 for place, c in enumerate(code[:15])
    )
    return chr(65 + total % 26) == code[15]


def _bsn(number: str) -> bool:
    return _weighted(number, (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0 and len(set(number)) > 1


def _pesel(number: str) -> bool:
    month, day = int(number[2:4]) % 20, int(number[4:6])
    weighted = _weighted(number, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3))
    return 1 <= month <= 12 and 1 <= day <= 31 and (10 - weighted) % 10 == int(number[10])


def _personnummer(number: str) -> bool:
    number = number[-10:]
    return 1 <= int(number[2:4]) <= 12 and 1 <= int(number[4:6]) % 60 <= 31 and luhn(number)


def _cpf(number: str) -> bool:
    for length in (9, 10):
        if _weighted(number, tuple(range(length + 1, 1, -1))) * 10 % 11 % 10 != int(number[length]):
            return False
    return len(set(number)) > 1


_D5 = ("0123456789", "1234067895", "2340178956", "3401289567", "4012395678", "5987604321", "6598710432", "7659821043",
       "8765932104", "9876543210")  # fmt: skip
_P8 = ("0123456789", "1576283094", "5803796142", "8916043527", "9453126870", "4286573901", "2793806415", "7046913258")


def _aadhaar(number: str) -> bool:
    check = 0
    for place, digit in enumerate(reversed(number)):
        check = int(_D5[check][int(_P8[place % 8][int(digit)])])
    return check == 0 and number[0] not in "01"


def _sin(number: str) -> bool:
    return luhn(number) and number[0] not in "08" and len(set(number)) > 1


_NEAR = r"(?i:\b(?:{words})\b\W{{0,3}}(?:\w+\W{{1,3}}){{0,4}}?)"
Check = Callable[[str], bool] | None
# What it is, its shape, its check, and of what sizes whole groups of digits must follow each other for it to be there:
# of any, where the shape does not want its first group whole.
_DIGITS: tuple[tuple[str, re.Pattern[str], Check, tuple[bytes, ...]], ...] = (
    ("us ssn", re.compile(r"(?<![\d-])(\d{3}[- ]\d{2}[- ]\d{4})(?![\d-])"), _ssn, (b"\3\2\4",)),
    ("uk nino", re.compile(
        r"(?i)\b((?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z](?:[ -]?\d\d){3}[ -]?[A-D])\b"), None,
     (b"\2\2\2", b"\4\2", b"\2\4", b"\6")),
    ("uk nhs", re.compile(r"(?<![\d-])(\d{3}[- ]\d{3}[- ]\d{4})(?![\d-])"), _nhs, (b"\3\3\4",)),
    ("german tax id", re.compile(r"(?<!\d)(\d{2}[ /]?\d{3}[ /]?\d{3}[ /]?\d{3})(?!\d)"), _steuer_id,
     (b"\2\3\3\3", b"\5\3\3", b"\2\6\3", b"\2\3\6", b"\x08\3", b"\5\6", b"\2\x09", b"\x0b")),
    ("french nir", re.compile(
        r"(?<!\d)([12] ?\d\d ?\d\d ?(?:\d\d|2[ABab]) ?\d{3} ?\d{3} ?\d\d)(?!\d)"), _nir, (b"",)),
    ("spanish dni", re.compile(r"(?i)(?<![A-Z0-9])((?:\d|[XYZ])[ .-]?\d{7}[ -]?[A-Z])(?![A-Z0-9])"), _dni,
     (b"",)),
    ("spanish dni", re.compile(r"(?i)(?<![A-Z0-9.])(\d{2}\.\d{3}\.\d{3}[ -]?[A-Z])(?![A-Z0-9])"), _dni,
     (b"\3\3",)),
    ("polish pesel", re.compile(r"(?<!\d)(\d{11})(?!\d)"), _pesel, (b"\x0b",)),
    ("swedish personnummer", re.compile(r"(?<![\d-])((?:19|20)?\d{6}[-+]\d{4})(?![\d-])"), _personnummer,
     (b"\6\4", b"\x08\4")),
    ("brazilian cpf", re.compile(r"(?<!\d)(\d{3}\.\d{3}\.\d{3}-\d{2})(?!\d)"), _cpf, (b"\3\3\3\2",)),
    ("aadhaar", re.compile(r"(?<![\d-])(\d{4}[ -]?\d{4}[ -]?\d{4})(?![\d-])"), _aadhaar,
     (b"\4\4\4", b"\x08\4", b"\4\x08", b"\x0c")),
    ("canadian sin", re.compile(r"(?<![\d-])(\d{3}[ -]\d{3}[ -]\d{3})(?![\d-])"), _sin, (b"\3\3\3",)),
)  # fmt: skip
# Those that say little alone need one of these words before them; the first is known by its letters.
_CODICE = re.compile(r"(?i)\b([A-Z]{6}[0-9LMNP-V]{2}[A-EHLMPRST][0-9LMNP-V]{2}[A-Z][0-9LMNP-V]{3}[A-Z])\b")
_NAMED: tuple[tuple[str, re.Pattern[str], Check, tuple[str, ...]], ...] = (
    ("us ssn", re.compile(_NEAR.format(words="ssn|social security") + r"(\d{9})(?!\d)"), _ssn,
     ("ssn", "social security")),
    ("uk nhs", re.compile(_NEAR.format(words="nhs") + r"(\d{10})(?!\d)"), _nhs, ("nhs",)),
    ("dutch bsn", re.compile(
        _NEAR.format(words="bsn|burgerservicenummer|sofi") + r"(\d{3}[ .-]?\d{3}[ .-]?\d{3})(?!\d)"), _bsn,
     ("bsn", "burgerservicenummer", "sofi")),
    ("brazilian cpf", re.compile(_NEAR.format(words="cpf") + r"(\d{11})(?!\d)"), _cpf, ("cpf",)),
)  # fmt: skip
_APART = frozenset(" ./+-")
_REACH = 24  # characters beyond its digits that a shape reaches at most
# Letters and digits, and what is not ASCII, which is a question mark there: some of it is an ASCII letter without case.
_LETTERS = classes(string.ascii_letters + string.digits + "?")


def national_ids(view: View) -> Iterator[Span]:
    """National identifiers, by their own check; those that check little only near a word that names them."""
    text = view.text
    for start, stop in _windows(view) if view.count > 5 else ():
        sizes = bytes(min(255, len(group)) for group in _GROUP.findall(text, start, stop))
        for _, shape, check, needs in _DIGITS:
            if any(map(sizes.__contains__, needs)):
                yield from _held(shape.finditer(text, start, stop), check)
    for start, stop in runs(view.ascii.translate(_LETTERS), 16) if view.long else ():
        yield from _held(_CODICE.finditer(text, max(0, start - 1), stop + 1), _codice_fiscale)
    for _, shape, check, words in _NAMED if view.count > 8 else ():
        if any(word in view.low for word in words):
            yield from _held(shape.finditer(text), check)


def _held(matches: Iterator[re.Match[str]], check: Check) -> Iterator[Span]:
    for match in matches:
        bare = re.sub(r"[^0-9A-Za-z]", "", match[1]).upper()
        if check is None or check(bare):
            yield match.span(1)


def _windows(view: View) -> Iterator[Span]:
    """The parts of the text that hold six digits in a row, with what may belong to them on either side."""
    return merged(
        (max(0, groups[0][0] - _REACH), groups[-1][1] + _REACH) for groups in view.chains(_APART, most=1, least=6)
    )


_DOCUMENT = re.compile(
    r"(?i:\b(?:passport|driv(?:er|ing)'?s?[ -]licen[cs]e|licen[cs]e number|identity card|id card|national id|tax id"
    r"|social security|ssn|medical record|mrn|patient id|insurance number|account number|routing number)\b)"
    r"[^\n]{0,30}?\b((?=[A-Za-z0-9-]{0,12}\d[A-Za-z-]{0,6}\d[A-Za-z-]{0,6}\d)[A-Za-z0-9][A-Za-z0-9-]{4,19})\b"
)


_DOCUMENT_REACH = 80  # characters: more than any whole match has
_DOCUMENT_WORDS = ("passport", "driv", "licen", "identity card", "id card", "national id", "tax id",
                   "social security", "ssn", "medical record", "mrn", "patient id", "insurance number",
                   "account number", "routing number")  # fmt: skip


def documents(view: View) -> Iterator[Span]:
    """Numbers of documents and accounts, known only by the words before them."""
    if view.count < 3:
        return
    text, low = view.text, view.low
    windows: Iterable[Span] = ((0, len(text)),)
    if len(low) == len(text):
        words = [word for word in _DOCUMENT_WORDS if word in low]
        places = sorted(match.start() for word in words for match in re.finditer(word, low))
        windows = merged((max(0, place - 1), place + _DOCUMENT_REACH) for place in places)
    for start, stop in windows:
        for match in _DOCUMENT.finditer(text, start, stop):
            yield match.span(1)
