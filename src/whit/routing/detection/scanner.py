"""The detectors together, with limits: what they find is a `Scan`, and what stops them is one that failed.

A text too large, a detector that raises, or too little time makes the scan fail, and a failed scan keeps a request
inside. Work is linear in the text's size, and time is looked at between detectors. Knows nothing of tiers.
"""

from __future__ import annotations

import concurrent.futures
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from whit.routing.clearance import Scan
from whit.routing.config import Detection
from whit.routing.detection import finders, normalise, numbers
from whit.routing.detection.view import Span, View

Finder = Callable[[View], Iterable[Span]]
Hook = Callable[[str], Sequence[tuple[str, str]]]

MOST_DECODINGS = 200


class Scanner:
    """Looks through texts. `hook` is a slower detector, such as an adapter: text in, (kind, text) pairs out."""

    def __init__(self, detection: Detection, hook: Hook | None = None) -> None:
        self._settings, self._hook = detection, hook
        every: dict[str, Finder] = {
            "key": finders.keys,
            "email": finders.emails,
            "iban": numbers.ibans,
            "card": numbers.cards,
            "national_id": numbers.national_ids,
            "document": numbers.documents,
            "phone": partial(finders.phones, regions=detection.regions),
            "ip": finders.addresses,
        }
        if detection.terms:
            every["term"] = finders.Terms(detection.terms)
        self._finders = [(kind, find) for kind, find in every.items() if kind in detection.kinds]
        # Every other kind needs three digits at least.
        self._wordy = [(kind, find) for kind, find in self._finders if kind in ("key", "email", "ip", "term")]
        self._read = (0, 0.0, 0.0)  # a thread, when its clock was read, and what that said
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "whit-detector") if hook else None
        if "phone" in detection.kinds:
            finders.warm(detection.regions)

    @property
    def slow(self) -> bool:
        """Whether a scan may take longer than an event loop can wait."""
        return self._hook is not None

    def __call__(self, texts: Sequence[str], said: Sequence[str] | None = None) -> Scan:
        """Look through texts that belong together: a number may be cut between them.

        `said` are those that the hook looks at; all of them where that is not given.
        """
        clock = time.perf_counter()
        began = self._worked(clock)
        kinds: set[str] = set()
        found: set[tuple[str, str]] = set()
        named: list[tuple[str, str]] = []
        joined = "\n".join(texts)
        if len(joined) > self._settings.largest:
            return Scan(failed=f"it is too large to be looked through ({len(joined):,} characters)")
        try:
            written = View(joined)
            for view in self._views(written):
                new = set(self._look(view)) - found
                found |= new
                if view is not written and not all(part in joined for _, part in new):
                    found.update(self._look(written))  # as written, so that it can be masked
                # Its own work counts, so that a busy machine makes nothing suspicious; that clock is the dearer one.
                limit = self._settings.timeout
                if time.perf_counter() - clock > limit and time.thread_time() - began > limit:
                    kinds = {kind for kind, _ in found}
                    return Scan(frozenset(kinds), tuple(found), "looking through it took too long")
            kinds = {kind for kind, _ in found}
            if normalise.opaque(written):
                return Scan(frozenset(kinds), tuple(found), "a part of it is encoded and could not be looked at")
            for kind, text in self._ask(joined if said is None else "\n".join(said)) if self._hook else ():
                # A part of an address is no name beside it.
                if kind in self._settings.kinds and not any(text in other for _, other in found):
                    kinds.add(kind)
                    named.append((kind, text))
            found.update(named)
        except TimeoutError:
            return Scan(frozenset(kinds), tuple(found), "the detecting adapter took too long")
        except Exception as error:
            return Scan(frozenset(kinds), tuple(found), f"a detector failed ({type(error).__name__})")
        return Scan(frozenset(kinds), tuple(found))

    def _worked(self, clock: float) -> float:
        """What this thread has worked so far, in seconds, or less by a fiftieth of the limit at most.

        The thread's clock takes longer to read than much of what it times, so it is read but now and then.
        """
        thread, at, worked = self._read
        if thread != threading.get_ident() or not 0 <= clock - at < self._settings.timeout / 50:
            worked = time.thread_time()
            self._read = threading.get_ident(), clock, worked
        return worked

    def _look(self, view: View) -> Iterator[tuple[str, str]]:
        for kind, find in self._finders if view.count > 2 else self._wordy:
            for start, stop in find(view):
                yield kind, view.text[start:stop]

    def _views(self, written: View) -> Iterator[View]:
        """The text made plain, and everything that is encoded in it."""
        plain = normalise.plain(written.text)
        view = written if plain == written.text else View(plain, written.known)
        yield view
        size = 0
        for count, decoded in enumerate(normalise.decodings(view)):
            size += len(decoded.text)
            if count >= MOST_DECODINGS or size > 4 * self._settings.largest:
                raise OverflowError("too much is encoded in it")
            yield decoded

    def _ask(self, text: str) -> Sequence[tuple[str, str]]:
        if self._hook is None or self._pool is None:
            return ()
        asked = self._pool.submit(self._hook, text)
        try:
            return asked.result(self._settings.adapter_timeout)
        finally:
            asked.cancel()  # if it has not begun: nobody waits for it any more


def read_adapter_answer(answer: str, text: str) -> list[tuple[str, str]]:
    """What a detecting adapter answered: JSON of types and lists of texts, as in `{"PERSON": ["Rubija"]}`.

    Raises `ValueError` for anything else, so that a garbled answer is a scan that failed.
    """
    given = json.loads(answer)
    if not isinstance(given, dict):
        raise ValueError("not a JSON object")
    pairs = []
    for kind, listed in given.items():
        for each in listed if isinstance(listed, list) else [listed]:
            if not isinstance(each, str) or not each:
                raise ValueError("not a list of texts")
            pairs.append((_KINDS.get(kind.upper(), "person"), each))
    return pairs


_KINDS = {
    "PERSON": "person", "NAME": "person", "TITLE": "person", "NRP": "person", "AGE": "person", "PREFIX": "person",
    "ORGANIZATION": "person", "DATE_TIME": "person",
    "GPE": "place", "LOCATION": "place", "ADDRESS": "place", "STREET_ADDRESS": "place", "ZIP_CODE": "place",
    "HEALTH": "health", "DIAGNOSIS": "health", "MEDICATION": "health",
    "CREDIT_CARD": "card", "IBAN_CODE": "iban", "EMAIL_ADDRESS": "email", "PHONE_NUMBER": "phone",
    "US_SSN": "national_id",
    "US_DRIVER_LICENSE": "document", "IP_ADDRESS": "ip",
}  # fmt: skip
