"""Choosing the tier: cost at 95 % of the strong model's quality, against random at the same cost and the oracle.

    python benchmarks/routing.py

Fitted on the `route` set's train rows, scored once on dev. The weak model is taken to cost nothing, so that cost is
the share of rows sent to the strong one. `at_threshold` is the operating point that `whit route fit` sets on train
rows; `cost_at_95` is where the method's curve on dev first reaches 95 % of the strong model's quality. p-values are
one-sided permutation tests of the area under the curve of quality by cost, and of the gain over random at the
threshold's own cost (20,000 permutations); intervals are 95 % bootstrap intervals over dev rows. Over embeddings of
`eeny` the way (logistic regression or nearest rows) is chosen by cross-validation on train rows.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from whit.routing.choosing import by_way, features, fit, learn, matrix, out_of_fold, qualities, read_fit_rows
from whit.routing.embedding import Embedder

KEEP, DRAWS, PERMUTATIONS = 0.95, 2000, 20_000


def data_folder() -> Path:
    """As in `common`, which loads torch."""
    named = os.environ.get("WHIT_SHARED_DATA")
    return (Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data") / "tasks"


def knn(X: Any, y: Any, Z: Any, neighbours: int = 25) -> Any:
    """Share of the nearest rows (cosine of hashed words) that the weak model solved."""
    near = np.argsort(-(Z[:, 8:] @ X[:, 8:].T).toarray(), axis=1)[:, :neighbours]
    return np.asarray(y, float)[near].mean(1)


def area(chances: Any, weak: Any, strong: Any) -> float:
    return float(qualities(chances, weak, strong)[0].mean())


def cost_at(chances: Any, weak: Any, strong: Any) -> float:
    curve, _ = qualities(chances, weak, strong)
    reached = np.flatnonzero(curve >= KEEP * np.mean(strong) - 1e-12)
    return float(reached[0] / len(weak)) if len(reached) else 1.0


def beyond(permuted: Any, found: float) -> float:
    return float((1 + (permuted >= found - 1e-12).sum()) / (1 + len(permuted)))


def interval(statistic: Any, *arrays: Any) -> list[float]:
    rng, n = np.random.default_rng(0), len(arrays[0])
    draws = [statistic(*(each[pick] for each in arrays)) for pick in rng.integers(0, n, (DRAWS, n))]
    return [round(float(each), 4) for each in np.quantile(draws, [0.025, 0.975])]


def main() -> None:
    began = time.process_time()
    folder = data_folder() / "route"
    prompts, weak, strong = read_fit_rows(folder / "train.jsonl")
    held, w, s = read_fit_rows(folder / "dev.jsonl")
    weak_dev, strong_dev = np.asarray(w, float), np.asarray(s, float)
    X, Z = matrix(prompts), matrix(held)
    choice = fit(prompts, weak, strong, keep_quality=KEEP)
    embed = Embedder.load("eeny")
    embedded = fit(prompts, weak, strong, keep_quality=KEEP, embed=embed)
    assert embedded.space is not None
    way = f"{embedded.space.neighbours or ''} {embedded.space.kind}".strip()
    start = time.perf_counter()
    vectors = np.concatenate([embed([prompt]) for prompt in held])  # one at a time, as the gateway does
    each = (time.perf_counter() - start) / len(held)
    guesses = {
        "logistic (whit route fit)": np.array([choice.chance(prompt) for prompt in held]),
        f"{way} over embeddings (--features embeddings)": embedded.space.chances(vectors),
        "knn": knn(X, weak, Z),
        "knn over embeddings": by_way("knn", 25)(embed(prompts), weak, vectors),
        "shortest first": np.array([-features(prompt)[0] for prompt in held]),
    }
    assert np.allclose(guesses["logistic (whit route fit)"], learn(X, weak).predict_proba(Z)[:, 1], atol=1e-3)
    rng, n = np.random.default_rng(1), len(held)
    shuffled = np.array([rng.permutation(n) for _ in range(PERMUTATIONS)])
    gain = strong_dev - weak_dev
    # The area is linear in the order, so that each permutation is one product.
    places = (n - np.arange(n)) / n / (n + 1)
    areas = weak_dev.mean() + gain[shuffled] @ places
    random_cost = (KEEP * strong_dev.mean() - weak_dev.mean()) / gain.mean()
    oracle = cost_at(-gain, weak_dev, strong_dev)
    rows: list[dict[str, Any]] = [
        {"always weak": round(weak_dev.mean(), 4), "always strong": round(strong_dev.mean(), 4), "rows": n,
         "random cost_at_95": round(float(random_cost), 4), "oracle cost_at_95": round(oracle, 4),
         "oracle interval": interval(lambda a, b: cost_at(a - b, a, b), weak_dev, strong_dev)},
    ]  # fmt: skip
    for name, guess in guesses.items():
        found = area(guess, weak_dev, strong_dev)
        rows.append(
            {"method": name, "cost_at_95": round(cost_at(guess, weak_dev, strong_dev), 4),
             "interval": interval(cost_at, guess, weak_dev, strong_dev), "area": round(found, 4),
             "area of random": round(float(areas.mean()), 4), "p_value": beyond(areas, found)}
        )  # fmt: skip
    for chosen, guess in zip((choice, embedded), guesses.values(), strict=False):
        sent = guess < chosen.threshold
        quality = float(np.where(sent, strong_dev, weak_dev).mean())
        at_random = float(weak_dev.mean() + sent.mean() * gain.mean())
        many = weak_dev.mean() + (sent[shuffled] * gain).sum(1) / n
        rows.append(
            {"features": chosen.features, "at_threshold": round(chosen.threshold, 4),
             "cost": round(float(sent.mean()), 4), "share of strong's quality": round(quality / strong_dev.mean(), 4),
             "interval": interval(lambda a, b, c: np.where(c, b, a).mean() / b.mean(), weak_dev, strong_dev, sent),
             "random at that cost": round(at_random / strong_dev.mean(), 4),
             "p_value": beyond(many, quality)}
        )  # fmt: skip
    on_train = area(out_of_fold(X, weak), np.asarray(weak, float), np.asarray(strong, float))
    rows.append(
        {"seconds": round(time.process_time() - began, 1), "ms a prompt, embedding": round(1000 * each, 1),
         "out-of-fold area on train": round(on_train, 4)}
    )  # fmt: skip
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    sys.exit(main())
