"""What is not a checked number: e-mail addresses, telephone and IP numbers, keys, the user's own terms.

Telephone numbers are validated by `phonenumbers` (Google's libphonenumber metadata, which is local). Each finder
takes plain text and yields spans.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from whit.data import secrets
from whit.data.secrets import Shape, folded

Span = tuple[int, int]

_EMAIL = re.compile(
    r"(?<![\w.+-])[\w][\w.!#$%&'*+/=?^`{|}~-]{0,63}\s{0,2}(?:@|\(at\)|\[at\]|\{at\})\s{0,2}"
    r"(?:[\w-]{1,63}\s?(?:\.|\(dot\)|\[dot\])\s?){1,8}[^\W\d_]{2,24}(?!\w)"
)
_AT = re.compile(r"@|\(at\)|\[at\]|\{at\}")
_NAME, _HOST = 70, 600  # characters: more than any has
_SPOKEN = re.compile(r"(?i)\b[a-z0-9][\w.+-]{0,63} at (?:[a-z0-9-]{1,63} dot ){1,4}[a-z]{2,10}\b")
_KEYS = (
    Shape(re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}-----[A-Za-z0-9+/=\s:,.-]{0,20000}"), ("-----BEGIN ",)),
    Shape(re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@]{1,64}:[^\s/@]{3,128}@[\w.-]{1,253}"), ("://",),
          reach=(24, 480)),
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
     any_case=True, reach=(1, 260)),
)  # fmt: skip
_PHONE = re.compile(
    r"(?<![\w.,:/+-])(?:\+|\()?\d(?:[ \t.()-]{0,3}\d){5,16}(?:[ -]?(?:x|ext\.? ?)\d{1,6})?(?!\w|[.,:/]\d|-\d)"
)
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
MOST_PHONES = 64


def emails(text: str) -> Iterator[Span]:
    """E-mail addresses, also as `name (at) host (dot) org` and `name at host dot org`."""
    end = 0
    for at in _AT.finditer(text):
        # An address has one such sign, with its name before it and its host after it.
        found = _EMAIL.search(text, max(end, at.start() - _NAME), at.end() + _HOST) if at.start() >= end else None
        if found is not None and found.start() < at.start():
            end = found.end()
            yield found.span()
    if " dot " in folded(text):
        for match in _SPOKEN.finditer(text):
            yield match.span()


def emails_slowly(text: str) -> Iterator[Span]:
    """The same, looked for everywhere: what `emails` is tested against."""
    for shape in (_EMAIL, _SPOKEN):
        for match in shape.finditer(text):
            yield match.span()


def keys(text: str) -> Iterator[Span]:
    """API keys, private keys, passwords that are named so, addresses with a password in them."""
    yield from secrets.keys(text)
    low = folded(text)
    for shape in _KEYS:
        yield from _private(text, shape.find(text, low))


def keys_slowly(text: str) -> Iterator[Span]:
    """The same without looking first what is worth it: what `keys` is tested against."""
    yield from secrets.keys_slowly(text)
    for shape in _KEYS:
        yield from _private(text, (match.span() for match in shape.pattern.finditer(text)))


def _private(text: str, spans: Iterable[Span]) -> Iterator[Span]:
    # What begins like a key file may be a certificate, which is public.
    for start, stop in spans:
        if "BEGIN" not in text[start : start + 11] or "PRIVATE KEY" in text[start : min(stop, start + 60)]:
            yield start, stop


def phones(text: str, regions: Sequence[str]) -> Iterator[Span]:
    """Telephone numbers that are valid somewhere: international ones, and national ones of `regions`.

    Raises `OverflowError` where there are too many candidates to look at each.
    """
    import phonenumbers

    count = 0
    for match in _PHONE.finditer(text):
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
        number = "+" + bare[2:] if bare.startswith("00") else bare
        for region in (None,) if abroad else regions:
            try:
                if phonenumbers.is_valid_number(phonenumbers.parse(number, region)):
                    yield match.span()
                    break
            except phonenumbers.NumberParseException:
                continue


def warm(regions: Sequence[str]) -> None:
    """Load what telephone numbers are checked by, so that no request waits for it: a number may be of any country."""
    import phonenumbers

    phonenumbers.PhoneMetadata.load_all()
    for _ in phones("call +44 20 7946 0958, +1 202-555-0100, +49 30 901820 or 020 7946 0958", regions):
        pass


def addresses(text: str) -> Iterator[Span]:
    """IP addresses, except those that name no machine (0.0.0.0, 127.0.0.1, ::1)."""
    if _SOME_IP4.search(text) is not None:
        yield from _addresses(_IP4, text)
    if text.count(":") > 1 and _SOME_IP6.search(text) is not None:
        yield from _addresses(_IP6, text)


def addresses_slowly(text: str) -> Iterator[Span]:
    """The same without looking first: what `addresses` is tested against."""
    yield from _addresses(_IP4, text)
    yield from _addresses(_IP6, text)


def _addresses(shape: re.Pattern[str], text: str) -> Iterator[Span]:
    for match in shape.finditer(text):
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

    def __call__(self, text: str) -> Iterator[Span]:
        """Where a term stands."""
        if not self._first:
            return
        words = list(_words(text))
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
