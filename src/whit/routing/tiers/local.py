"""The local tier: whit's own base with adapters, in this process. Costs nothing and sends nothing.

`LocalModel` is all that the gateway needs of a model: turns in, text and token probabilities out. `WhitModel` is
the real one, on `whit.evaluation.decoding`; tests bring their own. One answer is decoded at a time.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from whit.data.rows import Turn
from whit.routing.clearance import Clearance, Cleared, require
from whit.routing.config import Tier
from whit.routing.errors import NotCleared, TierFailed
from whit.routing.request import content_text
from whit.routing.tiers.answer import Ask, End, Piece

_SAMPLE = 0.7  # temperature of a second answer


class LocalModel(Protocol):
    """A model in this process."""

    def generate(
        self, turns: Sequence[Turn], *, adapter: str | None, max_tokens: int, temperature: float, top_p: float,
        seed: int, stop: Sequence[str], on_text: Callable[[str], bool],
    ) -> End:  # fmt: skip
        """Answer, up to one of `stop`; `on_text` is given each piece, and ends it where it says False. Blocking."""
        ...


class Stopped(Exception):
    """Nobody waits for the answer any more."""


class _Enough(Exception):
    """A text came at which the answer ends."""


class LocalRoom:
    """A tier's model and the one thread that runs it; loaded on first use."""

    def __init__(self, tier: Tier, load: Callable[[Tier], LocalModel]) -> None:
        self.tier, self._load = tier, load
        self._model: LocalModel | None = None
        self._pool = ThreadPoolExecutor(1, f"whit-{tier.name}")
        self._lock = threading.Lock()

    def model(self) -> LocalModel:
        """The model, loaded once."""
        with self._lock:
            if self._model is None:
                self._model = self._load(self.tier)
            return self._model

    def run(self, work: Callable[[], None]) -> Any:
        """Run in the tier's thread."""
        return asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def close(self) -> None:
        """No further answers."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class LocalClient:
    """One request's way to a local tier."""

    def __init__(self, room: LocalRoom, clearance: Clearance) -> None:
        self._clearance = require(clearance, room.tier.name)
        self._room, self._tier = room, room.tier

    async def answer(self, cleared: Cleared, ask: Ask) -> AsyncIterator[Piece | End]:
        """Pieces as they are decoded, then one `End`."""
        if type(cleared) is not Cleared or cleared.clearance is not self._clearance:
            raise NotCleared(f"tier {self._tier.name} was asked with another request's clearance")
        request, _ = cleared.request_for(self._tier.name)
        if request.opaque:
            raise TierFailed("unsupported", f"tier {self._tier.name} reads text only", again=False, status=400)
        body = request.body()
        if body.get("tools") and body.get("tool_choice") != "none":
            raise TierFailed("unsupported", f"tier {self._tier.name} calls no tools", again=False, status=400)
        turns = [Turn(_role(each["role"]), content_text(each.get("content"))) for each in body["messages"]]
        pieces: queue.SimpleQueue[Any] = queue.SimpleQueue()
        loop, ready, gone = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

        def tell(item: Any) -> bool:
            pieces.put(item)
            if not gone.is_set():
                loop.call_soon_threadsafe(ready.set)
            return not gone.is_set()

        def work() -> None:
            if gone.is_set():
                return
            try:
                end = self._room.model().generate(
                    turns, adapter=ask.adapter, max_tokens=ask.max_tokens, stop=body.get("stop", ()),
                    temperature=max(body.get("temperature", 0.0), _SAMPLE if ask.sample else 0.0),
                    top_p=body.get("top_p", 1.0), seed=(body.get("seed", 0) + ask.sample) % 2**31, on_text=tell,
                )  # fmt: skip
                tell(end)
            except Stopped:
                pass
            except Exception as error:
                tell(error)

        self._room.run(work)
        try:
            async with asyncio.timeout(min(ask.seconds, self._tier.timeout)):
                while True:
                    await ready.wait()
                    ready.clear()
                    while not pieces.empty():
                        item = pieces.get()
                        if isinstance(item, Exception):
                            raise self._failed(item)
                        if isinstance(item, End):
                            yield item
                            return
                        yield Piece(item)
        except TimeoutError as error:
            raise TierFailed(
                "tier_timeout", f"tier {self._tier.name} took too long", again=False, status=504
            ) from error
        finally:
            gone.set()

    def _failed(self, error: Exception) -> TierFailed:
        from whit.errors import DataError

        if isinstance(error, DataError):
            what = f"tier {self._tier.name} cannot take a request as long as this"
            return TierFailed("context_length_exceeded", what, again=False, status=400)
        return TierFailed("tier_error", f"tier {self._tier.name} failed ({type(error).__name__})", again=False)


class Until:
    """Lets a text through piece by piece until one of `stops` comes, which may be cut anywhere."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._kept = ""
        self.reached = False

    def __call__(self, piece: str) -> str:
        """What is sure after one more piece."""
        text = self._kept + piece
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.reached, self._kept = True, ""
            return text[: min(places)]
        held = max((_held(text, stop) for stop in self._stops), default=0)
        self._kept = text[len(text) - held :]
        return text[: len(text) - held]

    def rest(self) -> str:
        """What was held back, at the end."""
        return "" if self.reached else self._kept


def _held(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


def _role(role: str) -> str:
    return {"developer": "system", "tool": "user"}.get(role, role)


class WhitModel:
    """A base with its adapters, each bound when first asked for."""

    def __init__(self, tier: Tier) -> None:
        from whit.bases import load_base

        self._tier = tier
        self._paths = {"": tier.adapter, **tier.adapters}
        self._bound: dict[str, tuple[Any, str | None]] = {}
        self._base = load_base(tier.model or self._card_base(tier))

    def generate(
        self, turns: Sequence[Turn], *, adapter: str | None, max_tokens: int, temperature: float, top_p: float,
        seed: int, stop: Sequence[str] = (), on_text: Callable[[str], bool],
    ) -> End:  # fmt: skip
        """Decode one answer; its confidence is the geometric mean of its tokens' probabilities."""
        from whit.evaluation.decoding import Decoder, Sampling

        bound, instruction = self._specialist(adapter or "")
        ids = self._base.encode(self._base.template.render(list(turns), instruction=instruction))
        said: list[int] = []
        until, shown = Until(stop), 0

        def heard(_: int, token: int) -> None:
            nonlocal shown
            said.append(token)
            text = self._base.decode(said)
            if not text.endswith("\ufffd"):
                new, shown = until(text[shown:]), len(text)
                if new and not on_text(new):
                    raise Stopped
                if until.reached:
                    raise _Enough

        decoder, sampling = Decoder(self._base, bound), Sampling(temperature, top_p, seed)
        try:
            (found,) = decoder.answers([ids], most=max_tokens, sampling=sampling, on_token=heard)
            if rest := until(self._base.decode(found)[shown:]) + until.rest():
                on_text(rest)
        except _Enough:
            found = said
        mean, least = self._probability(bound, ids, found)
        ended = until.reached or len(found) < max_tokens
        return End("stop" if ended else "length", len(ids), len(found), mean, least)

    def _probability(self, bound: Any, prompt: list[int], answer: list[int]) -> tuple[float | None, float | None]:
        import torch

        from whit.evaluation.decoding import Decoder

        if not answer:
            return None, None
        logs = torch.log_softmax(Decoder(self._base, bound).logits(prompt, answer), -1)
        logs = logs.gather(1, torch.tensor(answer, device=logs.device)[:, None])
        return math.exp(float(logs.mean())), math.exp(float(logs.min()))

    def _specialist(self, name: str) -> tuple[Any, str | None]:
        path = self._paths.get(name)
        if path is None:
            return None, None
        if name not in self._bound:
            from whit.adapters.adapter import Adapter
            from whit.adapters.tunable import bind

            card = _card(path)
            self._bound[name] = (bind(self._base, Adapter.load(path)), (card or {}).get("instruction") or None)
        return self._bound[name]

    @staticmethod
    def _card_base(tier: Tier) -> str:
        return str((_card(tier.adapter or "") or {}).get("base") or "smollm2")


def _card(path: str) -> dict[str, Any] | None:
    import json
    from pathlib import Path

    card = Path(path) / "card.json"
    if not card.is_file():
        return None
    found = json.loads(card.read_text("utf-8"))
    return found if isinstance(found, dict) else None
