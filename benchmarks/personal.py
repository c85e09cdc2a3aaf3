"""An adapter for each of many users: what personal gains over shared and base, and how many a minute.

    python benchmarks/personal.py --users 500 --rows 8
    python benchmarks/personal.py --ratings ratings.jsonl --test-ratings held.jsonl --per customer

THE USERS ARE CONSTRUCTED: no licensed set of ratings by user is at hand. On the same inputs (sentences of sst2, no
two users the same ones) each user wants an own pair of words for the two classes (good/bad, 1/0, up/down, …; some the
wrong way round), in an own format (plain, capitals, quoted, a field of JSON, …) and tone (with or without a courtesy),
and some of their training answers are wrong (`--noise`); held-out answers are not. What it shows is that the machinery
gives each user their own; how much people differ it cannot show. Real ratings go the same way: any file that
`whit train` reads, with a column that says whose row it is.

`whit train --per` trains all users in one run and gives personal, shared and base on held-out rows, with intervals, and
how many users were helped, harmed or undecided: along directions that are learned from all of them, in the layers that
`--targets` names. Then `--peers` users, spread over all, are trained one at a time, each as a PEFT LoRA of rank 8 with
Adam on the same rows, and answered with the same scorer; the rate of 5 is taken for the rate of all. Each is a run of
its own, in a process that opens the base, trains and saves; told are the whole run and the training in it.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import data_folder, open_base, report, tell

from whit.adapters.targets import all_targets
from whit.adapters.tunable import tune_lora
from whit.data.rows import Row, read_rows
from whit.evaluation.proof import Examiner, longest_answer
from whit.evaluation.scoring import make_scorer
from whit.settings import TrainSettings
from whit.talk import Talk
from whit.training.batching import collate
from whit.training.sft import loss_of
from whit.verbs.personal import train_personal

WORDS = (
    ("positive", "negative"), ("good", "bad"), ("yes", "no"), ("1", "0"), ("up", "down"), ("like", "dislike"),
    ("warm", "cold"), ("plus", "minus"), ("keep", "skip"), ("true", "false"),
)  # fmt: skip
FORMATS = ("{}", "{}.", '"{}"', "Answer: {}", '{{"label": "{}"}}', "[{}]", "* {}")
TONES = ("{}", "{} Thank you!", "Well, {}")


def wish(user: int) -> tuple[tuple[str, str], str, bool]:
    """What a user wants: two words, how they are written, and whether in capitals. The first 420 all differ."""
    words = WORDS[user % len(WORDS)]
    words = words[::-1] if user // len(WORDS) % 4 == 3 else words
    form = FORMATS[user // len(WORDS) % len(FORMATS)]
    tone = TONES[user // (len(WORDS) * len(FORMATS)) % len(TONES)]
    return words, tone.format(form), user // 210 % 2 == 1


def construct(folder: Path, options: argparse.Namespace) -> tuple[Path, Path]:
    """Rows to learn from and rows held out, for every user."""
    draw = random.Random(options.seed)
    place = data_folder() / "sst2"
    paths = []
    for name, source, each, noise in (
        ("train", "train.jsonl", options.rows, options.noise),
        ("test", "dev.jsonl", options.held_out, 0.0),
    ):
        inputs = [row for row in read_rows(place / source) if len(row.prompt.split()) <= options.words]
        if name == "train" and options.items:
            inputs = draw.sample(inputs, min(options.items, len(inputs)))
        lines = []
        for user in range(options.users):
            (yes, no), form, capitals = wish(user)
            # Users differ in how much they said, too.
            count = max(2, round(each * draw.uniform(0.5, 1.5))) if name == "train" else each
            for at, row in enumerate(draw.sample(inputs, count)):
                right = (row.completion == "positive") != (draw.random() < noise)
                said = form.format(yes if right else no)
                lines.append({
                    "id": f"{name}-{user}-{at}", "prompt": row.prompt,
                    "completion": said.upper() if capitals else said, "user": f"user{user:04}",
                })  # fmt: skip
        draw.shuffle(lines)
        paths.append(folder / f"{name}.jsonl")
        paths[-1].write_text("".join(json.dumps(line) + "\n" for line in lines))
    return paths[0], paths[1]


def one_by_one(
    options: argparse.Namespace, folder: Path, data: Path, held: Sequence[Row], users: list[str]
) -> list[Any]:
    """A PEFT LoRA for each user, from nothing: seconds of the run, of its training, and the held-out score of each."""
    from safetensors.torch import load_file

    base = open_base(options.base)
    learn = read_rows(data)
    examiner = Examiner(base, make_scorer("exact", learn), options.instruction, longest_answer(learn, base))
    bound = tune_lora(
        base, all_targets(name for name, _ in base.model.named_modules()), rank=8, alpha=16, dropout=0.0, seed=0
    )
    found = []
    for user in users:
        out, began = folder / f"peer-{user}.safetensors", time.monotonic()
        subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--peer", user, "--peer-rows", str(data), "--peer-out", str(out)],
            check=True,
        )
        whole = time.monotonic() - began
        kept = load_file(out)
        training = float(kept.pop("seconds"))
        with torch.no_grad():
            for parameter, name in zip(bound.parameters(), sorted(kept, key=int), strict=True):
                parameter.copy_(kept[name])
        test = [row for row in held if str(row.extra[options.per]) == user]
        scores = examiner.score(examiner.answer(examiner.encode(test), bound), test)
        found.append((whole, training, statistics.mean(score.value for score in scores)))
        tell(f"PEFT, {user}: {whole:.1f} s, {training:.1f} of them training; {found[-1][2]:.2f} held out")
    bound.detach()
    return found


def one(options: argparse.Namespace) -> None:
    """One user's PEFT LoRA, as a process of its own."""
    from safetensors.torch import save_file

    base, rows = open_base(options.base), read_rows(options.peer_rows)
    examiner = Examiner(base, make_scorer("exact", rows), options.instruction, longest_answer(rows, base))
    mine = [row for row in rows if str(row.extra[options.per]) == options.peer]
    bound = tune_lora(
        base, all_targets(name for name, _ in base.model.named_modules()), rank=8, alpha=16, dropout=0.0, seed=0
    )
    encoded = examiner.encode(mine, learn=True)
    adam, draw = torch.optim.Adam(bound.parameters(), lr=options.peer_rate), random.Random(0)
    began = time.monotonic()
    for _ in range(options.peer_epochs):
        draw.shuffle(encoded)
        for at in range(0, len(encoded), 4):
            with bound.active():
                loss = loss_of(base, collate(encoded[at : at + 4])).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
    kept = {str(at): parameter.detach().clone() for at, parameter in enumerate(bound.parameters())}
    save_file(kept | {"seconds": torch.tensor(time.monotonic() - began)}, options.peer_out)


def minus(mine: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Mean difference of users' scores, with a 95 % interval from drawing users."""
    each = np.subtract(mine, theirs)
    means = each[np.random.default_rng(0).integers(len(each), size=(10_000, len(each)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"whit_minus_peft": round(float(each.mean()), 4), "interval": [round(float(low), 4), round(float(high), 4)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--users", type=int, default=60)
    parser.add_argument("--rows", type=int, default=8, help="training rows of a user, about")
    parser.add_argument("--held-out", type=int, default=6, help="held-out rows of a user")
    parser.add_argument("--items", type=int, help="different inputs to learn from, for all users together")
    parser.add_argument("--words", type=int, default=12, help="most words of an input")
    parser.add_argument("--noise", type=float, default=0.05)
    parser.add_argument("--ratings", type=Path, help="real rows instead of constructed ones")
    parser.add_argument("--test-ratings", type=Path)
    parser.add_argument("--per", default="user")
    parser.add_argument("--instruction", default="How is this review?")
    parser.add_argument("--kind", choices=("tiny", "xs"), default="tiny")
    parser.add_argument("--numbers", type=int, default=13)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", nargs="+", default=["*.layers.2[0-9].*"])
    parser.add_argument("--learn-basis", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--answers-only", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--validation", type=float, default=0.15, help="share of the rows that chooses the shrinkage")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--rate", type=float, help="of v; 0.007 with --answers-only, else 0.05. A learned basis has its own"
    )
    parser.add_argument("--peers", type=int, default=5)
    parser.add_argument("--peer-epochs", type=int, default=10)
    parser.add_argument("--peer-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    for name in ("--peer", "--peer-rows", "--peer-out"):  # of the processes that this one starts
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        one(options)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, test = (options.ratings, options.test_ratings) if options.ratings else construct(folder, options)
        settings = TrainSettings(
            data=data, test_data=test, base=options.base, out=folder / "out", per=options.per, score="exact",
            instruction=options.instruction, kind=options.kind, learn_basis=options.learn_basis, rank=options.rank,
            targets=tuple(options.targets),
            numbers=options.numbers if options.kind == "tiny" else None, epochs=options.epochs, batch=options.batch,
            learning_rate=options.rate or (7e-3 if options.answers_only else 5e-2), validation=options.validation,
            seed=options.seed, answers_only=options.answers_only,
        )  # fmt: skip
        about = train_personal(settings, talk=Talk()).to_json()
        rate = 60 * len(about["users"]) / about["seconds"]
        result = {
            "constructed": options.ratings is None, "users": len(about["users"]), "kind": options.kind,
            "learn_basis": about.get("basis"), "numbers": options.numbers if options.kind == "tiny" else "xs",
            "rank": options.rank, "targets": options.targets,
            "training_rows": sum(user["rows"] for user in about["users"]),
            **{key: about[key] for key in ("base", "shared", "personal", "held_out", "shared_over_base",
                                           "personal_over_shared", "counts", "shrinkage", "steps")},
            "seconds": round(about["seconds"], 1), "adapters_per_minute": round(rate, 1),
        }  # fmt: skip
        if options.peers and test is not None:
            users = [user["user"] for user in about["users"] if user["rows"] and user["held_out"]]
            users = users[options.peers // 2 :: max(1, len(users) // options.peers)][: options.peers]
            found = one_by_one(options, folder, data, read_rows(test), users)
            mine = [user for user in about["users"] if user["user"] in users]
            whole, training = (statistics.mean(each[at] for each in found) for at in (0, 1))
            result["peft"] = {
                "users": users, "epochs": options.peer_epochs, "seconds_each": round(whole, 1),
                "of_them_training": round(training, 1), "adapters_per_minute": round(60 / whole, 2),
                "held_out": round(statistics.mean(each[2] for each in found), 4),
                "whit_on_the_same_users": round(statistics.mean(user["personal"] for user in mine), 4),
                **minus([user["personal"] for user in mine], [each[2] for each in found]),
            }  # fmt: skip
            result["times_as_many_a_minute"] = round(rate * whole / 60, 1)
            result["times_as_many_of_training_alone"] = round(rate * training / 60, 1)
        report([result])


if __name__ == "__main__":
    main()
