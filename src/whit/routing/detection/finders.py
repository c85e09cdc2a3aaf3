"""What is not a checked number: e-mail addresses, telephone and IP numbers, keys, the user's own terms.

Telephone numbers are validated by `phonenumbers` (Google's libphonenumber metadata, which is local). Each finder
takes a view of a plain text and yields spans.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from whit.data import secrets
from whit.data.secrets import Shape, Shapes, merged
from whit.routing.detection.view import Span, View

_EMAIL = re.compile(
    r"(?<![\w.+-])[\w][\w.!#$%&'*+/=?^`{|}~-]{0,63}\s{0,2}(?:@|\(at\)|\[at\]|\{at\})\s{0,2}"
    r"(?:[\w-]{1,63}\s?(?:\.|\(dot\)|\[dot\])\s?){1,8}[^\W\d_]{2,24}(?!\w)"
)
_AT = re.compile(r"@|\(at\)|\[at\]|\{at\}")
_SOME_AT = ("@", "at)", "at]", "at}")
_NAME, _HOST = 70, 600  # characters: more than any has
_SPOKEN = re.compile(r"(?i)\b[a-z0-9][\w.+-]{0,63} at (?:[a-z0-9-]{1,63} dot ){1,4}[a-z]{2,10}\b")
_KEYS = Shapes(
    Shape(re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}-----[A-Za-z0-9+/=\s:,.-]{0,20000}"), ("-----BEGIN ",), run=False),
    Shape(re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@]{1,64}:[^\s/@]{3,128}@[\w.-]{1,253}"), ("://",),
          reach=(24, 480), run=False, signs=("@",)),
    Shape(re.compile(r"\b(?i:bearer|basic)\s+[A-Za-z0-9._~+/-]{20,4000}={0,2}"), ("bearer", "basic"), any_case=True),
    Shape(re.compile(r"\bSG\.[A-Za-z0-9_-]{16,64}\.[A-Za-z0-9_-]{16,64}"), ("SG.",)),
    Shape(re.compile(r"\bnpm_[A-Za-z0-9]{36}\b"), ("npm_",)),
    Shape(re.compile(r"\bpypi-[A-Za-z0-9_-]{50,200}"), ("pypi-",)),
    Shape(re.compile(r"\bdop_v1_[a-f0-9]{64}\b"), ("dop_v1_",)),
    Shape(re.compile(r"\bya29\.[A-Za-z0-9_-]{20,200}"), ("ya29.",)),
    Shape(re.compile(
        r"\b(?i:aws_secret_access_key|client_secret|private_key|password|passwort|mot de passe)\b"
        r"['\"]?\s{0,3}[:=]\s{0,3}\S{6,200}"),
     ("aws_secret_access_key", "client_secret", "private_key", "passwor", "mot de passe"),
     any_case=True, reach=(1, 260), run=False, signs=(":", "=")),
)  # fmt: skip
_PHONE = re.compile(
    r"(?<![\w.,:/+-])(?:\+|\()?\d(?:[ \t.()-]{0,3}\d){5,16}(?:[ -]?(?:x|ext\.? ?)\d{1,6})?(?!\w|[.,:/]\d|-\d)"
)
_PHONE_BETWEEN = frozenset(" \t.()-")
_PHONE_REACH = 16  # characters behind its digits that a match looks at
_BEFORE = re.compile(
    r"(?i)(?:phone|tel|mobile|cell|call|fax|number|ring|dial|whatsapp|sms|text me|contact|reach|messages? to"
    r"|registered)"
    r"[^\n\d+(]{0,40}$"
)
_AFTER = re.compile(r"(?i)[ -]{0,2}\(?(?:office|fax|mobile|cell|home|work|tel|phone)")
_IP4 = re.compile(r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.]\d|\d)")
_IP6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:(?:\d{1,3}\.){3}\d{1,3})?(?![\w:])")
# What every match has in the middle.
_SOME_IP4 = re.compile(r"\.\d{1,3}\.\d{1,3}\.\d")
_SOME_IP6 = re.compile(r":[0-9A-Fa-f]{0,4}:")
_IP6_REACH = 64  # characters: more than any match has
MOST_PHONES = 64


def emails(view: View) -> Iterator[Span]:
    """E-mail addresses, also as `name (at) host (dot) org` and `name at host dot org`."""
    text, end = view.text, 0
    for at in _AT.finditer(text) if any(map(text.__contains__, _SOME_AT)) else ():
        # An address has one such sign, with its name before it and its host after it.
        found = _EMAIL.search(text, max(end, at.start() - _NAME), at.end() + _HOST) if at.start() >= end else None
        if found is not None and found.start() < at.start():
            end = found.end()
            yield found.span()
    if " dot " in view.low:
        for match in _SPOKEN.finditer(text):
            yield match.span()


def keys(view: View) -> Iterator[Span]:
    """API keys, private keys, passwords that are named so, addresses with a password in them."""
    yield from secrets.keys(view.text, view.low, view.long)
    yield from _private(view.text, _KEYS.find(view.text, view.low, view.long))


def _private(text: str, spans: Iterable[Span]) -> Iterator[Span]:
    # What begins like a key file may be a certificate, which is public.
    for start, stop in spans:
        if "BEGIN" not in text[start : start + 11] or "PRIVATE KEY" in text[start : min(stop, start + 60)]:
            yield start, stop


def phones(view: View, regions: Sequence[str]) -> Iterator[Span]:
    """Telephone numbers that are valid somewhere: international ones, and national ones of `regions`.

    Raises `OverflowError` where there are too many candidates to look at each.
    """
    if view.count < 7:
        return
    text, count = view.text, 0
    chains = view.chains(_PHONE_BETWEEN, most=3, least=6)
    windows = merged((max(0, groups[0][0] - 2), groups[-1][1] + _PHONE_REACH) for groups in chains)
    for match in (match for window in windows for match in _PHONE.finditer(text, *window)):
        written = match.group()
        bare = re.sub(r"(?:x|ext).*", "", written)
        digits = sum(c.isdigit() for c in bare)
        if digits < 7 or digits > 15:
            continue
        abroad = bare.startswith(("+", "(+", "00"))
        grouped = len(re.findall(r"\d+", bare)) > 1
        named = (
            _BEFORE.search(text, max(0, match.start() - 60), match.start()) is not None
            or _AFTER.match(text, match.end()) is not None
        )
        if not (abroad or grouped or named):
            continue
        # A grouped number that is called a telephone's, or looks like a national one, is one of whatever country.
        if grouped and (named or (9 <= digits <= 13 and bare[0] in "0(")):
            yield match.span()
            continue
        count += 1
        if count > MOST_PHONES:
            raise OverflowError("too many numbers that may be telephones")
        if any(_valid(view.known, bare, region) for region in ((None,) if abroad else regions)):
            yield match.span()


def _valid(known: dict[str, bool], number: str, region: str | None) -> bool:
    """Whether it is a telephone number; the same one is looked up once in a scan."""
    import phonenumbers

    name = f"{region} {number}"
    if name not in known:
        try:
            parsed = phonenumbers.parse("+" + number[2:] if number.startswith("00") else number, region)
            known[name] = phonenumbers.is_valid_number(parsed)
        except phonenumbers.NumberParseException:
            known[name] = False
    return known[name]


def warm(regions: Sequence[str]) -> None:
    """Load what telephone numbers are checked by, so that no request waits for it: a number may be of any country."""
    import phonenumbers

    phonenumbers.PhoneMetadata.load_all()
    view = View("call +44 20 7946 0958, +1 202-555-0100, +49 30 901820 or 020 7946 0958")
    for _ in phones(view, regions):
        pass


def addresses(view: View) -> Iterator[Span]:
    """IP addresses, except those that name no machine (0.0.0.0, 127.0.0.1, ::1)."""
    text = view.text
    yield from _addresses(_IP4, text, ((dots.start() - 4, dots.end() + 4) for dots in _SOME_IP4.finditer(text)))
    if text.count(":") > 1:
        colons = _SOME_IP6.finditer(text)
        yield from _addresses(_IP6, text, ((at.start() - _IP6_REACH, at.end() + _IP6_REACH) for at in colons))


def _addresses(shape: re.Pattern[str], text: str, windows: Iterable[Span]) -> Iterator[Span]:
    for start, stop in merged(windows):
        for match in shape.finditer(text, max(0, start), stop):
            try:
                found = ipaddress.ip_address(match.group())
            except ValueError:
                continue
            if not (found.is_loopback or found.is_unspecified):
                yield match.span()


class Terms:
    """The user's own list: words and phrases, whatever their case, accents aside, spaces as they come."""

    def __init__(self, terms: Iterable[str]) -> None:
        self._first: dict[str, list[tuple[str, ...]]] = {}
        for term in terms:
            words = tuple(word for word, _ in _words(term))
            if words:
                self._first.setdefault(words[0], []).append(words)

    def __call__(self, view: View) -> Iterator[Span]:
        """Where a term stands."""
        if not self._first:
            return
        words = list(_words(view.text))
        for at, (word, span) in enumerate(words):
            for term in self._first.get(word, ()):
                if tuple(each for each, _ in words[at : at + len(term)]) == term:
                    yield span[0], words[at + len(term) - 1][1][1]
                    break


def _words(text: str) -> Iterator[tuple[str, Span]]:
    for match in re.finditer(r"\w+", text):
        yield fold(match.group()), match.span()


def fold(word: str) -> str:
    """A word without case and accents."""
    if word.isascii():
        return word.lower()
    apart = unicodedata.normalize("NFKD", word)
    return "".join(c for c in apart if not unicodedata.combining(c)).casefold()
