"""Training by reward in figures: rollouts against TRL's, a population as one batch against swaps, skill held out.

    python benchmarks/reward.py pass --out reward.json          the base's share of right answers, task by task
    python benchmarks/reward.py rollouts --out reward.json      tokens/s of drawn answers, against TRL's GRPOTrainer
    python benchmarks/reward.py population --out reward.json    64 candidates as rows of batches, against 64 swaps
    python benchmarks/reward.py resume --out reward.json        killed with SIGKILL and resumed: the same bytes?
    python benchmarks/reward.py skill --gym chain_sum,max_terms=2,max_digits=2 --out reward.json
    python benchmarks/reward.py sparse --out reward.json        sparse against tiny at equal bytes, supervised
    python benchmarks/reward.py all --tiny                      everything, small, on a random base: a smoke test

Work is done in units (a task, a round, a run). What is done stands in --out and is not done again; after --minutes the
command stops, keeps the state of the unit it was at, and says so (exit status 75): the same command goes on.

`rollouts`: both draw --samples answers to each of --prompts prompts at temperature 1, every answer --tokens long (no
token ends an answer on either side), with an adapter on: whit with a `tiny` one, TRL with PEFT's LoRA r=8; TRL's side
is the time inside `model.generate`, as its trainer calls it. `population`: the peer loads each candidate's vector into
the adapter in turn and answers the same prompts with whit's own batched decoder, so that what is compared is the swap
alone; with --rows 1 a candidate answers one prompt. `skill`: `whit train --reward` for each size, optimiser and seed
(and `whit train` on the same rows for `--optimizers supervised`, where --reward is a name that --score has too),
proved on held-out rows: skill apart from format, McNemar's p, seconds. `sparse`: `whit train` on a shared task.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import INSTRUCTIONS, data_folder, open_base, report, tell

from whit.adapters.targets import all_targets
from whit.adapters.tunable import BoundVector, tune_vector
from whit.adapters.vector import nearest_budgets, tiny_spec
from whit.bases import Base
from whit.errors import Interrupted
from whit.evaluation.decoding import Decoder
from whit.files import atomic_write
from whit.settings import TrainSettings
from whit.training.rollouts import roll_out

GO_ON = 75  # exit status: not all is done yet
#: Tasks of which some may be neither too easy nor too hard for a base of 135 M parameters.
CANDIDATES = (
    "chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=1",
    "chain_sum,min_terms=2,max_terms=2,min_digits=2,max_digits=2",
    "chain_sum,min_terms=3,max_terms=3,min_digits=1,max_digits=1",
    "basic_arithmetic,min_terms=2,max_terms=2,min_digits=1,max_digits=1",
    "products,min_terms=2,max_terms=2,min_digits=1,max_digits=1",
    "letter_counting,min_words=3,max_words=5",
    "spell_backward,min_word_len=3,max_word_len=4",
    "number_sorting,min_numbers=3,max_numbers=3,min_decimals=0,max_decimals=0",
    "leg_counting,min_animals=1,max_animals=2,min_instances=1,max_instances=3",
    "largest_island,min_rows=3,max_rows=3,min_cols=3,max_cols=3",
    "propositional_logic,min_vars=2,max_vars=2",
    "count_primes,min_n=1,max_n=20",
    "gcd,min_numbers=2,max_numbers=2,min_value=1,max_value=20",
    "time_intervals",
    "calendar_arithmetic",
    "word_sorting,min_words=3,max_words=3",
)
PLAIN = "Answer with the result alone."


class Kept:
    """Results by key, in a JSON file where one is named; `unit` runs what is not there yet."""

    def __init__(self, path: Path | None, minutes: float) -> None:
        self.path, self.until = path, time.monotonic() + 60 * minutes
        self.found: dict[str, dict[str, Any]] = {}
        if path is not None and path.is_file():
            self.found = {row["key"]: row for row in json.loads(path.read_text("utf-8"))}
        self.left = 0

    def unit(self, key: str, work: Callable[[], dict[str, Any]]) -> None:
        """Do it, unless it was done, or the time is over."""
        if key in self.found:
            return
        if time.monotonic() >= self.until:
            self.left += 1
            return
        began = time.monotonic()
        try:
            with self._clock():
                made = work()
        except (KeyboardInterrupt, Interrupted):
            self.left += 1
            if time.monotonic() < self.until:
                raise
            tell(f"{key}: not done yet")
            return
        self.found[key] = {"key": key, **made, "unit_s": round(time.monotonic() - began, 1)}
        tell(f"{key}: {json.dumps(made)[:300]}")
        if self.path is not None:
            atomic_write(self.path, json.dumps(list(self.found.values()), indent=1) + "\n")

    @contextlib.contextmanager
    def _clock(self) -> Iterator[None]:
        """A block that Ctrl-C seems to end when the time is over: a run then saves its state."""

        def end(*given: object) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, end)
        signal.setitimer(signal.ITIMER_REAL, max(1.0, self.until - time.monotonic()))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def problems(base: Base, count: int) -> list[list[int]]:
    """Prompts of sums, as tokens."""
    from whit.data.rows import Turn

    draw = np.random.default_rng(0)
    texts = [f"What is {a} + {b}? Think, then answer." for a, b in draw.integers(10, 99, size=(count, 2)).tolist()]
    return [base.encode(str(text)) for text in base.template.render_many([(Turn("user", text),) for text in texts])]


@contextlib.contextmanager
def tiny_vector(base: Base, numbers: int = 13) -> Iterator[BoundVector]:
    targets = all_targets(name for name, _ in base.model.named_modules())
    bound = tune_vector(base, tiny_spec([target.index for target in targets], numbers))
    try:
        with torch.no_grad():
            bound.v.copy_(0.05 * torch.randn(numbers, generator=torch.Generator().manual_seed(0)))
        yield bound
    finally:
        bound.detach()


def endless(base: Base) -> Base:
    """The same base without a token that ends an answer, so that all answers are equally long."""
    return replace(base, stop_ids=())


def pass_at_one(args: argparse.Namespace, base: Base, gym: str | None) -> dict[str, Any]:
    """The share of `--limit` problems, generated or of --data, that the base gets right, greedily and drawn."""
    from whit.data.rows import read_rows
    from whit.evaluation.proof import Examiner
    from whit.rewards import make_reward
    from whit.rewards.gym import write_rows

    if gym is None:
        rows = list(read_rows(args.data))[: args.limit]
    else:
        with tempfile.TemporaryDirectory() as folder:
            rows = list(read_rows(write_rows(Path(folder) / "rows.jsonl", gym, count=args.limit, seed=7)))
    reward = make_reward([args.reward if gym is None else f"gym:{gym}"], rows)
    try:
        examiner = Examiner(base, reward.scorer, args.instruction, args.tokens)
        encoded = examiner.encode(rows)
        greedy = examiner.score(examiner.answer(encoded, None), rows)
        with tiny_vector(base) as bound:
            with torch.no_grad():
                bound.v.zero_()
            asked = [row for row in encoded for _ in range(args.samples)]
            drawn = roll_out(base, bound, [row.prompt_ids for row in asked], most=args.tokens, seed=(0, 0))
        grades = reward.grade([each.text for each in drawn], [row.row for row in asked])
    finally:
        reward.close()
    right = np.array([grade.right for grade in grades]).reshape(len(rows), args.samples)
    count = len(rows)
    return {
        "figure": "pass", "base": base.name, "task": gym or args.data.stem, "rows": count, "samples": args.samples,
        "greedy_right": sum(score.value >= 1 for score in greedy) / count,
        "greedy_lenient": sum(score.lenient >= 1 for score in greedy) / count,
        "greedy_format": sum(score.valid for score in greedy) / count,
        "drawn_right": float((right >= 1).mean()), "groups_that_differ": float((np.ptp(right, axis=1) > 0).mean()),
        "cut": sum(each.cut for each in drawn) / len(drawn),
    }  # fmt: skip


def rollouts(args: argparse.Namespace, base: Base, turn: int) -> dict[str, Any]:
    prompts = problems(base, args.prompts)
    asked = [prompt for prompt in prompts for _ in range(args.samples)]
    with tiny_vector(base) as bound:
        roll_out(endless(base), bound, asked[:2], most=2, seed=(1, turn))
        began = time.perf_counter()
        drawn = roll_out(endless(base), bound, asked, most=args.tokens, seed=(0, turn))
        ours = sum(len(each.ids) for each in drawn) / (time.perf_counter() - began)
    theirs = trl_rate(args, base, prompts)
    return {
        "figure": "rollouts", "base": base.name, "dtype": base.dtype, "prompts": args.prompts, "samples": args.samples,
        "tokens": args.tokens, "whit_tokens_per_s": ours, "trl_tokens_per_s": theirs, "ratio": ours / theirs,
    }  # fmt: skip


def trl_rate(args: argparse.Namespace, base: Base, prompts: list[list[int]]) -> float:
    """Tokens a second inside TRL's own generation, in one step of its trainer; model weights are the same."""
    import copy

    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    spent: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, max_steps=1, num_generations=args.samples, temperature=1.0, top_k=0, top_p=1.0, beta=0.0,
            per_device_train_batch_size=args.prompts * args.samples, max_completion_length=args.tokens,
            report_to=[], use_cpu=not torch.cuda.is_available(), bf16=False, gradient_checkpointing=False,
            save_strategy="no", logging_strategy="no", disable_tqdm=True, shuffle_dataset=False,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=copy.deepcopy(base.model),
            reward_funcs=lambda completions, **more: [float(len(text)) for text in completions],
            args=config,
            train_dataset=Dataset.from_list([{"prompt": base.decode(prompt)} for prompt in prompts]),
            processing_class=base.tokenizer,
            peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"),
        )
        # A token that is none ends an answer: TRL then draws `max_completion_length` tokens, as whit does here.
        trainer.generation_config.eos_token_id = [base.model.config.vocab_size + 1]
        inner = trainer.model.generate

        def watched(*inputs: Any, **more: Any) -> Any:
            began = time.perf_counter()
            found = inner(*inputs, **more)
            width = more["input_ids"].shape[1] if "input_ids" in more else inputs[0].shape[1]
            spent.append((time.perf_counter() - began, found.shape[0] * (found.shape[1] - width)))
            raise StopIteration  # the step that follows is not what is measured

        trainer.model.generate = watched
        with contextlib.suppress(StopIteration):
            trainer.train()
    if not spent:
        raise SystemExit("TRL did not call model.generate; its trainer has changed")
    if spent[0][1] != args.prompts * args.samples * args.tokens:
        raise SystemExit(f"TRL drew {spent[0][1]} tokens where {args.prompts * args.samples * args.tokens} were asked")
    return spent[0][1] / spent[0][0]


def population(args: argparse.Namespace, base: Base) -> dict[str, Any]:
    prompts, free = problems(base, args.rows), endless(base)
    with tiny_vector(base) as bound:
        draw = torch.Generator().manual_seed(1)
        candidates = 0.1 * torch.randn(args.population, bound.numbers, generator=draw)
        vectors = candidates.repeat_interleave(len(prompts), dim=0)
        Decoder(free, bound, vectors=vectors[:2]).answers((prompts * 2)[:2], most=2)
        began = time.perf_counter()
        one = Decoder(free, bound, vectors=vectors).answers(prompts * args.population, most=args.tokens)
        middle = time.perf_counter()
        other: list[list[int]] = []
        for vector in candidates:
            with torch.no_grad():
                bound.v.copy_(vector)
            other += Decoder(free, bound).answers(prompts, most=args.tokens)
        ended = time.perf_counter()
    return {
        "figure": "population", "base": base.name, "dtype": base.dtype, "population": args.population,
        "prompts_each": args.rows, "tokens": args.tokens, "batch_s": middle - began, "swaps_s": ended - middle,
        "ratio": (ended - middle) / (middle - began),
        "answers_equal": sum(a == b for a, b in zip(one, other, strict=True)) / len(one),
    }  # fmt: skip


def by_reward(args: argparse.Namespace, optimizer: str, numbers: int, seed: int, out: Path) -> TrainSettings:
    """Settings of one run; 0 numbers are LoRA r=8."""
    ways: dict[str, Any] = {"reward": (args.reward or f"gym:{args.gym}",), "optimizer": optimizer}
    if optimizer == "supervised":
        ways = {"score": args.reward}
    return TrainSettings(
        data=args.data, base=args.base, dtype=args.dtype, out=out, limit=args.limit, seed=seed, **ways,
        epochs=args.epochs, numbers=numbers or None, kind="tiny" if numbers else "lora",
        rank=args.rank if numbers else 8,
        evaluations=args.evaluations, max_tokens=args.tokens, samples=args.samples, population=args.candidates,
        batch=args.batch, instruction=args.instruction, learning_rate=args.rate, sigma=args.sigma,
        validation_rows=args.validation_rows, shots=(4,), resume=True, kl=args.kl,
    )  # fmt: skip


def skill(args: argparse.Namespace, optimizer: str, numbers: int, seed: int, work: Path) -> dict[str, Any]:
    from whit.talk import Talk
    from whit.verbs.reward import MEASURES_NAME, train_reward
    from whit.verbs.train import train

    settings = by_reward(args, optimizer, numbers, seed, work)
    result = (train if optimizer == "supervised" else train_reward)(settings, talk=Talk())
    plain, card = result.to_json(), result.card
    drawn = {}
    if optimizer != "supervised":
        steps = [json.loads(line) for line in (work / MEASURES_NAME).read_text("utf-8").splitlines()]
        tenth = max(1, len(steps) // 10)
        for when, part in (("first", steps[:tenth]), ("last", steps[-tenth:])):
            drawn[f"drawn_skill_{when}"] = sum(step["skill"] for step in part) / tenth
    wanted = (
        "rows", "base", "tuned", "difference", "interval", "p_value", "base_skill", "tuned_skill", "skill_difference",
        "skill_interval", "skill_p_value", "format_difference", "verdict", "answers", "seconds", "steps", "best_step",
    )  # fmt: skip
    return {
        "figure": "skill", "task": args.gym if args.data is None else args.data.stem, "base_model": args.base,
        "optimizer": optimizer, "numbers": result.adapter.numbers, "rank": settings.rank or 2, "seed": seed,
        "rate": args.rate, "epochs": args.epochs,
        **{name: value for name, value in (("sigma", args.sigma), ("kl", args.kl)) if value},
        **drawn, **{key: plain[key] for key in wanted if key in plain},
        "baselines": {
            name: {part: each[part] for part in ("score", "difference", "interval", "p_value")}
            for name, each in plain["baselines"].items()
        },
        "forgetting": card.forgetting.after - card.forgetting.before,
    }  # fmt: skip


def resume(args: argparse.Namespace, work: Path, seed: int) -> dict[str, Any]:
    """A run that is killed with SIGKILL some time after its first checkpoint, and resumed, against one left alone."""
    words = [sys.executable, "-c", "from whit.cli import main; main()", "train"]
    words += [str(args.data)] if args.data else []
    words += ["--reward", args.reward or f"gym:{args.gym}", "--base", args.base]
    words += ["--dtype", args.dtype, "--limit", str(args.limit), "--numbers", "13", "--max-tokens", str(args.tokens)]
    words += ["--samples", str(args.samples), "--batch", str(args.batch), "--seed", str(seed), "--no-baselines"]
    words += ["--epochs", str(args.epochs or 0.1), "--evaluations", "3", "--validation-rows", "16", "--threads", "1"]

    def go(name: str, *more: str) -> None:
        done = subprocess.run([*words, "--out", str(work / name), *more], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)

    if not (work / "whole" / "adapter.whit").is_file():
        go("whole", "--resume")
    killed = subprocess.Popen([*words, "--out", str(work / "cut"), "--resume"], stderr=subprocess.DEVNULL)
    state = work / "cut" / "state" / f"seed-{seed}-run.safetensors"
    while not state.is_file() and killed.poll() is None:
        time.sleep(0.01)
    time.sleep(random.Random(seed).uniform(0, 5))
    was_running = killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    go("cut", "--resume")
    whole, cut = ((work / name / "adapter.whit").read_bytes() for name in ("whole", "cut"))
    return {"figure": "resume", "base": args.base, "seed": seed, "killed_while_running": was_running,
            "same_bytes": whole == cut}  # fmt: skip


def sparse(args: argparse.Namespace, kind: str, numbers: int, seed: int, work: Path) -> dict[str, Any]:
    """A supervised run on a shared task; sparse of so many numbers, or tiny of as many bytes as that takes."""
    from whit.talk import Talk
    from whit.verbs.train import train

    settings = TrainSettings(
        data=args.data or data_folder() / args.task / "train.jsonl", base=args.base, dtype=args.dtype, out=work,
        limit=args.limit, seed=seed, kind=kind, numbers=numbers,
        instruction=INSTRUCTIONS[args.task], validation=0.2, test=0.3, evaluations=args.evaluations,
        epochs=args.epochs, learning_rate=args.rate if kind == "sparse" else None, shots=(), resume=True,
        validation_rows=args.validation_rows,
    )  # fmt: skip
    plain = train(settings, talk=Talk()).to_json()
    return {
        "figure": "sparse", "task": args.task, "base_model": args.base, "kind": kind, "seed": seed, "rate": args.rate,
        **{key: plain[key] for key in ("numbers", "payload_bytes", "rows", "base", "tuned", "interval", "p_value")},
    }  # fmt: skip


def equal_bytes(base: Base, payload: int) -> int:
    """The numbers of a `tiny` adapter whose payload is nearest to so many bytes."""
    modules = len(all_targets(name for name, _ in base.model.named_modules()))
    return min(nearest_budgets(payload // 2, modules, 4), key=lambda count: abs(2 * count - payload))


def units(args: argparse.Namespace, kept: Kept, what: str) -> None:
    """All units of one part."""
    work = args.work / what

    def named(*parts: object) -> str:
        return " ".join([what, args.base, *map(str, parts)])

    if what in ("pass", "rollouts", "population"):
        gyms: Sequence[str | None] = args.tasks or (CANDIDATES[:1] if args.tiny else CANDIDATES)
        if args.what == "pass" and args.data is not None:
            gyms = [None]
        keys = {
            "pass": [named(gym or args.data.stem, args.tokens, args.instruction or "") for gym in gyms],
            "rollouts": [named(args.prompts, args.samples, args.tokens, turn) for turn in range(args.rounds)],
            "population": [named(args.population, args.rows, args.tokens, turn) for turn in range(args.rounds)],
        }[what]
        if all(key in kept.found for key in keys):
            return
        base = open_base(args.base, args.dtype)
        for place, key in enumerate(keys):
            if what == "pass":
                kept.unit(key, lambda place=place: pass_at_one(args, base, gyms[place]))
            elif what == "rollouts":
                kept.unit(key, lambda place=place: rollouts(args, base, place))
            else:
                kept.unit(key, lambda: population(args, base))
    elif what == "resume":
        for seed in range(args.seeds):
            kept.unit(named(seed), lambda seed=seed: resume(args, work / f"{seed}", seed))
    elif what == "skill":
        task = args.gym if args.data is None else args.data.stem
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            for optimizer in args.optimizers:
                for numbers in args.numbers:
                    more = f"sigma={args.sigma}" if args.sigma else f"kl={args.kl}" if args.kl else ""
                    key = named(task, optimizer, numbers, seed, args.rate or "", args.epochs or "", more).rstrip()
                    folder = work / key.replace("/", "-").replace(" ", "_").replace("=", "-").replace(",", "-")
                    kept.unit(key, lambda o=optimizer, n=numbers, s=seed, f=folder: skill(args, o, n, s, f))
    else:
        for seed in range(args.seeds):
            for numbers in args.numbers:
                key = named(args.task, "sparse", numbers, seed, args.rate or "", args.epochs or "")
                kept.unit(key, lambda n=numbers, s=seed: sparse(args, "sparse", n, s, work / f"sparse-{n}-{s}"))
                if key not in kept.found:
                    continue
                peer = equal_bytes(open_base(args.base, args.dtype), kept.found[key]["payload_bytes"])
                key = named(args.task, "tiny", peer, seed, args.epochs or "")
                kept.unit(key, lambda n=peer, s=seed: sparse(args, "tiny", n, s, work / f"tiny-{n}-{s}"))


PARTS = ("pass", "rollouts", "population", "resume", "skill", "sparse")


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=(*PARTS, "all"))
    parser.add_argument("--out", type=Path, help="JSON file of results; what stands there is not done again")
    parser.add_argument("--work", type=Path, help="folder for runs (default: beside --out)")
    parser.add_argument("--minutes", type=float, default=8.0, help="stop after so long; the same command goes on")
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tiny", action="store_true", help="a random tiny base and small sizes: a smoke test")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--population", type=int, default=64)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--tasks", nargs="+", help="pass: generators, as after gym:")
    parser.add_argument("--gym", default="chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=1")
    parser.add_argument("--task", default="sst2", choices=sorted(INSTRUCTIONS), help="sparse: a shared task")
    parser.add_argument("--reward", help="instead of --gym, with --data")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--instruction", default=PLAIN)
    parser.add_argument("--optimizers", nargs="+", default=["grpo", "es"])
    parser.add_argument("--numbers", type=int, nargs="+", default=[13, 52, 210], help="0 is LoRA r=8")
    parser.add_argument("--rank", type=int, help="skill: of tiny adapters (3,360 numbers need 4)")
    parser.add_argument("--rate", type=float)
    parser.add_argument("--sigma", type=float, help="es, cma: size of the noise, where not the default")
    parser.add_argument("--kl", type=float, default=0.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--evaluations", type=int, default=4)
    parser.add_argument("--validation-rows", type=int, default=100)
    args = parser.parse_args(words)
    if "supervised" in args.optimizers and (args.data is None or args.reward is None):
        parser.error("--optimizers supervised needs --data and --reward, whose name says how answers are scored")
    if args.tiny:
        make_tiny(args)
    args.work = args.work or (args.out.with_suffix(".work") if args.out else Path(tempfile.mkdtemp()))
    kept = Kept(args.out, args.minutes)
    before = set(kept.found)
    for what in PARTS if args.what == "all" else (args.what,):
        units(args, kept, what)
    report([row for key, row in kept.found.items() if key not in before])
    if kept.left:
        tell(f"{kept.left} units are left; the same command goes on")
    return GO_ON if kept.left else 0


def make_tiny(args: argparse.Namespace) -> None:
    """Sizes at which everything runs in a minute, on a random base whose rewards are shaped so that they vary."""
    from whit.testing import write_rows, write_tiny_base

    folder = Path(tempfile.mkdtemp())
    args.base = str(write_tiny_base(folder / "base", layers=2, hidden=32, heads=2, kv_heads=1, ffn=64, vocab=384))
    (folder / "letters.py").write_text("def small(answer, row): return min(1, sum(c.islower() for c in answer) / 9)\n")
    args.data, args.reward = write_rows(folder / "rows.jsonl", 90), f"{folder / 'letters.py'}:small"
    args.dtype, args.rounds, args.prompts, args.samples, args.tokens, args.population = "float32", 1, 2, 2, 4, 4
    args.numbers, args.optimizers, args.seeds, args.limit, args.epochs = [13], ["grpo", "es"], 1, 90, 0.2
    args.candidates, args.sigma, args.validation_rows = 4, 1.0, 8


if __name__ == "__main__":
    sys.exit(main())
