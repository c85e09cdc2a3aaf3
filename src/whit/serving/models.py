"""What a request's `model` means: the base, an adapter of the store, or an adapter brought along.

`smollm2` is the base; `smollm2:alice`, `smollm2:alice@3` and `smollm2:alice@prod` are looked up in the store at every
request, so that a change is seen by the next one; `smollm2:whit1_…`, or the text form alone, is the adapter itself.
An adapter that the caller has no right to is answered exactly as one that does not exist. Knows nothing of HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass

from whit.adapters.compact import TEXT_PREFIX, from_text
from whit.errors import AdapterError, UsageError
from whit.serving.auth import Caller
from whit.serving.names import parse_reference
from whit.serving.pool import Pool, Served
from whit.serving.schema import BadRequest
from whit.serving.store import NotFound, Store

MAX_INLINE = 16_384  # characters of a text form


@dataclass(frozen=True)
class Model:
    """What answers: `name` is fit for logs (an inline adapter is not written out)."""

    name: str
    adapter: Served | None


class Models:
    """Models of one base; `store` is None where there is none."""

    def __init__(self, base: str, pool: Pool, store: Store | None) -> None:
        self.base, self.pool, self.store = base, pool, store

    def find(self, model: str, caller: Caller) -> Model:
        """The model of that name. Raises `BadRequest`; may wait for the store, so not for an event loop."""
        if model == self.base:
            return Model(self.base, None)
        name = model if model.startswith(TEXT_PREFIX) else model.removeprefix(f"{self.base}:")
        if name == model and not model.startswith(TEXT_PREFIX):
            raise _unknown(model)
        if name.startswith(TEXT_PREFIX):
            return self._inline(name, caller)
        return self._stored(model, name, caller)

    def listing(self, caller: Caller, *, after: str = "", most: int = 1000) -> list[tuple[str, float]]:
        """Names and times of the models that a caller may use, in order; the base first where `after` is empty."""
        found: list[tuple[str, float]] = [] if after else [(self.base, 0.0)]
        at = after.removeprefix(f"{self.base}:")
        while self.store is not None and len(found) < most:
            page = self.store.listing(after=at, limit=most)
            mine = [each for each in page if each.kind != "basis" and caller.rights.may_use(each.name)]
            found += [(f"{self.base}:{each.name}", each.at) for each in mine]
            if len(page) < most:
                break
            at = page[-1].name
        return found[:most]

    def _inline(self, text: str, caller: Caller) -> Model:
        if not caller.rights.inline:
            raise _unknown(text)
        if len(text) > MAX_INLINE:
            raise BadRequest(f"an inline adapter has at most {MAX_INLINE:,} characters; put it into the store", "model")
        try:
            return Model(f"{self.base}:(inline)", self.pool.ready(from_text(text)))
        except (AdapterError, UsageError) as error:
            raise BadRequest(f"the inline adapter cannot be used: {error}", "model", code="bad_adapter") from error

    def _stored(self, model: str, name: str, caller: Caller) -> Model:
        try:
            asked = parse_reference(name)
        except UsageError:
            raise _unknown(model) from None
        if self.store is None or not caller.rights.may_use(asked.name):
            raise _unknown(model)
        try:
            held = self.store.find(name)
        except NotFound:
            raise _unknown(model) from None
        try:
            return Model(f"{self.base}:{held.name}@{held.version}", self.pool.ready(held.payload, held.digest))
        except (AdapterError, UsageError) as error:
            raise BadRequest(
                f"{held.name}@{held.version} cannot be used: {error}", "model", code="bad_adapter"
            ) from error


def _unknown(model: str) -> BadRequest:
    return BadRequest(
        f"there is no model {model[:200]!r}, or you may not use it", "model", status=404, code="model_not_found"
    )
