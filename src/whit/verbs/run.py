"""`whit run` and `whit chat`: answers from an adapter, or from a bare base.

`run` answers one prompt, or every line of standard input in its order and as it comes: a line in, a line out. The
answer is all that goes to stdout.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from whit.data.rows import Turn
from whit.errors import AdapterError, DataError, UsageError
from whit.settings import ChatSettings, RunSettings
from whit.talk import Talk
from whit.verbs import common
from whit.verbs.lines import batches

if TYPE_CHECKING:
    from whit.bases import Base
    from whit.evaluation.card import Card


Answer: TypeAlias = Callable[[Sequence[str], int], list["str | DataError"]]
_BREAKS = str.maketrans({"\n": "\\n", "\r": "\\r"})


@dataclass(frozen=True)
class RunResult:
    """Answers in the order of their prompts; `refused` says by place why there is none, and that answer is ""."""

    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    refused: Mapping[int, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """`answers`: a list of `prompt` and `answer`; one that was refused has `null`, and `error`."""
        pairs = enumerate(zip(self.prompts, self.answers, strict=True))
        found = [
            {"prompt": prompt, "answer": None, "error": self.refused[at]}
            if at in self.refused
            else {"prompt": prompt, "answer": answer}
            for at, (prompt, answer) in pairs
        ]
        return {"contract": common.CONTRACT, "answers": found}

    def to_text(self) -> str:
        """The answers, a line each."""
        return "\n".join(self.answers)

    @property
    def exit_code(self) -> int:
        """That of bad data where a line was refused."""
        return DataError.exit_code if self.refused else 0


class Stream:
    """Answers to lines as they come; a line that leaves no room for an answer is told, and the others go on."""

    def __init__(self, settings: RunSettings, lines: Iterable[Sequence[str]], talk: Talk) -> None:
        self._settings, self._lines, self._talk = settings, lines, talk
        self._refused = False

    def each(self) -> Iterator[tuple[str, str | DataError]]:
        """Each prompt with its answer, or with why there is none."""
        number = 0
        with _answering(self._settings, self._talk) as answer:
            for prompts in self._lines:
                for prompt, found in zip(prompts, answer(prompts, number), strict=True):
                    number += 1
                    if isinstance(found, DataError):
                        self._refused = True
                        self._talk.say(f"line {number}: {found}; it has no answer")
                    yield prompt, found

    def pieces(self) -> Iterator[str]:
        """A line for each line, as soon as it is there: line breaks are spelt out, and no answer is an empty line."""
        for _, found in self.each():
            yield "" if isinstance(found, DataError) else found.translate(_BREAKS)

    def result(self) -> RunResult:
        """All of them, once the last line has come."""
        every = list(self.each())
        refused = {at: str(found) for at, (_, found) in enumerate(every) if isinstance(found, DataError)}
        answers = tuple("" if isinstance(found, DataError) else found for _, found in every)
        return RunResult(tuple(prompt for prompt, _ in every), answers, refused)

    def to_json(self) -> dict[str, Any]:
        """As `RunResult.to_json`."""
        return self.result().to_json()

    @property
    def exit_code(self) -> int:
        """That of bad data where a line was refused."""
        return DataError.exit_code if self._refused else 0


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


def command(settings: RunSettings, *, talk: Talk | None = None) -> RunResult | Stream:
    """One answer, or a stream of them to the lines of standard input (no prompt, or `-`)."""
    talk = talk or Talk(quiet=True)
    if settings.prompt is not None and settings.prompt != "-":
        return run(settings, talk=talk)
    if sys.stdin.isatty():
        raise UsageError('nothing to answer: give a prompt, whit run ADAPTER "…", or pipe lines into it')
    return Stream(settings, batches(sys.stdin), talk)


def run(settings: RunSettings, *, talk: Talk | None = None, lines: Sequence[str] | None = None) -> RunResult:
    """Answer one prompt, or `lines` (standard input by default, which `-` means too).

    Raises `DataError` for a prompt that leaves no room for an answer; among lines it is in `refused`.
    """
    talk = talk or Talk(quiet=True)
    if lines is not None:
        return Stream(settings, batches(lines), talk).result() if lines else RunResult((), ())
    if settings.prompt is None or settings.prompt == "-":
        found = command(settings, talk=talk)
        assert isinstance(found, Stream)
        return found.result()
    with _answering(settings, talk) as answer:
        (only,) = answer([settings.prompt], 0)
    if isinstance(only, DataError):
        raise only
    return RunResult((settings.prompt,), (only,))


@contextlib.contextmanager
def _answering(settings: RunSettings, talk: Talk) -> Iterator[Answer]:
    """What answers prompts, the first of which is the one of that number: each draws as it would in one batch."""
    if settings.engine == "wasm":
        yield _in_engine(settings)
        return
    from whit.evaluation.decoding import Decoder, Sampling

    with speaker(settings, talk, bare=settings.bare) as who:
        decoder = Decoder(who.base, who.bound)

        def answer(prompts: Sequence[str], number: int) -> list[str | DataError]:
            found: list[str | DataError] = []
            ids = []
            for prompt in prompts:
                try:
                    ids.append(who.encode([Turn("user", prompt)]))
                    found.append("")
                except DataError as error:
                    # A place of its own all the same, so that others draw as if it were not refused.
                    ids.append([])
                    found.append(error)
            asked = [at for at, each in enumerate(ids) if each]
            sampling = Sampling(
                settings.temperature, settings.top_p, settings.seed, places=tuple(number + at for at in asked)
            )
            said = decoder.answers([ids[at] for at in asked], most=settings.max_tokens, sampling=sampling)
            for at, tokens in zip(asked, said, strict=True):
                found[at] = who.base.decode(tokens).strip()
            return found

        yield answer


def _in_engine(settings: RunSettings) -> Answer:
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

    def some(prompts: Sequence[str], number: int) -> list[str]:
        found = who.answers(
            prompts,
            instruction=instruction or None,
            most=settings.max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed + number,
        )
        return [answer.strip() for answer in found]

    def answer(prompts: Sequence[str], number: int) -> list[str | DataError]:
        try:
            return list(some(prompts, number))
        except DataError:  # one of them; which, each by itself says
            found: list[str | DataError] = []
            for at, prompt in enumerate(prompts):
                try:
                    found += some([prompt], number + at)
                except DataError as error:
                    found.append(error)
            return found

    return answer


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
