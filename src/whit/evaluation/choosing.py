"""Which kind of scorer suits the answers of a data set, and why (`--score auto`).

Looks at the training rows' answers and nothing else, and always gives its reason, since a user should
be able to see at once that it chose wrongly. Knows nothing of scorers themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from whit.evaluation import answers

if TYPE_CHECKING:
    from whit.data.rows import Row

# A closed set is one whose labels are seen three times on average and are no sentences.
SEEN, MOST_LABELS, LONGEST_LABEL = 3, 1_000, 80


def choose(rows: Sequence[Row]) -> tuple[str, str]:
    """The kind of scorer that suits the rows' answers, and the reason in one sentence."""
    texts = [row.completion.strip() for row in rows]
    many, distinct = len(texts), len({answers.fold(text) for text in texts})
    if all(text[:1] in "{[" and text and answers.is_json(text) for text in texts):
        return "json", f"all {many:,} training answers are JSON objects or lists"
    if all("####" in text and answers.final_number(text) is not None for text in texts):
        return "numeric", f"all {many:,} training answers end with #### and a number"
    bare = all(_is_number(text) for text in texts)
    closed = (
        many >= SEEN * distinct
        and distinct <= MOST_LABELS
        and all(0 < len(text) <= LONGEST_LABEL and "\n" not in text for text in texts)
    )
    # Numbers are a closed set only where they are few and seen often: stars from 1 to 5, not sums.
    if bare and not (closed and distinct <= 10 and many >= 20 * distinct):
        return "numeric", f"all {many:,} training answers are numbers"
    if closed:
        return "label", f"the {many:,} training answers are only {distinct:,} different ones"
    return "exact", f"{distinct:,} different answers in {many:,} training rows: no closed set, number or JSON"


def _is_number(text: str) -> bool:
    # "5 apples" may be a number with its unit, but "room 5 is open" is a sentence.
    begins = text[:1] in "-+$€£¥.0123456789½¼¾"
    return begins and len(text.split()) <= 2 and len(answers.numbers_in(text)) == 1
