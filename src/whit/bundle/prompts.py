"""A base's chat template as a few fixed texts, so that a page can write prompts without running a program.

A chat template is a Jinja program; a page neither has Jinja nor should run programs that came with a model. What
stands between the turns is found by rendering turns with known words, and the result is then compared with
the template itself on conversations of other shapes. Promises that a form which was given agrees with the template
there; a template that no such form describes is refused. Knows nothing of pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from whit.data.rows import Turn
from whit.data.templates import Template
from whit.errors import BaseError

_A, _B, _C, _I = "whitfirstmark", "whitanswermark", "whitsecondmark", "whitinstructionmark"
_PROBES = ("plain", "two\nlines", "  space around \n", "{{ braces }} {% x %} <b>", "ünïcode 字 🙂", '"quoted" \\ back')


@dataclass(frozen=True)
class PromptForm:
    """What stands before the first input, before an answer, and between an answer and the next input.

    With an instruction a prompt begins `instruction_before`, instruction, `instruction_after` instead of `first`;
    where the template takes none (`takes_instruction` false) it stands before the first input and an empty line.
    `trims` says that white space around a turn is dropped.
    """

    first: str
    before_answer: str
    after_answer: str
    instruction_before: str
    instruction_after: str
    takes_instruction: bool
    trims: bool

    def render(self, turns: Sequence[str], instruction: str = "") -> str:
        """The prompt of inputs and answers in turn, the last being an input."""
        said = [turn.strip() if self.trims else turn for turn in turns]
        begin = self.first
        if instruction and self.takes_instruction:
            told = instruction.strip() if self.trims else instruction
            begin = self.instruction_before + told + self.instruction_after
        elif instruction:
            joined = f"{instruction}\n\n{turns[0]}"
            said[0] = joined.strip() if self.trims else joined
        parts = [begin]
        for place, text in enumerate(said):
            parts += [text, self.after_answer if place % 2 else self.before_answer]
        return "".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def prompt_form(template: Template, name: str) -> PromptForm:
    """The form of a base's template. Raises `BaseError` where no form describes it, `DataError` where it fails."""
    takes = template.source is None  # a chat template gets it inside the first user turn
    bare = _cut(_render(template, [_A, _B, _C]), name, _A, _B, _C)
    before, after = bare[0], ""
    if takes:
        told = _cut(_render(template, [_A], _I), name, _I, _A)
        before, after = told[0], told[1]
    form = PromptForm(bare[0], bare[1], bare[2], before, after, takes, _trims(template))
    for probe in _PROBES:
        for turns in ([probe], [probe, "yes", "more"], ["a", probe, "b", "c", "d"]):
            for instruction in ("", "Do as told.", "Say\nthis"):
                if form.render(turns, instruction) != _render(template, turns, instruction):
                    raise BaseError(
                        f"{name}: its chat template treats turns differently by their place or content, which a "
                        "page cannot follow; bundle another base"
                    )
    return form


def _render(template: Template, turns: Sequence[str], instruction: str = "") -> str:
    said = [Turn("assistant" if place % 2 else "user", text) for place, text in enumerate(turns)]
    return template.render(said, instruction=instruction or None)


def _cut(text: str, name: str, *marks: str) -> list[str]:
    pieces = []
    for mark in marks:
        piece, found, text = text.partition(mark)
        if not found:
            raise BaseError(f"{name}: its chat template drops what is said; bundle another base")
        pieces.append(piece)
    return [*pieces, text]


def _trims(template: Template) -> bool:
    return f" {_A} " not in _render(template, [f" {_A} "])
