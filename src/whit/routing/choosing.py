"""Which tier is enough: a learned guess of whether the smallest one does it, and a threshold that is calibrated.

The predictor is a logistic regression over hashed words and word pairs and a few counts of the prompt, in plain
Python; or a logistic regression or the nearest rows over embeddings of a local base (`embedding`), whichever guesses
better by cross-validation. It runs here and sends nothing. `fit` learns it from rows on which both tiers' answers are
known to be right or wrong, and sets the threshold so that a stated share of the strong tier's quality is kept, by
cross-validated guesses (never by guesses on the rows it was learned from). Learned routers often fail to beat simple
ones: `docs/routing.md` says how ours does.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from whit.errors import DataError
from whit.files import atomic_write
from whit.routing.embedding import Embedder, Space, nearest, pack

Guess = Callable[[Any, Sequence[bool], Any], Any]  # rows, which of them were right, other rows: chances of those
BUCKETS = 4096
FORMAT = 1
# What is tried over embeddings: the strengths of a logistic regression, and numbers of nearest rows.
WAYS = (*(("logistic", each) for each in (1, 10, 100, 1000)), *(("knn", each) for each in (5, 15, 25, 50)))
_WORD = re.compile(r"[^\W\d_]+|\d+(?:[.,]\d+)*|[$%€£:/=+*]")


@dataclass(frozen=True)
class Choice:
    """A predictor with its threshold: below it, the strongest tier is asked.

    `quality`, `interval` and `rivals` are of the rows it was learned from, by guesses that did not see each row.
    With a `space` it is over embeddings, and `weights` and `bias` are not used. `most_strong` is what the threshold was
    set to where that was a cost; `keep_quality` is then what was reached.
    """

    weights: Mapping[int, float]
    bias: float
    threshold: float
    keep_quality: float
    rows: int
    quality: float
    interval: tuple[float, float]
    strong_share: float
    rivals: Mapping[str, float] = field(default_factory=dict)
    space: Space | None = None
    most_strong: float | None = None

    @property
    def features(self) -> str:
        """What it is learned over."""
        return "words" if self.space is None else "embeddings"

    def chance(self, prompt: str) -> float:
        """The guessed chance, 0 to 1, that the smallest tier answers this rightly. With a `space`, raises as it."""
        if self.space is not None:
            return self.space.chance(prompt)
        total = self.bias + sum(self.weights.get(place, 0.0) * value for place, value in features(prompt).items())
        return 1 / (1 + math.exp(-max(-50.0, min(50.0, total))))

    def save(self, path: str | Path) -> None:
        """Write it as JSON. It holds weights of hashed words or of coordinates, and no rows; of nearest rows their
        embeddings."""
        plain = {**vars(self), "format": FORMAT, "weights": {str(key): value for key, value in self.weights.items()}}
        plain["space"] = asdict(self.space) if self.space else None
        atomic_write(path, json.dumps(plain, indent=1) + "\n")


def load_choice(path: str | Path) -> Choice:
    """Read what `save` wrote. Raises `DataError`."""
    try:
        given = json.loads(Path(path).read_text("utf-8"))
        if given.pop("format") != FORMAT:
            raise ValueError("of another format")
        given["weights"] = {int(key): float(value) for key, value in given["weights"].items()}
        given["interval"] = tuple(map(float, given["interval"]))
        given["rivals"] = {str(key): float(value) for key, value in given.get("rivals", {}).items()}
        if space := given.get("space"):
            given["space"] = Space(**{**space, "weights": tuple(map(float, space["weights"]))})
        found = Choice(**given)
        if not all(math.isfinite(value) for value in (found.bias, found.threshold, *found.weights.values())):
            raise ValueError("with numbers that are not finite")
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read as a fitted choice; make it with whit route fit") from error


def features(prompt: str) -> dict[int, float]:
    """Hashed words and pairs, scaled to length one, and a few counts: place to value."""
    words = [
        word.lower() if word[0].isalpha() else "#" if word[0].isdigit() else word for word in _WORD.findall(prompt)
    ]
    counts: dict[int, float] = {}
    for gram in [*words, *map(" ".join, itertools.pairwise(words))]:
        place = 8 + zlib.crc32(gram.encode()) % (BUCKETS - 8)
        counts[place] = counts.get(place, 0.0) + 1.0
    values = {place: 1 + math.log(count) for place, count in counts.items()}
    norm = math.sqrt(sum(value * value for value in values.values())) or 1.0
    found = {place: value / norm for place, value in values.items()}
    found[0] = math.log1p(len(words)) / 5
    found[1] = math.log1p(words.count("#")) / 3
    found[2] = math.log1p(sum(prompt.count(mark) for mark in ".?!")) / 3
    found[3] = math.log1p(sum(prompt.count(mark) for mark in "%/")) / 2
    return found


def matrix(prompts: Sequence[str]) -> Any:
    """The features of prompts as a sparse matrix, (prompts, BUCKETS)."""
    from scipy.sparse import csr_matrix

    rows, columns, values = [], [], []
    for at, prompt in enumerate(prompts):
        for place, value in features(prompt).items():
            rows.append(at)
            columns.append(place)
            values.append(value)
    return csr_matrix((values, (rows, columns)), shape=(len(prompts), BUCKETS))


def learn(X: Any, y: Sequence[bool], strength: float = 1.0) -> Any:
    """A fitted logistic regression."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=1000).fit(X, [int(each) for each in y])


def by_words(X: Any, y: Sequence[bool], Z: Any) -> Any:
    """The chances of rows `Z` by a logistic regression learned from others."""
    return learn(X, y).predict_proba(Z)[:, 1]


def by_way(kind: str, size: float) -> Guess:
    """One of `WAYS` as what guesses the chances of rows from others."""
    if kind == "knn":
        return lambda X, y, Z: nearest(X, y, Z, int(size))
    return lambda X, y, Z: learn(X, y, size).predict_proba(Z)[:, 1]


def best_way(X: Any, y: Sequence[bool], *, seed: int = 0) -> tuple[str, float]:
    """The one of `WAYS` whose guesses at rows it did not see are nearest to the truth (Brier, 1950)."""
    import numpy as np

    truth = np.asarray(y, float)
    missed = {way: float(((out_of_fold(X, y, by_way(*way), seed=seed) - truth) ** 2).mean()) for way in WAYS}
    return min(missed, key=missed.__getitem__)


def out_of_fold(X: Any, y: Sequence[bool], guess: Guess = by_words, *, folds: int = 5, seed: int = 0) -> Any:
    """For each row the chance guessed from rows that are not it."""
    import numpy as np

    found = np.zeros(len(y))
    order = np.random.default_rng(seed).permutation(len(y))
    labels = np.asarray(y, dtype=bool)
    for held in np.array_split(order, folds):
        rest = np.setdiff1d(order, held)
        found[held] = guess(X[rest], list(labels[rest]), X[held])
    return found


def qualities(chances: Any, weak: Any, strong: Any) -> tuple[Any, Any]:
    """Quality with 0, 1, … n rows sent to the strong tier, those of least chance first; and their order."""
    import numpy as np

    order = np.argsort(chances, kind="stable")
    gain = np.asarray(strong, float)[order] - np.asarray(weak, float)[order]
    return np.asarray(weak, float).mean() + np.concatenate([[0.0], np.cumsum(gain)]) / len(gain), order


def fit(prompts: Sequence[str], weak: Sequence[bool], strong: Sequence[bool], *, keep_quality: float = 0.95,
        most_strong: float | None = None, seed: int = 0, embed: Embedder | None = None) -> Choice:  # fmt: skip
    """Learn a choice that keeps `keep_quality` of the strong tier's share of right answers.

    Or, where `most_strong` is given, one that sends that share of the rows to the strong tier and no more. The
    threshold is the one that sends fewest rows to the strong tier while the quality of out-of-fold guesses reaches the
    stated share; `interval` is a 95 % bootstrap interval of that quality over the strong tier's.
    With `embed` it learns over embeddings; the one of `WAYS` is chosen by other folds of the same rows, so that the
    interval leaves out what little that choice flatters it. Raises `DataError` where the rows cannot teach.
    """
    import numpy as np

    if len(prompts) < 40:
        raise DataError(f"{len(prompts)} rows are too few to learn a choice from: 40 at least")
    if len(set(weak)) < 2:
        raise DataError("the smallest tier is always right or always wrong on these rows: there is nothing to learn")
    y = [bool(each) for each in weak]
    guess: Guess = by_words
    if embed is None:
        X = matrix(prompts)
    else:
        X = embed(prompts)
        way = best_way(X, y, seed=seed + 1)
        guess = by_way(*way)
    chances = out_of_fold(X, y, guess, seed=seed)
    w, s = np.asarray(weak, float), np.asarray(strong, float)
    curve, order = qualities(chances, w, s)
    ranked = chances[order]
    # Rows of the same chance go together, so that a threshold can only lie between different ones.
    cuts = [0, *(np.flatnonzero(np.diff(ranked) > 0) + 1), len(y)]
    if most_strong is None:
        enough = [int(cut) for cut in cuts if curve[cut] >= keep_quality * s.mean() - 1e-12]
        count = enough[0] if enough else len(y)
    else:
        count = max(int(cut) for cut in cuts if cut <= most_strong * len(y) + 1e-9)
        keep_quality = float(curve[count] / max(s.mean(), 1e-9))
    threshold = 0.0 if count == 0 else 1.0 if count == len(y) else float((ranked[count - 1] + ranked[count]) / 2)
    if most_strong is not None and 0 < count < len(y):
        # What is learned from all rows may give one chance to many that the folds told apart: then fewer go.
        own = np.sort(guess(X, y, X))
        threshold = min(threshold, float(own[int(most_strong * len(y))]))
    to_strong = chances < threshold if 0 < count < len(y) else np.full(len(y), count > 0)
    right = np.where(to_strong, s, w)
    draws = np.random.default_rng(seed).integers(0, len(y), (2000, len(y)))
    ratios = right[draws].mean(1) / np.maximum(s[draws].mean(1), 1e-9)
    weights, bias = _words(X, y) if embed is None else ({}, 0.0)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Choice(
        weights, bias, threshold, keep_quality, len(y),
        float(right.mean() / max(s.mean(), 1e-9)), (float(low), float(high)), float(to_strong.mean()),
        against(to_strong, w, s, keep_quality, seed=seed), None if embed is None else _space(embed, X, y, *way),
        most_strong,
    )  # fmt: skip


def _words(X: Any, y: Sequence[bool]) -> tuple[dict[int, float], float]:
    model = learn(X, y)
    weights = {at: round(float(value), 6) for at, value in enumerate(model.coef_[0]) if abs(value) > 1e-6}
    return weights, float(model.intercept_[0])


def _space(embed: Embedder, X: Any, y: Sequence[bool], kind: str, size: float) -> Space:
    name, fingerprint = embed.name, embed.fingerprint
    if kind == "knn":
        return Space(name, fingerprint, kind, neighbours=int(size), points=pack(X),
                     labels="".join("01"[each] for each in y))  # fmt: skip
    model = learn(X, y, size)
    return Space(name, fingerprint, kind, tuple(float(each) for each in model.coef_[0]), float(model.intercept_[0]))


def against(to_strong: Any, weak: Any, strong: Any, keep_quality: float, *, seed: int = 0) -> dict[str, float]:
    """What simple ways do on the same rows: share of right answers, and cost as the share sent to the strong tier.

    `always_local`, `always_strong`, `random` (at this choice's cost) and `choice` are shares of right answers;
    `p_value` is that of sending as many rows at random doing as well (one-sided, 10,000 permutations);
    `random_cost` and `oracle_cost` are what `keep_quality` costs at random and where each row's answers are known.
    """
    import numpy as np

    gain, count, n = strong - weak, int(to_strong.sum()), len(weak)
    found = float(weak.mean() + (gain * to_strong).sum() / n)
    draw = np.random.default_rng(seed)
    by_chance = np.array([gain[draw.permutation(n)[:count]].sum() for _ in range(10_000)])
    beyond = int((by_chance >= (gain * to_strong).sum() - 1e-9).sum())
    wanted = keep_quality * strong.mean() - weak.mean()
    best = np.cumsum(np.sort(gain)[::-1]) / n
    reached = np.flatnonzero(best >= wanted - 1e-12)
    return {
        "choice": found, "always_local": float(weak.mean()), "always_strong": float(strong.mean()),
        "random": float(weak.mean() + gain.mean() * count / n), "p_value": (1 + beyond) / 10_001,
        "random_cost": float(min(1.0, max(0.0, wanted / gain.mean()))) if gain.mean() > 0 else float(wanted > 0),
        "oracle_cost": 0.0 if wanted <= 0 else float((reached[0] + 1) / n) if len(reached) else 1.0,
    }  # fmt: skip


def read_fit_rows(path: Path) -> tuple[list[str], list[bool], list[bool]]:
    """Rows with `prompt`, `weak_correct` and `strong_correct`. Raises `DataError` with the line."""
    prompts: list[str] = []
    weak: list[bool] = []
    strong: list[bool] = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not JSON") from error
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise DataError(f"{path}:{number}: has no text in prompt")
        for key, to in (("weak_correct", weak), ("strong_correct", strong)):
            if not isinstance(row.get(key), bool):
                raise DataError(f"{path}:{number}: {key} must be true or false")
            to.append(row[key])
        prompts.append(row["prompt"])
    return prompts, weak, strong
