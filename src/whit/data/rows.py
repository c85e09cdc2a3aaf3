"""Rows of a data set: who said what, and the answer that is wanted.

Reads the field's usual shapes (`prompt` + `completion`, `messages`, any two columns by name or by a common
alias) into one shape, `Row`. Promises that a row's id does not depend on where the row stands in its file,
and that what cannot be read is one `DataError` that names file, line and column. Knows nothing of models,
tokens or templates.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from whit.data.formats import Record, read_records
from whit.errors import DataError

PROMPT_NAMES = (
    "prompt", "input", "text", "question", "query", "message", "utterance", "sentence", "source",
    "instruction",
)  # fmt: skip
COMPLETION_NAMES = (
    "completion", "output", "response", "label", "answer", "target", "intent", "category", "class",
)  # fmt: skip
CHAT_NAMES = ("messages", "conversations", "conversation")
ID_NAMES = ("id", "_id", "uid")
MAX_ID = 200
_MADE = re.compile(r"row-[0-9a-f]{16}(?:-\d+)?")  # an id made of the row's content

_ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant",
    "tool": "tool",
}  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation; `role` is `system`, `user`, `assistant` or `tool`."""

    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """One example: what comes before the answer, and the answer.

    `id` is the row's own id column, else a hash of its content. `turns` is everything before the answer,
    without the task's instruction. `completion` is the wanted answer, "" only where none was required.
    `extra` holds the remaining columns. `line` counts from 1, None where the file has no lines.
    """

    id: str
    turns: tuple[Turn, ...]
    completion: str
    group: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    line: int | None = None
    source: str | None = None

    @property
    def prompt(self) -> str:
        """The last user turn's content, "" where there is none."""
        return next((turn.content for turn in reversed(self.turns) if turn.role == "user"), "")

    @property
    def place(self) -> str:
        """Where the row stands, for messages: file, line and id."""
        line = f", line {self.line}" if self.line is not None else ""
        return f"{self.source}{line} (id {self.id})" if self.source else f"id {self.id}"

    @property
    def name(self) -> str:
        """What names the row in a list: its id, and with its line where it has none of its own."""
        return f"line {self.line} ({self.id})" if self.line is not None and _MADE.fullmatch(self.id) else self.id


@dataclass(frozen=True)
class Reading:
    """Rows, the columns they were read from, and what was assumed (to be told to the user)."""

    rows: tuple[Row, ...]
    prompt_column: str
    completion_column: str | None
    notes: tuple[str, ...] = ()


def read_rows(
    path: str | Path,
    *,
    prompt_column: str | None = None,
    completion_column: str | None = None,
    group_column: str | None = None,
    limit: int | None = None,
    require_completion: bool = True,
) -> list[Row]:
    """Read the rows of `path`; see `read`, which also tells what it assumed."""
    reading = read(
        path,
        prompt_column=prompt_column,
        completion_column=completion_column,
        group_column=group_column,
        limit=limit,
        require_completion=require_completion,
    )
    return list(reading.rows)


def read(
    path: str | Path,
    *,
    prompt_column: str | None = None,
    completion_column: str | None = None,
    group_column: str | None = None,
    limit: int | None = None,
    require_completion: bool = True,
) -> Reading:
    """Read JSON lines, a JSON array, CSV, TSV, Parquet or a `datasets` folder.

    Columns that are not named are looked for under their common names, and `Reading.notes` says which were
    taken. With `require_completion=False` a row may lack its answer or its text, so that `whit check` can
    report it and `whit run` can answer it. Raises `DataError`, also for no rows at all and for an id twice.
    """
    path = Path(path)
    rows: list[Row] = []
    columns: _Columns | None = None
    for record in read_records(path, limit):
        if columns is None:
            columns = _Columns.find(path, record, prompt_column, completion_column, group_column, require_completion)
        rows.append(columns.row(record))
    if columns is None:
        raise DataError(f"{path}: no rows; whit needs at least one under the header or on the first line")
    return Reading(tuple(_with_ids(path, rows)), columns.prompt, columns.completion, tuple(columns.notes()))


def content_key(turns: Iterable[Turn]) -> str:
    """The text of `turns` without differences of case and spacing: equal keys are the same input."""
    return "\n".join(f"{turn.role}: {' '.join(turn.content.casefold().split())}" for turn in turns)


def said(turns: Iterable[Turn]) -> str:
    """The text of `turns` but for system turns, which stand before every row and make all rows alike."""
    return "\n".join(turn.content for turn in turns if turn.role != "system")


def digest(*parts: str) -> str:
    """A short, stable hash (64 bits, hex) of some texts in order."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        encoded = part.encode()
        state.update(len(encoded).to_bytes(8, "little"))
        state.update(encoded)
    return state.hexdigest()


@dataclass(frozen=True)
class _Columns:
    path: Path
    prompt: str
    completion: str | None
    chat: bool
    instruction: str | None
    system: str | None
    group: str | None
    id: str
    guessed: tuple[str, ...]
    required: bool

    @classmethod
    def find(
        cls,
        path: Path,
        record: Record,
        prompt: str | None,
        completion: str | None,
        group: str | None,
        required: bool,
    ) -> _Columns:
        names = list(record.values)
        for name, option in ((prompt, "prompt"), (completion, "completion"), (group, "group")):
            if name is not None and name not in names:
                raise DataError(f"{path}: no {option} column {name!r}{_offer(name, names)}")
        lower = {name.lower(): name for name in reversed(names)}
        chat = next((lower[name] for name in CHAT_NAMES if name in lower), None)
        given = prompt is not None
        if prompt is None and completion is None and chat and not {"prompt", "completion"} <= lower.keys():
            prompt = chat
        guessed: list[str] = []
        if prompt is None:
            prompt = _first(PROMPT_NAMES, lower, without=completion)
            if prompt is None:
                raise DataError(
                    f"{path}, {record.place}: no column that looks like a prompt{_offer(None, names)}; "
                    "name it with --prompt-column"
                )
            if prompt != "prompt":
                guessed.append(f"the prompt is column {prompt!r}")
        is_chat = prompt in (*CHAT_NAMES, chat) or _is_chat(record.values.get(prompt))
        if completion is None:
            completion = _first(COMPLETION_NAMES, lower, without=prompt)
            if prompt == chat and is_chat and not given:
                completion = None  # the last assistant turn is the answer
            elif completion is None and required:
                raise DataError(
                    f"{path}, {record.place}: no column that looks like an answer{_offer(None, names)}; "
                    "name it with --completion-column"
                )
            elif completion not in (None, "completion"):
                guessed.append(f"the completion is column {completion!r}")
        if prompt == completion:
            raise DataError(f"{path}: prompt and completion are the same column {prompt!r}; name two")
        instruction = lower.get("instruction")
        if instruction in (prompt, completion) or is_chat:
            instruction = None
        if instruction:
            guessed.append(f"column {instruction!r} stands before each prompt")
        system = lower.get("system")
        system = None if system in (prompt, completion) or is_chat else system
        identity = next((lower[name] for name in ID_NAMES if name in lower), "id")
        return cls(path, prompt, completion, is_chat, instruction, system, group, identity, tuple(guessed), required)

    def notes(self) -> list[str]:
        return [f"{self.path.name}: {note}" for note in self.guessed]

    def row(self, record: Record) -> Row:
        turns, answer = self._turns(record)
        if self.completion is not None:
            answer = self._answer(record, self.completion)
        if self.required:
            if not answer.strip():
                self._fail(record, "the answer is empty; fill it in, or remove such rows with `whit check --fix`")
            if not any(turn.content.strip() for turn in turns):
                self._fail(record, "the prompt is empty; fill it in, or remove such rows with `whit check --fix`")
        group = self._text(record, self.group, "group") if self.group else None
        used = {self.prompt, self.completion, self.instruction, self.system, self.group, self.id}
        extra = MappingProxyType({key: value for key, value in record.values.items() if key not in used})
        identity = self._identity(record)
        return Row(identity, turns, answer, group or None, extra, record.line, str(self.path))

    def _fail(self, record: Record, what: str) -> NoReturn:
        raise DataError(f"{self.path}, {record.place}: {what}")

    def _value(self, record: Record, name: str) -> Any:
        if name not in record.values:
            if not self.required:
                return None
            self._fail(record, f"no column {name!r}{_offer(name, list(record.values))}")
        return record.values[name]

    def _text(self, record: Record, name: str, what: str) -> str:
        value = self._value(record, name)
        if value is None:
            if self.required and what != "group":
                self._fail(record, f"column {name!r} is null; it must hold the {what}")
            return ""
        if isinstance(value, bool):
            return json.dumps(value)
        if isinstance(value, int | float):
            return str(value)
        if not isinstance(value, str):
            self._fail(record, f"column {name!r} must be a text, not {_kind(value)}; it holds the {what}")
        return self._sound(record, value, name)

    def _sound(self, record: Record, text: str, name: str) -> str:
        if "\0" in text:
            self._fail(record, f"column {name!r} holds a NUL character; remove it")
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            self._fail(record, f"column {name!r} holds half of a surrogate pair (\\ud800–\\udfff)")
        return text

    def _answer(self, record: Record, name: str) -> str:
        value = record.values.get(name)
        if _is_chat(value):
            turns = self._chat(record, name, value)
            if len(turns) != 1 or turns[0].role != "assistant":
                self._fail(record, f"column {name!r} must hold one assistant turn")
            return turns[0].content
        if isinstance(value, dict | list):
            try:
                return self._sound(record, json.dumps(value, ensure_ascii=False), name)
            except (TypeError, ValueError, RecursionError) as error:
                self._fail(record, f"column {name!r} cannot be written as JSON: {error}")
        return self._text(record, name, "answer")

    def _turns(self, record: Record) -> tuple[tuple[Turn, ...], str]:
        value = self._value(record, self.prompt)
        if not self.chat:
            content = self._text(record, self.prompt, "prompt")
            if self.instruction:
                before = self._text(record, self.instruction, "instruction")
                content = f"{before}\n\n{content}" if before and content else before or content
            turns = [Turn("user", content)]
            if self.system and (standing := self._text(record, self.system, "system turn")):
                turns.insert(0, Turn("system", standing))
            return tuple(turns), ""
        turns = self._chat(record, self.prompt, value)
        if self.completion is not None:
            return tuple(turns), ""
        if turns and turns[-1].role == "assistant":
            return tuple(turns[:-1]), turns[-1].content
        if self.required:
            self._fail(record, f"the last turn of {self.prompt!r} must be the assistant's: it is the answer")
        return tuple(turns), ""

    def _chat(self, record: Record, name: str, value: Any) -> list[Turn]:
        if value is None and not self.required:
            return []
        if not isinstance(value, list) or not value:
            self._fail(record, f"column {name!r} must be a list of turns, not {_kind(value)}")
        turns = []
        for count, item in enumerate(value, 1):
            here = f"turn {count} of {name!r}"
            if not isinstance(item, dict):
                self._fail(record, f"{here} must be an object with role and content, not {_kind(item)}")
            role = item.get("role", item.get("from"))
            content = item.get("content", item.get("value"))
            if not isinstance(role, str) or role.lower() not in _ROLES:
                self._fail(record, f"{here} has the role {role!r}, not system, user, assistant or tool")
            if isinstance(content, list) and all(
                isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
            ):
                content = "".join(part["text"] for part in content)
            if content is None and not self.required:
                content = ""
            if not isinstance(content, str):
                self._fail(record, f"{here} must have a text as its content, not {_kind(content)}")
            turns.append(Turn(_ROLES[role.lower()], self._sound(record, content, name)))
        return turns

    def _identity(self, record: Record) -> str:
        value = record.values.get(self.id)
        if value is None or value == "":
            return ""
        if isinstance(value, bool) or not isinstance(value, str | int):
            self._fail(record, f"the id must be a text or a whole number, not {_kind(value)}")
        text = str(value).strip()
        if not text.isprintable() or not 0 < len(text) <= MAX_ID:
            self._fail(record, f"the id {text[:40]!r} must be 1 to {MAX_ID} printable characters")
        return text


def _with_ids(path: Path, rows: Sequence[Row]) -> list[Row]:
    own = Counter(row.id for row in rows if row.id)
    twice = [identity for identity, count in own.items() if count > 1]
    if twice:
        lines = [str(row.line) for row in rows if row.id == twice[0] and row.line is not None]
        where = f" (lines {', '.join(lines[:4])}{', …' if len(lines) > 4 else ''})" if lines else ""
        more = f" and {len(twice) - 1:,} other ids" if len(twice) > 1 else ""
        raise DataError(f"{path}: the id {twice[0]!r}{where}{more} is on several rows; make each unique")
    seen: Counter[str] = Counter()
    named = []
    for row in rows:
        if not row.id:
            key = "row-" + digest(*(part for t in row.turns for part in (t.role, t.content)), row.completion)
            # Rows of equal content are told apart by a count, which says nothing of their order in the file.
            while True:
                seen[key] += 1
                identity = key if seen[key] == 1 else f"{key}-{seen[key]}"
                if identity not in own:
                    break
            row = replace(row, id=identity)
        named.append(row)
    return named


def _first(names: Sequence[str], lower: Mapping[str, str], without: str | None) -> str | None:
    return next((lower[name] for name in names if name in lower and lower[name] != without), None)


def _offer(name: str | None, names: Sequence[str]) -> str:
    listed = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    near = get_close_matches(name, names, n=1) if name else []
    guess = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{guess}; the columns are: {listed or 'none'}"


def _is_chat(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and ("role" in item or "from" in item) for item in value)
    )


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "true or false", str: "a text", int: "a number", float: "a number", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, dict) else type(value).__name__)
