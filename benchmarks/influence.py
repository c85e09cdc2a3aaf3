"""sst2 with a tenth of the training labels flipped: which ranking finds them, and what leaving out the worst changes.

    python benchmarks/influence.py
    python benchmarks/influence.py --validation-too --seed 1
    python benchmarks/influence.py --rows 2000 --epochs 1 --save found.pt
    python benchmarks/influence.py --rows 2000 --found found.pt --again lora:8 --epochs 3

An `xs` adapter learns from the flipped rows. Then the rows are ranked by doubt (as `whit check --influence` does), by
first-order harm, by their loss under that adapter, and by cleanlab's label quality: from out-of-fold probabilities of
TF-IDF and a linear classifier, as cleanlab is commonly used, and from the adapter's own probabilities. For each
ranking: the share of flipped rows among the worst tenth (a tenth by chance). Then the adapter is trained again without
the worst tenth by doubt, and both are compared on dev. With --again another kind is trained twice in its place, on all
rows and without the worst tenth that the small adapter found.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from typing import Any

import torch
from common import Task, examiner, open_base, report, task, tell
from sst2 import fresh

from whit.adapters.tunable import Bound
from whit.data.rows import Row
from whit.evaluation.proof import Examiner
from whit.evaluation.verdict import compare
from whit.training.gradients import Gradients, row_gradients
from whit.training.influence import influence
from whit.training.sft import LEARNING_RATES, Plan, train


def flipped(rows: list[Row], share: float, seed: int) -> tuple[list[Row], set[str]]:
    labels = sorted({row.completion for row in rows})
    chosen = {row.id for row in random.Random(seed).sample(rows, round(share * len(rows)))}
    changed = [
        replace(row, completion=labels[1 - labels.index(row.completion)]) if row.id in chosen else row for row in rows
    ]
    return changed, chosen


def tuned(exam: Examiner, of: Task, rows: list[Row], options: argparse.Namespace, which: str, name: str) -> Bound:
    bound, kind = fresh(exam.base, which), which.partition(":")[0]
    encoded, choosing = exam.encode(rows, learn=True), exam.encode(of.validation)

    def score() -> float:
        found = exam.score(exam.answer(choosing, bound), of.validation)
        return sum(item.value for item in found) / len(found)

    plan = Plan(
        epochs=options.epochs, batch=4, learning_rate=LEARNING_RATES[kind, "adam"], evaluations=2, patience=9,
        seed=options.seed,
    )  # fmt: skip

    def watch(progress: Any) -> None:
        if progress.step % 50 == 0:
            tell(f"{name}: step {progress.step}/{progress.steps}, loss {progress.loss:.3f}")

    done = train(exam.base, bound, encoded, plan, score, watch=watch)
    bound.load(done.adapter)
    return bound


def load(path: str, exam: Examiner, rows: list[Row], validation: list[Row]) -> tuple[Gradients, Gradients]:
    """The gradients of the training and the validation rows that an earlier run kept."""
    kept = torch.load(path, weights_only=True)

    def of(some: list[Row], losses: torch.Tensor, G: torch.Tensor) -> Gradients:
        if len(some) != len(G):
            raise SystemExit(f"{path} is of {len(G)} rows, and here are {len(some)}")
        tokens = torch.tensor([len(row.completion_ids) for row in exam.encode(some, learn=True)])
        return Gradients(tuple(row.id for row in some), losses, tokens, G)

    return of(rows, kept["losses"], kept["G"]), of(validation, torch.zeros(len(validation)), kept["Gv"])


def cleanlab_by_words(rows: list[Row], labels: list[str]) -> torch.Tensor:
    from cleanlab.rank import get_label_quality_scores
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline

    y = [labels.index(row.completion) for row in rows]
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=1000)
    )
    probabilities = cross_val_predict(model, [row.prompt for row in rows], y, cv=5, method="predict_proba")
    return -torch.tensor(get_label_quality_scores(torch.tensor(y).numpy(), probabilities))


def cleanlab_by_adapter(exam: Examiner, bound: Bound, rows: list[Row], labels: list[str]) -> torch.Tensor:
    from cleanlab.rank import get_label_quality_scores

    from whit.training.batching import collate
    from whit.training.sft import loss_of

    logs = torch.zeros(len(rows), len(labels), dtype=torch.float64)
    for at, label in enumerate(labels):
        encoded = exam.encode([replace(row, completion=label) for row in rows], learn=True)
        for start in range(0, len(encoded), 16):
            batch = collate(encoded[start : start + 16])
            with torch.inference_mode(), bound.active():
                losses = loss_of(exam.base, batch).double()
            logs[start : start + 16, at].index_add_(0, batch.at[:, 0], -losses)
    y = torch.tensor([labels.index(row.completion) for row in rows])
    return -torch.tensor(get_label_quality_scores(y.numpy(), logs.softmax(1).numpy()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--kind", default="xs")
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--validation", type=int, default=300)
    parser.add_argument("--dev", type=int)
    parser.add_argument("--flip", type=float, default=0.1)
    parser.add_argument("--share", type=float, default=0.1, help="of the rows, to look at and to leave out")
    parser.add_argument("--validation-too", action="store_true", help="flip as many of the validation rows")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", help="keep gradients and labels in this file, to try other rankings on")
    parser.add_argument("--found", help="take the gradients from a file that --save made, with the same rows and seed")
    parser.add_argument("--again", help="the kind that is trained with and without the worst tenth, as xs or lora:8")
    options = parser.parse_args()
    of = task(options.task, rows=options.rows, validation=options.validation, dev=options.dev)
    rows, wrong = flipped(of.train, options.flip, options.seed)
    if options.validation_too:
        of = replace(of, validation=flipped(of.validation, options.flip, options.seed + 1)[0])
    labels = sorted({row.completion for row in rows})
    exam = examiner(open_base(options.base), of, max_tokens=4)
    if options.found:
        learned, judged = load(options.found, exam, rows, of.validation)
    else:
        bound = tuned(exam, of, rows, options, options.kind, "with flipped labels")

        def gradients(name: str, some: list[Row]) -> Gradients:
            return row_gradients(
                exam.base, bound, exam.encode(some, learn=True),
                on_done=lambda done: tell(f"gradients: {done} {name} rows") if done % 200 == 0 else None,
            )  # fmt: skip

        judged, learned = gradients("validation", of.validation), gradients("training", rows)
    found = influence(learned, judged, doubted=1.5 * options.share)
    if options.save:
        plain = {"G": learned.G, "losses": learned.losses, "Gv": judged.G, "wrong": [row.id in wrong for row in rows]}
        torch.save(plain, options.save)
    rankings = {
        "doubt": found.doubt.argsort(descending=True),
        "harm, first order": found.harm.argsort(descending=True),
        "loss": learned.losses.argsort(descending=True),
        "cleanlab, TF-IDF out of fold": cleanlab_by_words(rows, labels).argsort(descending=True),
    }
    if not options.found:
        own = cleanlab_by_adapter(exam, bound, rows, labels)
        rankings["cleanlab, the adapter's own"] = own.argsort(descending=True)
        if options.again:
            bound.detach()
    count = round(options.share * len(rows))
    for name, order in rankings.items():
        hits = sum(rows[at].id in wrong for at in order[:count].tolist())
        report([{"ranking": name, "flipped_among_worst": round(hits / count, 4), "worst": count, "rows": len(rows)}])
    report([{"validation_rows": len(of.validation), "agreement_of_halves": round(found.agreement, 3)}])
    again = options.again or options.kind
    if options.again or options.found:
        bound = tuned(exam, of, rows, options, again, "with flipped labels")
    before = exam.system("all rows", "adapter", of.dev, bound=bound)
    bound.detach()
    left_out = {rows[at].id for at in rankings["doubt"][:count].tolist()}
    fewer = [row for row in rows if row.id not in left_out]
    bound = tuned(exam, of, fewer, options, again, "without the worst")
    after = exam.system("without the worst", "adapter", of.dev, bound=bound)
    result = compare(before.scores, after.scores)
    report([{
        "kind": again, "dev_rows": result.rows, "all_rows": round(result.base, 4),
        "without_the_worst": round(result.tuned, 4),
        "interval": [round(bound, 4) for bound in result.interval], "p_value": result.p_value,
        "verdict": str(result.verdict),
    }])  # fmt: skip


if __name__ == "__main__":
    main()
