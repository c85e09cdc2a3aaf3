"""The smallest tool that may do the job: TF-IDF and a linear classifier, no language model.

Where answers are a closed set (labels, or JSON whose every field is one), counting words and pieces
of words often does as well as a model, in a thousandth of the time. Whoever tunes a model should know
that before using it. Words and pairs of words, and pieces of 3 to 5 characters, weighted by TF-IDF;
a linear SVM whose C is chosen by cross-validation on the training rows alone. Where it cannot stand,
always giving the commonest answer may: what an adapter has beyond that is more than form. Knows nothing of models
or scores, and imports scikit-learn only when called.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from whit.errors import DataError
from whit.evaluation import answers
from whit.evaluation.choosing import MOST_LABELS, SEEN

if TYPE_CHECKING:
    from whit.data.rows import Row

NAME = "TF-IDF + linear"
CONSTANT = "always the commonest answer"

_COMMON = 0.05  # the least share of the training rows that an answer must have to be a baseline by itself

CHOICES_OF_C = (0.1, 0.3, 1.0, 3.0)
_FOLDS = 3
_ROWS_FOR_CHOOSING = 3_000  # C hardly moves with more rows, and 150 classes take their time
_ABSENT = ""  # never a JSON text, so it can stand for a field that is not there


def why_not(rows: Sequence[Row], kind: str) -> str | None:
    """Why this baseline cannot stand beside the model on these training rows; None where it can.

    `kind` is the scorer's name.
    """
    if kind not in ("label", "json", "json-fields"):
        return f"answers scored as {kind} are not a closed set"
    if kind == "label":
        return None if len({row.completion.strip() for row in rows}) > 1 else "all answers are the same"
    objects = [_object(row.completion) for row in rows]
    if not all(gold is not None for gold in objects):
        return "not every answer is a JSON object"
    for key, values in _columns([gold for gold in objects if gold is not None]).items():
        present = [value for value in values if value != _ABSENT]
        if len(set(present)) > MOST_LABELS or len(present) < SEEN * len(set(present)):
            return f"the field {key!r} has {len(set(present)):,} different values: not a closed set"
    return None


def commonest(rows: Sequence[Row]) -> str | None:
    """The answer that most training rows have; None where it is so seldom that nobody would always give it."""
    answer, count = Counter(row.completion.strip() for row in rows).most_common(1)[0] if rows else ("", 0)
    return answer if count >= max(2, _COMMON * len(rows)) else None


class TextBaseline:
    """One linear classifier for the label, or one for each field of a JSON answer.

    `fit` once, then `predict`. Seeded: the same rows give the same answers.
    """

    def __init__(self, kind: str, *, seed: int = 0) -> None:
        self.kind = kind
        self.seed = seed
        self.C: dict[str, float] = {}
        self._features: Any = None
        self._models: dict[str, Any] = {}

    def fit(self, rows: Sequence[Row]) -> TextBaseline:
        """Learn from training rows. Raises `DataError` where `why_not` has a reason."""
        reason = why_not(rows, self.kind)
        if reason is not None:
            raise DataError(f"no {NAME} baseline: {reason}")
        self._features = _vectoriser()
        X = self._features.fit_transform([_text(row) for row in rows])
        for name, values in self._targets(rows).items():
            self._models[name], self.C[name] = _classifier(X, values, self.seed)
        return self

    def predict(self, rows: Sequence[Row]) -> list[str]:
        """An answer for each row, in the form of the training answers."""
        if self._features is None:
            raise DataError(f"the {NAME} baseline has learnt nothing yet: call fit first")
        if not rows:
            return []
        X = self._features.transform([_text(row) for row in rows])
        columns = {name: model.predict(X) for name, model in self._models.items()}
        if self.kind == "label":
            return [str(label) for label in columns["label"]]
        return [
            json.dumps(
                {key: json.loads(values[n]) for key, values in columns.items() if values[n] != _ABSENT},
                ensure_ascii=False,
            )
            for n in range(len(rows))
        ]

    def _targets(self, rows: Sequence[Row]) -> dict[str, list[str]]:
        if self.kind == "label":
            return {"label": _commonest_spellings([row.completion.strip() for row in rows])}
        return _columns([gold for row in rows if (gold := _object(row.completion)) is not None])


def _text(row: Row) -> str:
    return "\n".join(turn.content for turn in row.turns)


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = answers.parse_json(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _columns(objects: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """For each key, its value in every object, as JSON; keys in the order most answers have them."""
    place: Counter[str] = Counter()
    many: Counter[str] = Counter()
    for gold in objects:
        for at, key in enumerate(gold):
            place[key] += at
            many[key] += 1
    keys = sorted(many, key=lambda key: place[key] / many[key])
    dumped = [{key: json.dumps(gold[key], sort_keys=True) for key in gold} for gold in objects]
    return {key: [values.get(key, _ABSENT) for values in dumped] for key in keys}


def _commonest_spellings(labels: Sequence[str]) -> list[str]:
    spelt: dict[str, Counter[str]] = {}
    for label in labels:
        spelt.setdefault(answers.fold(label), Counter())[label] += 1
    return [spelt[answers.fold(label)].most_common(1)[0][0] for label in labels]


class _Everything:
    """Stands for a classifier where there is nothing to choose from."""

    def __init__(self, value: str) -> None:
        self._value = value

    def predict(self, X: Any) -> list[str]:
        return [self._value] * X.shape[0]


def _vectoriser() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import FeatureUnion

    # A token of one character counts (scikit-learn drops it): "5", "no 1", "c".
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b|[^\w\s]", sublinear_tf=True)
    pieces = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, max_features=200_000)
    return FeatureUnion([("words", words), ("pieces", pieces)])


def _classifier(X: Any, values: Sequence[str], seed: int) -> tuple[Any, float]:
    import numpy as np
    from sklearn.svm import LinearSVC

    if len(set(values)) == 1:
        return _Everything(values[0]), 0.0
    y = np.asarray(values, dtype=object)
    C = _choose(X, y, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # slow convergence only means C is larger than it need be
        return LinearSVC(C=C, random_state=seed).fit(X, y), C


def _choose(X: Any, y: Any, seed: int) -> float:
    """By accuracy over three folds of the training rows; the smaller C where two do equally well."""
    import numpy as np
    from sklearn.model_selection import KFold
    from sklearn.svm import LinearSVC

    picked = np.random.default_rng(seed).permutation(len(y))[:_ROWS_FOR_CHOOSING]
    if len(picked) < 2 * _FOLDS:
        return 1.0
    X, y = X[picked], y[picked]
    right = dict.fromkeys(CHOICES_OF_C, 0)
    for train, held_out in KFold(_FOLDS).split(X):
        if len(set(y[train])) < 2:
            continue
        for C in CHOICES_OF_C:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = LinearSVC(C=C, random_state=seed).fit(X[train], y[train])
            right[C] += int((model.predict(X[held_out]) == y[held_out]).sum())
    return max(CHOICES_OF_C, key=lambda C: (right[C], -C)) if any(right.values()) else 1.0
