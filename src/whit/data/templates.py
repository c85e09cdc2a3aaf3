"""Prompts: a row's turns, an instruction and some examples, as the text and tokens that a base expects.

Promises the text that transformers' `apply_chat_template` gives for the same turns, and that training and
decoding see the same tokens: the prompt is tokenised by itself, the answer by itself, and the stop token
ends it. Templates run in `whit.data.sandbox`. Knows no tokenizer object, only a function from text to ids.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from whit.data import sandbox
from whit.data.rows import Row, Turn
from whit.errors import DataError

_SYSTEM_MARK = "whitsystemmark"
_USER_MARK = "whitusermark"
_NAMES = {"system": "Context", "user": "Input", "assistant": "Answer", "tool": "Result"}


@dataclass(frozen=True)
class Encoded:
    """A row as tokens: `prompt_ids` are given, `completion_ids` are learned and end with the stop token."""

    row: Row
    prompt_ids: list[int]
    completion_ids: list[int]


class Template:
    """A base's chat template, or the plain form where it has none (`source` None).

    `bos` and `eos` are the texts of those tokens, `special` further ones by the name that the template uses
    (`unk_token`, …). Building one runs nothing; the first rendering does.
    """

    def __init__(
        self,
        source: str | None,
        *,
        bos: str = "",
        eos: str = "",
        special: Mapping[str, str] | None = None,
    ) -> None:
        if source is not None and len(source) > sandbox.MAX_SOURCE:
            raise sandbox.TemplateError(
                f"the chat template has {len(source):,} characters, more than {sandbox.MAX_SOURCE:,}",
                "size",
            )
        self.source = source or None
        self.bos = bos
        self.eos = eos
        self._tokens = {**(special or {}), "bos_token": bos, "eos_token": eos}

    @functools.cached_property
    def takes_system(self) -> bool:
        """Whether a system turn is accepted and reaches the text (Gemma's raises, others drop it)."""
        if self.source is None:
            return True
        turns = [Turn("system", _SYSTEM_MARK), Turn("user", _USER_MARK)]
        answer = sandbox.render(self.source, [self._variables(turns, True)])[0]
        if isinstance(answer, sandbox.TemplateError):
            if answer.kind in ("time", "memory", "size"):
                raise answer
            return False
        return _SYSTEM_MARK in answer

    def render(
        self,
        turns: Iterable[Turn],
        *,
        instruction: str | None = None,
        examples: Sequence[Row] = (),
        completion: str | None = None,
    ) -> str:
        """The text up to where the answer begins, or with the answer when `completion` is given.

        The instruction stands before the first user turn: small bases heed it better there than in a system turn
        (docs/log.md). A row's own system turns stay what they are where the template takes them, else they follow
        the instruction. `examples` come first, as earlier turns. Raises `TemplateError`, a `DataError`, where the
        template refuses the turns or goes beyond its limits.
        """
        answer = self.render_many([tuple(turns)], instruction=instruction, examples=examples, completions=[completion])[
            0
        ]
        if isinstance(answer, sandbox.TemplateError):
            raise answer
        return answer

    def render_many(
        self,
        many: Sequence[Sequence[Turn]],
        *,
        instruction: str | None = None,
        examples: Sequence[Row] = (),
        completions: Sequence[str | None] | None = None,
    ) -> list[str | sandbox.TemplateError]:
        """`render` for many rows at once, with each failure in its row's place."""
        answers = completions if completions is not None else [None] * len(many)
        if self.source is None:
            return [
                self._plain(turns, instruction, examples, answer) for turns, answer in zip(many, answers, strict=True)
            ]
        jobs = []
        for turns, answer in zip(many, answers, strict=True):
            said = self._conversation(turns, instruction, examples)
            if answer is not None:
                said.append(Turn("assistant", answer))
            jobs.append(self._variables(said, answer is None))
        return sandbox.render(self.source, jobs)

    def _conversation(self, turns: Sequence[Turn], instruction: str | None, examples: Sequence[Row]) -> list[Turn]:
        standing = [instruction] if instruction else []
        own = [turn.content for turn in turns if turn.role == "system"]
        said: list[Turn] = []
        for example in examples:
            said += [turn for turn in example.turns if turn.role != "system"]
            said.append(Turn("assistant", example.completion))
        said += [turn for turn in turns if turn.role != "system"]
        before: list[Turn] = []
        if own and self.takes_system:
            before = [Turn("system", "\n\n".join(own))]
        else:
            standing += own
        if not standing:
            return [*before, *said]
        text = "\n\n".join(standing)
        for place, turn in enumerate(said):
            if turn.role == "user":
                said[place] = Turn("user", f"{text}\n\n{turn.content}")
                return [*before, *said]
        return [*before, Turn("user", text), *said]

    def _variables(self, turns: Sequence[Turn], generate: bool) -> dict[str, object]:
        return {
            **self._tokens,
            "messages": [{"role": turn.role, "content": turn.content} for turn in turns],
            "tools": None,
            "documents": None,
            "add_generation_prompt": generate,
        }

    def _plain(
        self, turns: Sequence[Turn], instruction: str | None, examples: Sequence[Row], completion: str | None
    ) -> str:
        # "Answer:" and a line end, not a space: the answer's first token is then the same as in running text
        # and never merges with the prompt's last one.
        blocks = [instruction] if instruction else []
        for example in examples:
            blocks.append(self._block(example.turns) + example.completion)
        blocks.append(self._block(turns))
        text = self.bos + "\n\n".join(blocks)
        return text if completion is None else text + completion + self.eos

    def _block(self, turns: Sequence[Turn]) -> str:
        lines = []
        for turn in turns:
            gap = "\n" if turn.role == "assistant" else " "
            lines.append(f"{_NAMES[turn.role]}:{gap}{turn.content}")
        return "\n".join([*lines, "Answer:\n"])


def encode_rows(
    rows: Sequence[Row],
    template: Template,
    tokenize: Callable[[str], list[int]],
    *,
    stop_id: int,
    instruction: str | None = None,
    examples: Sequence[Row] = (),
    context: int | None = None,
    reserve: int = 0,
) -> list[Encoded]:
    """Tokens of each row: its rendered prompt, and its answer followed by `stop_id`.

    `tokenize` must add no special token of its own and must read those in the text. `context` is the most
    tokens that prompt, answer and `reserve` (room for a longer answer) may have together. Raises `DataError`
    that names the rows which do not fit, or the row whose turns the template refuses.
    """
    texts = template.render_many([row.turns for row in rows], instruction=instruction, examples=examples)
    encoded: list[Encoded] = []
    beyond: list[tuple[Row, int]] = []
    for row, text in zip(rows, texts, strict=True):
        if isinstance(text, sandbox.TemplateError):
            raise sandbox.TemplateError(f"{row.place}: {text}", text.kind)
        item = Encoded(row, list(tokenize(text)), [*tokenize(row.completion), stop_id])
        length = len(item.prompt_ids) + len(item.completion_ids) + reserve
        if context is not None and length > context:
            beyond.append((row, length))
        encoded.append(item)
    if beyond:
        first, length = max(beyond, key=lambda pair: pair[1])
        names = ", ".join(row.name for row, _ in beyond[:10]) + (", …" if len(beyond) > 10 else "")
        raise DataError(
            f"{len(beyond):,} of {len(rows):,} rows are beyond the base's context of {context:,} tokens: "
            f"{names}; the longest is {first.place} with {length:,}. Shorten them, or remove them "
            f"with `whit check --base … --fix`"
        )
    return encoded
