"""`whit run` and `whit chat`: answers from an adapter, or from a bare base.

`run` answers one prompt, or every line of standard input in its order. The answer is all that goes to
stdout.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.data.rows import Turn
from whit.errors import AdapterError, DataError, UsageError
from whit.settings import ChatSettings, RunSettings
from whit.talk import Talk
from whit.verbs import common

if TYPE_CHECKING:
    from whit.bases import Base
    from whit.evaluation.card import Card


@dataclass(frozen=True)
class RunResult:
    """Answers in the order of their prompts."""

    prompts: tuple[str, ...]
    answers: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """`answers`: a list of `prompt` and `answer`."""
        pairs = zip(self.prompts, self.answers, strict=True)
        return {"contract": common.CONTRACT, "answers": [{"prompt": p, "answer": a} for p, a in pairs]}

    def to_text(self) -> str:
        """The answers, a line each."""
        return "\n".join(self.answers)


class Speaker:
    """A base, with an adapter or bare, that answers conversations."""

    def __init__(self, base: Base, bound: Any, instruction: str | None) -> None:
        self.base, self.bound, self.instruction = base, bound, instruction

    def encode(self, turns: Sequence[Turn]) -> list[int]:
        """The prompt's tokens. Raises `DataError` where they leave no room for an answer."""
        ids = self.base.encode(self.base.template.render(turns, instruction=self.instruction))
        if len(ids) >= self.base.context:
            raise DataError(f"the prompt has {len(ids)} tokens; {self.base.name} takes {self.base.context - 1} at most")
        return ids


@contextlib.contextmanager
def speaker(settings: RunSettings | ChatSettings, talk: Talk, *, bare: bool = False) -> Iterator[Speaker]:
    """Open what `settings.adapter` names: an adapter with its base, or a base alone."""
    name = settings.adapter
    common.require_finite(settings)
    load = functools.partial(
        common.open_base, dtype=settings.dtype, device=settings.device, threads=settings.threads, talk=talk
    )
    if not _is_adapter(name):
        yield Speaker(load(name), None, settings.instruction)
        return
    special = common.open_specialist(name)
    base = load(special.base_name(settings.base))
    instruction = settings.instruction or special.instruction
    if bare:
        yield Speaker(base, None, instruction)
        return
    with common.bound_to(base, special.adapter) as bound:
        yield Speaker(base, bound, instruction)


def run(settings: RunSettings, *, talk: Talk | None = None, lines: Sequence[str] | None = None) -> RunResult:
    """Answer one prompt, or `lines` (standard input by default, which `-` means too)."""
    talk = talk or Talk(quiet=True)
    if settings.prompt is not None and settings.prompt != "-":
        prompts = [settings.prompt]
    else:
        if lines is None and sys.stdin.isatty():
            raise UsageError('nothing to answer: give a prompt, whit run ADAPTER "…", or pipe lines into it')
        prompts = [line.rstrip("\n") for line in (lines if lines is not None else sys.stdin)]
    if not prompts:
        return RunResult((), ())
    if settings.engine == "wasm":
        return _run_in_engine(settings, prompts)
    from whit.evaluation.decoding import Decoder, Sampling

    sampling = Sampling(settings.temperature, settings.top_p, settings.seed)
    with speaker(settings, talk, bare=settings.bare) as who:
        ids = [who.encode([Turn("user", prompt)]) for prompt in prompts]
        found = Decoder(who.base, who.bound).answers(ids, most=settings.max_tokens, sampling=sampling)
        answers = tuple(who.base.decode(answer).strip() for answer in found)
    return RunResult(tuple(prompts), answers)


def _run_in_engine(settings: RunSettings, prompts: list[str]) -> RunResult:
    """The same through the engine: neither torch nor transformers is loaded."""
    from whit.engine.speaker import Speaker as InEngine

    common.require_finite(settings)
    if settings.device != "cpu":
        raise UsageError(f"--engine wasm computes on the CPU; leave out --device {settings.device}")
    name, instruction = settings.adapter, settings.instruction
    if _is_adapter(name):
        card = _card_beside(name)
        if card is None and not settings.base:
            raise AdapterError("this adapter comes without a card, so its base must be named: add --base NAME")
        instruction = instruction or (card.instruction if card else None)
        base = settings.base or (card.base if card else "")
        who = InEngine(base, None if settings.bare else name)
    else:
        who = InEngine(name)
    found = who.answers(
        prompts,
        instruction=instruction or None,
        most=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
    )
    return RunResult(tuple(prompts), tuple(answer.strip() for answer in found))


def _card_beside(name: str) -> Card | None:
    from whit.evaluation.card import load_card

    path = Path(name)
    folder = path if path.is_dir() else path.parent
    card = folder / common.CARD_NAME
    return load_card(card) if not name.startswith("whit1_") and card.is_file() else None


def chat(settings: ChatSettings, *, talk: Talk | None = None) -> None:
    """Talk with an adapter, turn by turn, on the terminal; /new forgets, /quit or the end of input ends."""
    from whit.evaluation.decoding import Decoder, Sampling

    talk = talk or Talk()
    with speaker(settings, talk) as who:
        talk.say("Type a message; /new starts afresh, /quit ends.")
        turns: list[Turn] = []
        count = 0
        while (line := _ask()) is not None:
            if line == "/new":
                turns = []
                continue
            if not line:
                continue
            turns.append(Turn("user", line))
            prompt = who.encode(turns)
            writer = _Writer(who.base)
            sampling = Sampling(settings.temperature, settings.top_p, settings.seed + count)
            Decoder(who.base, who.bound).answers([prompt], most=settings.max_tokens, sampling=sampling, on_token=writer)
            print(flush=True)
            turns.append(Turn("assistant", writer.said))
            count += 1


class _Writer:
    """Prints an answer as it comes, holding back characters whose bytes are not all there."""

    def __init__(self, base: Base) -> None:
        self._base, self._ids, self.said = base, [], ""  # type: ignore[var-annotated]

    def __call__(self, prompt: int, token: int) -> None:
        self._ids.append(token)
        whole = self._base.decode(self._ids)
        if not whole.endswith("\ufffd"):
            print(whole[len(self.said) :], end="", flush=True)
            self.said = whole


def _ask() -> str | None:
    """A line of input; None at its end, or for /quit."""
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return None if not line or line.strip() == "/quit" else line.strip()


def _is_adapter(name: str) -> bool:
    from whit.adapters.compact import TEXT_PREFIX
    from whit.bases.names import resolve
    from whit.bases.quantize import split_name
    from whit.errors import BaseError

    if name.startswith(TEXT_PREFIX) or common.in_store(name):
        return True
    path = Path(name)
    try:
        if path.is_file():
            return path.suffix != ".gguf"
        if path.is_dir():
            return not (path / "config.json").is_file()
    except OSError:
        return True  # a name that no file can have: told when it is opened
    try:
        reference = resolve(split_name(name)[0])
        return reference.known is None and not reference.present
    except BaseError:
        return True
