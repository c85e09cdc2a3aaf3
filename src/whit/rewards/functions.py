"""What runs in the child process of the rewards that are ours: patterns, mathematics, reasoning-gym.

Each is a factory, called once with its settings, of a function (prompt, answer, row) -> numbers. They run there because
an answer may be anything: a pattern may take for ever on it, and a parser of mathematics may, too.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from whit.evaluation.answers import LONGEST, normalise

Numbers = dict[str, float]
Function = Callable[[str, str, Mapping[str, Any]], Numbers]

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_STATED = re.compile(r"answer\s*(?:is|are|:|=)\s*(.+)", re.IGNORECASE)


def pattern(config: Mapping[str, Any]) -> Function:
    """A regular expression, searched in the answer.

    Without a group: right where it is found. With groups: right where the last match's group `answer` (or the first
    group) is the row's answer, but for case, space and outer punctuation when looked through.
    """
    wanted = re.compile(config["pattern"], re.DOTALL)
    group: str | int = "answer" if "answer" in wanted.groupindex else 1

    def score(prompt: str, answer: str, row: Mapping[str, Any]) -> Numbers:
        every = list(wanted.finditer(answer[:LONGEST]))
        found = every[-1] if every else None
        if found is None:
            return {"skill": 0.0, "format": 0.0}
        if not wanted.groups:
            return {"skill": 1.0, "format": 1.0}
        given, gold = (found[group] or "").strip(), str(row["completion"]).strip()
        return {"skill": float(given == gold), "format": 1.0, "lenient": float(normalise(given) == normalise(gold))}

    return score


def mathematics(config: Mapping[str, Any]) -> Function:
    """math-verify: whether answer and gold are the same expression."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that time is not limited; the parent does that
    golds: dict[str, Any] = {}

    def read(text: str) -> Any:
        # Its own time limits are signals; the child's clock is enough. Bare LaTeX is looked for as if in dollars.
        found = parse(text, parsing_timeout=None)
        bare = "\\" in text and "$" not in text and "\\boxed" not in text
        return parse(f"${text[text.index(chr(92)) :]}$", parsing_timeout=None) if bare else found

    def score(prompt: str, answer: str, row: Mapping[str, Any]) -> Numbers:
        gold = str(row["completion"])
        if gold not in golds:
            golds[gold] = read(gold if "$" in gold or "\\boxed" in gold else f"${gold}$")
        if not golds[gold]:
            raise ValueError(f"math-verify finds no expression in the row's answer {gold[:80]!r}")
        given = read(answer[:LONGEST])
        return {"skill": float(verify(golds[gold], given, timeout_seconds=None)), "format": float(bool(given))}

    return score


def gym(config: Mapping[str, Any]) -> Function:
    """reasoning-gym's own scorer of a generator; rows say which entry they are (see `whit.rewards.gym`)."""
    from whit.rewards.gym import dataset

    sets: dict[tuple[int, int], Any] = {}

    def score(prompt: str, answer: str, row: Mapping[str, Any]) -> Numbers:
        place = row["gym"]
        key = int(place["seed"]), int(place["size"])
        if key not in sets:
            sets[key] = dataset(config["name"], config["options"], seed=key[0], size=key[1])
        entry = sets[key][int(place["index"])]
        if entry["question"] != prompt:
            raise ValueError(f"the row is not entry {place['index']} of {config['name']} with these options")
        whole, stated = answer[:LONGEST].strip(), final_text(answer[:LONGEST])
        skill = _share(sets[key].score_answer(stated, entry))
        lines = [line.strip() for line in whole.splitlines() if line.strip()]
        others = [_share(sets[key].score_answer(text, entry)) for text in {whole, *lines[:1], *lines[-1:]} - {stated}]
        tidy = stated == whole or _TAG.search(whole) is not None
        return {"skill": skill, "format": float(bool(whole) and tidy), "lenient": max([skill, *others])}

    return score


def final_text(answer: str) -> str:
    """What an answer ends up at: inside its last `<answer>` tags, else after `####` or `answer is`, else all of it."""
    tags = _TAG.findall(answer)
    if tags:
        return str(tags[-1]).strip()
    marker = answer.rfind("####")
    if marker >= 0 and answer[marker + 4 :].strip():
        return answer[marker + 4 :].strip()
    stated = list(_STATED.finditer(answer))
    return stated[-1][1].strip().rstrip(".") if stated else answer.strip()


def _share(value: Any) -> float:
    return min(1.0, max(0.0, float(value)))
