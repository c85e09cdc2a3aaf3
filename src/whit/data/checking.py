"""What is wrong with a data set, with the ids of the rows.

Promises to report and never to raise for what it finds, and to be fast: 15,000 short rows take a few
seconds. Knows nothing of models: a row's length in tokens comes from a function that the caller gives.
`whit.data.problem.KINDS` lists all that can be found, `whit.data.fixing` mends what can be mended.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from itertools import combinations

from whit.data import secrets
from whit.data.consistency import FEW, Answers, check_consistency, labels, listed, plain
from whit.data.problem import KINDS, SERIOUS, Problem
from whit.data.rows import Row, content_key, said
from whit.data.similarity import similar_sets
from whit.talk import several

__all__ = ["KINDS", "SERIOUS", "Problem", "check_rows"]

_CUT = re.compile(r"[\[(<{]\s*(?:truncated|cut off|continued|more|\.\.\.|…)\s*[\])>}]\s*$", re.IGNORECASE)
_SPECIAL = re.compile(r"<\|[a-z_]{2,30}\|>|<(?:start|end)_of_turn>|</?s>|<(?:bos|eos|pad|unk)>|\[/?INST\]|<</?SYS>>")
_ENDS = tuple(".!?…\"'”’)]}>:;*`,")
_BARE = re.compile(r"(?<![\w(-])row-[0-9a-f]{16}(?:-\d+)?")
_CUT_LENGTH = 64
_MOST_SHARE = 0.8


def check_rows(
    rows: Sequence[Row],
    *,
    context_tokens: Callable[[Row], int] | None = None,
    context: int | None = None,
    splits: Mapping[str, Sequence[Row]] | None = None,
) -> list[Problem]:
    """All problems of `rows`, the serious ones first.

    `context_tokens` gives a row's length in tokens, prompt and answer together, and `context` the most that
    the base can read. `splits` are other sets of rows by name, that `rows` (and each other) must not share
    rows with.
    """
    rows = tuple(rows)
    answers = Answers(rows)
    found = [
        *_amount(rows),
        *_empty(rows),
        *_truncated(rows),
        *_too_long(rows, context_tokens, context),
        *_repeats(rows),
        *_near(rows),
        *check_consistency(answers),
        *_labels(answers),
        *_special(rows),
        *_secrets(rows),
    ]
    by_id = {row.id: row for row in rows}
    problems = [_placed(problem, by_id) for problem in (*found, *_leakage(rows, splits or {}))]
    order = {kind: place for place, kind in enumerate(KINDS)}
    return sorted(problems, key=lambda problem: (not problem.serious, order[problem.kind]))


def _placed(problem: Problem, by_id: Mapping[str, Row]) -> Problem:
    """The problem with the lines of its rows, which also go before ids that stand in no file."""

    def named(found: re.Match[str]) -> str:
        return by_id[found[0]].name if found[0] in by_id else found[0]

    message = _BARE.sub(named, problem.message)
    lines = problem.lines or tuple(by_id[identity].line for identity in problem.ids)
    return replace(problem, message=message, lines=lines)


def _amount(rows: Sequence[Row]) -> Iterator[Problem]:
    ids = tuple(row.id for row in rows)
    if len(rows) < 2:
        yield Problem("one-row", ids, f"{several(len(rows), 'row')}; none could be held out for the proof")
        return
    answers = {row.completion.strip() for row in rows if row.completion.strip()}
    if len(answers) == 1:
        yield Problem("one-class", ids, f"every row has the answer {next(iter(answers))[:40]!r}")


def _empty(rows: Sequence[Row]) -> Iterator[Problem]:
    for what, empty in (
        ("prompt", [row.id for row in rows if not any(turn.content.strip() for turn in row.turns)]),
        ("answer", [row.id for row in rows if not row.completion.strip()]),
    ):
        if empty:
            yield Problem("empty", tuple(empty), f"no {what}: {listed(empty)}")


def _truncated(rows: Sequence[Row]) -> Iterator[Problem]:
    marked = [row.id for row in rows if _CUT.search(row.completion[-40:]) or _CUT.search(row.prompt[-40:])]
    if marked:
        yield Problem("truncated", tuple(marked), f"text that says that it was cut off: {listed(marked)}")
    for what, texts in (
        ("prompts", {row.id: row.prompt for row in rows}),
        ("answers", {row.id: row.completion for row in rows}),
    ):
        longest = max(map(len, texts.values()), default=0)
        cut = [i for i, text in texts.items() if len(text) == longest and not text.rstrip().endswith(_ENDS)]
        # Several texts of exactly the greatest length that all end in mid-sentence were cut at that length.
        if longest >= _CUT_LENGTH and len(cut) >= 3 and len({texts[i] for i in cut}) >= 3:
            message = f"{what} that all end at {longest:,} characters, in mid-sentence: {listed(cut)}"
            yield Problem("truncated", tuple(cut), message)


def _too_long(rows: Sequence[Row], tokens: Callable[[Row], int] | None, context: int | None) -> Iterator[Problem]:
    if tokens is None or context is None:
        return
    lengths = {row.id: tokens(row) for row in rows}
    ids = sorted((i for i, length in lengths.items() if length > context), key=lambda i: -lengths[i])
    if ids:
        most = lengths[ids[0]]
        message = f"beyond the context of {context:,} tokens (the longest has {most:,}): {listed(ids)}"
        yield Problem("too-long", tuple(ids), message)


def by_input(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by their input, without differences of case and spacing; rows without text are left out."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if any(turn.content.strip() for turn in row.turns):
            found[content_key(row.turns)].append(row)
    return found


def answer_key(row: Row) -> str:
    """The row's answer without differences of case and spacing."""
    return " ".join(row.completion.casefold().split())


def _repeats(rows: Sequence[Row]) -> Iterator[Problem]:
    for alike in by_input(rows).values():
        if len(alike) < 2:
            continue
        by_answer: dict[str, list[str]] = defaultdict(list)
        for row in alike:
            by_answer[answer_key(row)].append(row.id)
        text = alike[0].prompt[:50]
        for ids in by_answer.values():
            if len(ids) > 1:
                message = f"{secrets.mask(text)!r} stands {len(ids)} times: {listed(ids)}"
                yield Problem("duplicate", tuple(ids), message)
        answers = [row.completion.strip() for row in alike if row.completion.strip()]
        if len({" ".join(answer.casefold().split()) for answer in answers}) > 1:
            forms = " / ".join(repr(secrets.mask(answer[:40])) for answer in sorted(set(answers))[:4])
            everyone = [row.id for row in alike]
            message = f"{secrets.mask(text)!r} has different answers, {forms}: {listed(everyone)}"
            yield Problem("conflict", tuple(everyone), message)


def _near(rows: Sequence[Row]) -> Iterator[Problem]:
    firsts = [alike[0] for alike in by_input(rows).values()]
    for found in similar_sets([said(row.turns) for row in firsts]):
        alike = [firsts[i] for i in found]
        differ = " with different answers" if len({answer_key(row) for row in alike}) > 1 else ""
        ids = tuple(row.id for row in alike)
        text = secrets.mask(alike[0].prompt[:50])
        yield Problem("near-duplicate", ids, f"nearly the same as {text!r}{differ}: {listed(ids)}")


def _leakage(rows: Sequence[Row], splits: Mapping[str, Sequence[Row]]) -> Iterator[Problem]:
    sides = [("these rows", rows), *splits.items()]
    if len(sides) < 2:
        return
    owners: list[tuple[int, Row]] = [(side, row) for side, (_, held) in enumerate(sides) for row in held]
    by_key: dict[str, list[tuple[int, Row]]] = defaultdict(list)
    for side, row in owners:
        if said(row.turns).strip():
            by_key[content_key(row.turns)].append((side, row))
    groups = list(by_key.values())
    near = similar_sets([said(group[0][1].turns) for group in groups])
    sets = groups + [[pair for i in found for pair in groups[i]] for found in near]
    for a, b in combinations(range(len(sides)), 2):
        pairs: dict[str, tuple[str, int | None]] = {}
        for members in sets:
            there = [row.name for side, row in members if side == b]
            for side, row in members:
                if side == a and there:
                    pairs.setdefault(row.id, (f"{row.name} = {there[0]}", row.line))
        if pairs:
            some = ", ".join(pair for pair, _ in list(pairs.values())[:6]) + (", …" if len(pairs) > 6 else "")
            count = f"{len(pairs):,} of {sides[a][0]}" if len(pairs) > 1 else f"one of {sides[a][0]}"
            message = f"{count} also stand{'s' * (len(pairs) == 1)}, or nearly so, in {sides[b][0]}: {some}"
            yield Problem("leakage", tuple(pairs), message, tuple(line for _, line in pairs.values()))


def _labels(answers: Answers) -> Iterator[Problem]:
    for name, texts in answers.label_sets().items():
        counts = labels(list(texts.values()))
        if counts is None or len(texts) < FEW:
            continue
        where = f"field {name!r}: " if name else ""
        yield from _rare(texts, counts, where)
        label, most = counts.most_common(1)[0]
        if most >= _MOST_SHARE * len(texts):
            others = tuple(identity for identity, text in texts.items() if text != label)
            share = most / len(texts)
            message = f"{where}{label!r} is {share:.0%} of the answers; always answering it is right {share:.0%}"
            yield Problem("imbalance", others, f"{message} of the time")


def _rare(texts: Mapping[str, str], counts: Counter[str], where: str) -> Iterator[Problem]:
    forms: Counter[str] = Counter()  # a label in another form is a matter of form
    for label, count in counts.items():
        forms[plain(label)] += count
    common = [label for label, count in counts.items() if count > 1]
    for identity, label in texts.items():
        if forms[plain(label)] == 1:
            near = get_close_matches(label, common, n=1, cutoff=0.75)
            guess = f" (is {near[0]!r} meant?)" if near else ""
            yield Problem("rare-label", (identity,), f"{where}only {identity} has the answer {label!r}{guess}")


def _special(rows: Sequence[Row]) -> Iterator[Problem]:
    found = [row.id for row in rows if any(_SPECIAL.search(text) for text in (said(row.turns), row.completion))]
    if found:
        message = f"text that a base may read as the start or end of a turn: {listed(found)}"
        yield Problem("special-token", tuple(found), message)


def _secrets(rows: Sequence[Row]) -> Iterator[Problem]:
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        texts = [*(turn.content for turn in row.turns), row.completion]
        for kind in sorted({kind for text in texts for kind, _, _ in secrets.find(text)}):
            found[kind].append(row.id)
    for kind, ids in found.items():
        yield Problem(kind, tuple(ids), f"{KINDS[kind]} in {listed(ids)}; a tuned model may repeat it")
