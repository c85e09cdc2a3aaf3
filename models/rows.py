"""The rows of the instruction stage: from three task sets' training splits, the corpus, and by program.

Promises the same rows for the same corpus, tasks and seed, and that sst2, banking77, clinc150 and sms_spam are never
opened. A row is a list of (role, text) turns; every assistant turn is learned. Knows nothing of tokens.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from models.corpus import load_source
from whit.errors import DataError

Turns = list[tuple[str, str]]
ALLOWED_TASKS = ("snips", "svamp", "pii")
WORD = re.compile(r"[A-Za-z][a-z']+")
DOMAINS = {
    "restaurant": ("restaurant", "place to eat", "table for", "dine"),
    "flight": ("flight", "fly to", "plane ticket"),
    "hotel": ("hotel", "room", "place to stay"),
    "movie": ("movie", "film", "cinema"),
    "music": ("song", "music", "album"),
    "weather": ("weather", "rain", "temperature"),
    "bus": ("bus", "coach"),
    "doctor": ("doctor", "dentist", "dermatologist"),
    "bank": ("balance", "transfer", "bank account"),
    "rental_car": ("rental car", "rent a car"),
    "event": ("concert", "event", "game tickets"),
}


def _task(folder: Path, name: str) -> list[dict[str, object]]:
    path = folder / name / "train.jsonl"
    if name not in ALLOWED_TASKS or not path.is_file():
        raise DataError(f"no {path}; give --tasks the folder that holds {', '.join(ALLOWED_TASKS)}")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _ask(instruction: str, text: str, answer: str) -> Turns:
    return [("user", f"{instruction}\n\n{text}"), ("assistant", answer)]


def _snips(rows: list[dict[str, object]], rng: random.Random) -> Iterator[Turns]:
    kinds = sorted({json.loads(str(row["completion"]))["intent"] for row in rows})
    for row in rows:
        prompt, answer = str(row["prompt"]), str(row["completion"])
        found = json.loads(answer)
        choice = rng.random()
        slots = [key for key in found if key != "intent"]
        if choice < 0.6:
            asked = ("Turn the command into JSON.", "Answer with JSON: the intent and its slots.", "Command to JSON.")
            yield _ask(rng.choice(asked), prompt, answer)
        elif choice < 0.8 or not slots:
            asked = ("Name the intent.", f"Which is it: {', '.join(rng.sample(kinds, len(kinds)))}?", "What is wanted?")
            yield _ask(rng.choice(asked), prompt, found["intent"])
        else:
            slot = rng.choice(slots)
            yield _ask(f"Copy the {slot.replace('_', ' ')} from the text.", prompt, str(found[slot]))


def _svamp(rows: list[dict[str, object]], rng: random.Random) -> Iterator[Turns]:
    for row in rows:
        asked = ("Solve the problem. Answer with the number.", "How many? Answer with a number.")
        yield _ask(rng.choice(asked), str(row["prompt"]), str(row["completion"]))


def _pii(rows: list[dict[str, object]], rng: random.Random) -> Iterator[Turns]:
    for row in rows:
        text, spans = str(row["text"]), row["spans"]
        assert isinstance(spans, list)
        kinds = sorted({span["type"] for span in spans})
        if spans and rng.random() < 0.5:
            span = rng.choice(spans)
            if text.count(span["text"]) and sum(other["type"] == span["type"] for other in spans) == 1:
                kind = span["type"].lower().replace("_", " ")
                yield _ask(f"Copy the {kind} from the text.", text, span["text"])
                continue
        asked = ("Which kinds of personal data are in the text?", "List the kinds of personal data, or none.")
        yield _ask(rng.choice(asked), text, ", ".join(kinds) or "none")


def _dialogue(text: str, rng: random.Random) -> Turns:
    """A dialogue of the corpus as a chat; every answer of the assistant is learned."""
    turns: Turns = []
    for line in text.splitlines():
        speaker, _, said = line.partition(": ")
        role = {"User": "user", "Assistant": "assistant"}.get(speaker)
        if role is None or not said or (turns and turns[-1][0] == role):
            break
        turns.append((role, said.strip()))
    if turns and turns[-1][0] == "user":
        turns.pop()
    if turns and rng.random() < 0.3:
        turns.insert(
            0, ("system", rng.choice(("You are a helpful assistant.", "Help the user.", "Be kind and short.")))
        )
    return turns


def _domain(text: str, rng: random.Random) -> Turns | None:
    first = text.splitlines()[0].removeprefix("User: ")
    found = [name for name, words in DOMAINS.items() if any(word in first.lower() for word in words)]
    if len(found) != 1:
        return None
    labels = ", ".join(rng.sample(sorted(DOMAINS), len(DOMAINS)))
    return _ask(rng.choice(("What is it about?", f"What is it about: {labels}?", "Name the topic.")), first, found[0])


def _sentences(texts: list[str], rng: random.Random) -> list[str]:
    found = [s.strip() for text in texts for s in re.split(r"(?<=[.!?])\s+", text.replace("\n", " "))]
    found = [s for s in found if 25 < len(s) < 140 and '"' not in s]
    rng.shuffle(found)
    return found


def _programs() -> list[Callable[[str, str, random.Random], Turns | None]]:
    """Tasks whose answer a program knows; each takes a sentence and another one."""

    def first(s: str, _: str, rng: random.Random) -> Turns:
        return _ask("Copy the first word.", s, s.split()[0])

    def last(s: str, _: str, rng: random.Random) -> Turns:
        return _ask("Copy the last word.", s, s.split()[-1].strip(".,!?;:"))

    def copy(s: str, _: str, rng: random.Random) -> Turns:
        return _ask(rng.choice(("Repeat the text.", "Say it again.")), s, s)

    def contains(s: str, other: str, rng: random.Random) -> Turns | None:
        words = WORD.findall(s if rng.random() < 0.5 else other)
        if not words:
            return None
        word = rng.choice(words)
        found = word.lower() in {w.lower() for w in WORD.findall(s)}
        pairs = (("yes", "no"), ("true", "false"), ("found", "absent"))
        yes, no = rng.choice(pairs)
        return _ask(f'Is the word "{word}" in the text? Answer {yes} or {no}.', s, yes if found else no)

    def which(s: str, other: str, rng: random.Random) -> Turns | None:
        inside = [w.lower() for w in WORD.findall(s) if len(w) > 3]
        outside = [w.lower() for w in WORD.findall(other) if len(w) > 3 and w.lower() not in s.lower()]
        if not inside or len(outside) < 2:
            return None
        right = rng.choice(inside)
        options = [right, *rng.sample(outside, 2)]
        rng.shuffle(options)
        return _ask(f"Which word is in the text: {', '.join(options)}?", s, right)

    def question(s: str, _: str, rng: random.Random) -> Turns:
        kind = "question" if s.endswith("?") else "exclamation" if s.endswith("!") else "statement"
        return _ask("Is this a question, an exclamation or a statement?", s, kind)

    def names(s: str, _: str, rng: random.Random) -> Turns:
        found = re.findall(r"(?<=[a-z,;] )[A-Z][a-z]+", s)
        return _ask("List the names, or none.", s, ", ".join(dict.fromkeys(found)) or "none")

    def shout(s: str, _: str, rng: random.Random) -> Turns:
        return _ask("Write it in lower case.", s, s.lower())

    def letters(s: str, _: str, rng: random.Random) -> Turns:
        word = rng.choice([w for w in s.split() if w.isalpha()] or ["a"])
        return _ask("With which letter does the word begin?", word, word[0].lower())

    def larger(s: str, _: str, rng: random.Random) -> Turns:
        a, b = rng.sample(range(100), 2)
        return _ask("Which number is larger?", f"{a} or {b}", str(max(a, b)))

    def add(s: str, _: str, rng: random.Random) -> Turns:
        a, b = rng.randrange(50), rng.randrange(50)
        if rng.random() < 0.5:
            return _ask("Work it out. Answer with the number.", f"{a} + {b}", str(a + b))
        return _ask("Work it out. Answer with the number.", f"{a + b} - {b}", str(a))

    def speaker(s: str, _: str, rng: random.Random) -> Turns | None:
        low = f" {s.lower()} "
        she, he = " she " in low or " her " in low, " he " in low or " his " in low
        if she == he:
            return None
        return _ask("Is it about him or about her? Answer with one word.", s, "her" if she else "him")

    def length(s: str, _: str, rng: random.Random) -> Turns:
        return _ask("Is the text short or long? Answer short or long.", s, "short" if len(s) < 70 else "long")

    return [
        first,
        last,
        copy,
        contains,
        contains,
        which,
        which,
        question,
        names,
        shout,
        letters,
        larger,
        add,
        speaker,
        length,
    ]


def _kinds(texts: dict[str, list[str]], rng: random.Random) -> Iterator[Turns]:
    """What kind of text is it? Labels of the corpus's own making."""
    for label, lines in texts.items():
        for line in lines:
            asked = ("What kind of text is it?", f"Choose: {', '.join(rng.sample(sorted(texts), len(texts)))}.")
            yield _ask(rng.choice(asked), line[:200], label)


def instruction_rows(corpus: Path, tasks: Path, seed: int) -> list[Turns]:
    """All rows of the stage, shuffled. Raises `DataError` where a source is absent."""
    rng = random.Random(seed)
    snips, svamp, pii = (_task(tasks, name) for name in ALLOWED_TASKS)
    rows = [*_snips(snips, rng), *_svamp(svamp, rng), *_pii(pii, rng)]
    dialogues = load_source(corpus, "sgd_dialogue")[0]
    stories = load_source(corpus, "tinystories")[0]
    tales = load_source(corpus, "fairytale")[0]
    rng.shuffle(dialogues)
    rows += [turns for text in dialogues[:5000] if len(turns := _dialogue(text, rng)) > 1]
    rows += [turns for text in dialogues[5000:] if (turns := _domain(text, rng))]
    for story in rng.sample(stories, min(1500, len(stories))):
        cut = story.find(". ", len(story) // 3) + 1
        if cut > 0:
            rows.append(_ask("Continue the story.", story[:cut], story[cut:].strip()))
    sentences = _sentences([*stories, *tales], rng)
    programs = _programs()
    for index in range(min(12_000, len(sentences) - 1)):
        turns = rng.choice(programs)(sentences[index], sentences[index + 1], rng)
        if turns:
            rows.append(turns)
    kinds = {
        "story": sentences[12_000:12_600],
        "command": [str(row["prompt"]) for row in rng.sample(snips, 600)],
        "dialogue": [text[:160] for text in dialogues[:600]],
        "sum": [str(row["prompt"]) for row in rng.sample(svamp, 600)],
    }
    rows += list(_kinds(kinds, rng))
    rng.shuffle(rows)
    return rows
