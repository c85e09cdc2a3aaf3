"""Every option of every command, in one place: the source of flags, of `whit.toml`, of the reference and of cards.

One frozen dataclass a command. A field's metadata holds its help and its limits. Names are spelt with `_` here, with
`-` on the command line and either way in `whit.toml`. Knows nothing of what commands do; imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

DEFAULT_BASE = "meeny"
KINDS = ("xs", "tiny", "lora", "sparse", "auto")
BY_REWARD = ("grpo", "dr-grpo", "es", "cma")
OPTIMIZERS = ("adam", "natural", *BY_REWARD)
DTYPES = ("auto", "float32", "bfloat16")
QUANTIZED = ("nf4", "int8")
ENGINES = ("torch", "wasm")
NUMBER_TYPES = ("bfloat16", "float16", "float32")


def argument(help: str, **more: Any) -> Any:
    """A positional argument; `many=True` takes any number, `optional=True` none or one."""
    return field(default=() if more.get("many") else None, metadata={"help": help, "positional": True, **more})


def option(default: Any, help: str, **more: Any) -> Any:
    """An option; `choices`, `least`, `most`, `many` and `short` say what it takes."""
    return field(default=default, metadata={"help": help, "positional": False, **more})


@dataclass(frozen=True)
class DataColumns:
    """Which columns of a file are what."""

    prompt_column: str | None = option(None, "Column with the input (found by itself where it has a usual name).")
    completion_column: str | None = option(None, "Column with the wanted answer.")


@dataclass(frozen=True)
class TrainSettings(DataColumns):
    """Options of `whit train`."""

    data: Path = argument(
        "Rows to learn from: JSONL, CSV, Parquet or a datasets folder (with --reward gym:NAME they are generated).",
        optional=True,
    )
    base: str = option(
        DEFAULT_BASE, "The model to specialise: a name of `whit bases`, a .gguf file, a folder or a hub id."
    )
    out: Path | None = option(None, "Folder for the adapter, its card and the report (default: the data's name).")
    instruction: str | None = option(None, "What the base is told before every row.")
    teacher: tuple[Path, ...] = option(
        (),
        "Another adapter of the base, a LoRA say: learn what it expects, not the answers alone; so it is made smaller. "
        "Of several, the mean.",
        many=True,
    )
    unlabelled: Path | None = option(None, "--teacher: rows without answers to learn from too; the teacher gives them.")
    per: str | None = option(None, "Train a vector for each value of this column (a user, say), all in one run.")
    learn_basis: bool = option(
        False, "--per: first learn the directions from everybody's rows: a few kB that all users' tiny adapters share."
    )
    answers_only: bool = option(
        False,
        "--learn-basis: adapters act from a prompt's last token on; prompts are read by the bare base, once for all "
        "users, in training and in serving.",
    )
    kind: str | None = option(
        None,
        "Kind of adapter; by default xs, but lora for the small built-in bases and where rows have more than 20 "
        "different answers. auto tries sizes and keeps "
        "the smallest that is not separably worse than the best.",
        choices=KINDS,
    )
    rank: int | None = option(None, "Rank r of the adapter (default: xs and tiny 2, lora 8).", least=1, most=64)
    numbers: int | None = option(
        None, "How many numbers to train, exactly (makes the kind `tiny`, unless it is sparse).", least=1
    )
    groups: int | None = option(None, "tiny: how many groups of modules share a vector.", least=1)
    alpha: float | None = option(None, "lora: scale alpha (default: twice the rank).")
    dropout: float = option(0.0, "lora: dropout.", least=0.0, most=0.9)
    targets: tuple[str, ...] = option(
        ("all",), "Projections to adapt: all, q_proj, …, or a pattern such as '*.layers.3.*'.", many=True
    )
    number_type: str = option("bfloat16", "How vector adapters store their numbers.", choices=NUMBER_TYPES)
    score: str = option(
        "auto", "How answers are scored: auto, label, exact, numeric, json, json-fields, or module:function."
    )
    group_column: str | None = option(None, "Column whose rows must stay on one side of the split (a customer, say).")
    validation: float = option(0.1, "Share of rows that choose the best step.", least=0.0, most=0.8)
    test: float = option(0.2, "Share of rows held out for the verdict.", least=0.0, most=0.8)
    test_data: Path | None = option(None, "Held-out rows from a file of their own, instead of a share.")
    limit: int | None = option(None, "Use only the first N rows of the file.", least=1)
    epochs: float | None = option(
        None,
        "Passes over the training rows (default: 4,000 rows in all, 1 to 12; below 20 M parameters 2,000, 4 to 12).",
        least=0.01,
    )
    batch: int | None = option(
        None, "Rows in a step (default: 4; 8 for bases below 20 M parameters, 16 below 2 M; by reward 4).", least=1
    )
    accumulate: int = option(1, "Parts a step is computed in, to save memory.", least=1)
    learning_rate: float | None = option(None, "Peak learning rate (default: by kind and optimiser).", least=1e-15)
    warmup: float = option(0.03, "Share of the steps in which the learning rate rises.", least=0.0, most=1.0)
    optimizer: str = option(
        "adam",
        "adam, or natural: full-matrix natural gradient (vector adapters). With --reward: grpo (its default), dr-grpo, "
        "or by forward passes alone es or cma (vector adapters).",
        choices=OPTIMIZERS,
    )
    reward: tuple[str, ...] = option(
        (),
        "Train by reward: exact, numeric, label, json[:SCHEMA.json], regex:PATTERN, gym:NAME[,KEY=VALUE…] or "
        "module:function. Several are summed, each as WEIGHT*REWARD; the first is the skill that is proved.",
        many=True,
    )
    format_weight: float = option(0.0, "--reward: what keeping the format adds to it.", least=0.0)
    reward_seconds: float = option(5.0, "--reward: what a function may take for one answer.", least=0.1)
    samples: int = option(8, "grpo: answers drawn to each prompt.", least=2)
    updates: int = option(1, "grpo: steps taken from the same answers.", least=1)
    kl: float = option(0.0, "grpo: weight of a KL term that holds answers near the base's own.", least=0.0)
    population: int = option(32, "es, cma: candidates in a step, all in one batch.", least=2)
    sigma: float | None = option(
        None, "es, cma: size of the noise (default: 0.1, on bases from 20 M parameters on 0.02).", least=0.000001
    )
    warm_start: str | None = option(None, "--reward: begin from this adapter, of the same kind and size.")
    evaluations: int = option(8, "How often the validation rows are answered during training.", least=1)
    validation_rows: int = option(200, "At most this many validation rows are answered each time.", least=1)
    patience: int = option(4, "Stop after this many evaluations without a better score.", least=1)
    seeds: int = option(
        1, "Train so many times from different seeds; keep the best on validation or, if no worse, their mean.", least=1
    )
    seed: int = option(0, "Seed of the split, the order of rows and the starting point.", least=0)
    shots: tuple[int, ...] = option(
        (2, 4, 8), "Few-shot baselines to try; the best on validation is reported.", many=True, least=1
    )
    baselines: bool = option(True, "Measure the baselines (few-shot, null adapter, linear classifier).")
    max_tokens: int | None = option(None, "Longest answer in tokens (default: by the training answers).", least=1)
    dtype: str = option("auto", "Number type of the base.", choices=DTYPES)
    quantize: str | None = option(
        None,
        "Hold the base's projections in 4 or 8 bits (bitsandbytes); the same as the suffix in smollm2:nf4.",
        choices=QUANTIZED,
    )
    device: str = option("cpu", "Where the base computes: cpu, cuda or cuda:N.")
    checkpointing: bool = option(False, "Compute every layer twice, for a fraction of the memory of a step.")
    processes: int = option(1, "Processes that share each step's rows (torchrun's are counted by themselves).", least=1)
    fsdp: bool = option(False, "--processes: each holds its share of the base's layers only (FSDP).")
    threads: int | None = option(None, "Threads to compute with (default: all cores).", least=1)
    resume: bool = option(False, "Go on from where an interrupted run of the same settings stopped.")
    overwrite: bool = option(False, "Replace the adapter of another run, where --out holds one.")
    ray: str | None = option(
        None, "Train on the Ray cluster at this address (HOST:PORT, ray://HOST:PORT or auto), and fetch the adapter."
    )
    stop: bool = option(False, "--ray: end this command's run on the cluster instead, and what it keeps there.")


def _as_in_training(name: str) -> Any:
    """The option of that name as `whit train` has it: one default, one help text."""
    part = next(part for part in fields(TrainSettings) if part.name == name)
    return field(default=part.default, metadata=part.metadata)


@dataclass(frozen=True)
class BakeSettings(DataColumns):
    """Options of `whit bake`."""

    guide: Path = argument("The standing instruction: a text file.")
    inputs: Path = argument("Inputs such as will come; gold answers in them are used to judge, never to learn from.")
    base: str = _as_in_training("base")
    out: Path | None = option(None, "Folder for the adapter, its card and the report (default: the guide's name).")
    instruction: str | None = option(None, "A short instruction that stays before every input (default: none).")
    teacher_url: str | None = option(
        None, "Learn from a model behind this OpenAI-compatible address (its /v1), not from the base itself."
    )
    teacher_model: str | None = option(None, "--teacher-url: the model to ask there.")
    teacher_key: str = option("OPENAI_API_KEY", "--teacher-url: the environment variable that holds the key.")
    teacher_timeout: float = option(60.0, "--teacher-url: seconds that an answer may take.", least=0.1)
    examples: Path | None = option(None, "Rows that stand before every input as earlier turns: baked with the guide.")
    top: int = option(20, "Likeliest tokens of the teacher's distributions that are kept.", least=1, most=1000)
    kind: str | None = option(
        None,
        "Kind of adapter; by default lora for the small built-in bases and xs for others.",
        choices=("xs", "tiny", "lora"),
    )
    rank: int | None = _as_in_training("rank")
    numbers: int | None = _as_in_training("numbers")
    groups: int | None = _as_in_training("groups")
    alpha: float | None = _as_in_training("alpha")
    dropout: float = _as_in_training("dropout")
    targets: tuple[str, ...] = _as_in_training("targets")
    number_type: str = _as_in_training("number_type")
    score: str = _as_in_training("score")
    validation: float = _as_in_training("validation")
    test: float = _as_in_training("test")
    test_data: Path | None = option(None, "Held-out inputs from a file of their own, instead of a share.")
    limit: int | None = _as_in_training("limit")
    epochs: float | None = _as_in_training("epochs")
    batch: int | None = _as_in_training("batch")
    accumulate: int = _as_in_training("accumulate")
    learning_rate: float | None = _as_in_training("learning_rate")
    warmup: float = _as_in_training("warmup")
    evaluations: int = _as_in_training("evaluations")
    validation_rows: int = _as_in_training("validation_rows")
    patience: int = _as_in_training("patience")
    seeds: int = _as_in_training("seeds")
    seed: int = _as_in_training("seed")
    max_tokens: int | None = option(None, "Longest answer in tokens (default: by the gold answers, else 128).", least=1)
    dtype: str = _as_in_training("dtype")
    quantize: str | None = _as_in_training("quantize")
    device: str = _as_in_training("device")
    checkpointing: bool = _as_in_training("checkpointing")
    threads: int | None = _as_in_training("threads")
    resume: bool = _as_in_training("resume")
    overwrite: bool = _as_in_training("overwrite")


@dataclass(frozen=True)
class SweepSettings:
    """Options of `whit sweep`."""

    grid: Path = argument("TOML: data, [train] for what all variants share, [grid] or [[variant]] for what they vary.")
    out: Path | None = option(None, "Folder for the winner, the table and the figure (default: the grid's name).")
    halvings: int = option(
        0, "Successive halving: so often a share of the steps first, and the better half goes on.", least=0, most=6
    )
    threads: int | None = option(None, "Threads for each variant (default: all cores; with --ray a share).", least=1)
    resume: bool = option(False, "Go on with an interrupted sweep of the same grid.")
    ray: str | None = option(
        None, "Train the variants on the Ray cluster at this address (HOST:PORT, ray://HOST:PORT or auto)."
    )
    stop: bool = _as_in_training("stop")


@dataclass(frozen=True)
class EvalSettings(DataColumns):
    """Options of `whit eval`."""

    adapter: str = argument("Folder, file, text form or STORE#NAME of the adapter.")
    data: Path = argument("Rows that training never saw.")
    base: str | None = option(None, "The base (default: the one on the adapter's card).")
    instruction: str | None = option(None, "What the base is told before every row (default: as in training).")
    score: str | None = option(None, "How answers are scored (default: as in training).")
    limit: int | None = option(None, "Use only the first N rows of the file.", least=1)
    baselines: bool = option(False, "Measure the null adapter too.")
    report: Path | None = option(None, "Write a report.html here.")
    max_tokens: int | None = option(None, "Longest answer in tokens.", least=1)
    dtype: str = option("auto", "Number type of the base.", choices=DTYPES)
    device: str = _as_in_training("device")
    threads: int | None = option(None, "Threads to compute with (default: all cores).", least=1)


@dataclass(frozen=True)
class RunSettings:
    """Options of `whit run`."""

    adapter: str = argument("Folder, file, text form or STORE#NAME of the adapter; or a base's name, to ask it bare.")
    prompt: str | None = argument(
        "The input; without it, or as -, every line of standard input is one, answered by a line as soon as it comes.",
        optional=True,
    )
    base: str | None = option(None, "The base (default: the one on the adapter's card).")
    instruction: str | None = option(None, "What the base is told first (default: as in training).")
    bare: bool = option(False, "Answer with the base alone.")
    max_tokens: int = option(256, "Longest answer in tokens.", least=1)
    temperature: float = option(0.0, "0 takes the likeliest token; more draws more freely.", least=0.0, most=10.0)
    top_p: float = option(1.0, "Draw from the likeliest tokens that make up this share.", least=0.01, most=1.0)
    seed: int = option(0, "Seed of the draws.", least=0)
    engine: str = option("torch", "What computes: torch, or wasm (a GGUF base; needs no torch).", choices=ENGINES)
    dtype: str = option("auto", "Number type of the base.", choices=DTYPES)
    device: str = _as_in_training("device")
    threads: int | None = option(None, "Threads to compute with (default: all cores).", least=1)


@dataclass(frozen=True)
class ChatSettings:
    """Options of `whit chat`."""

    adapter: str = argument("Folder, file, text form or STORE#NAME of the adapter; or a base's name.")
    base: str | None = option(None, "The base (default: the one on the adapter's card).")
    instruction: str | None = option(None, "What the base is told first (default: as in training).")
    max_tokens: int = option(256, "Longest answer in tokens.", least=1)
    temperature: float = option(0.7, "0 takes the likeliest token; more draws more freely.", least=0.0, most=10.0)
    top_p: float = option(0.95, "Draw from the likeliest tokens that make up this share.", least=0.01, most=1.0)
    seed: int = option(0, "Seed of the draws.", least=0)
    dtype: str = option("auto", "Number type of the base.", choices=DTYPES)
    device: str = _as_in_training("device")
    threads: int | None = option(None, "Threads to compute with (default: all cores).", least=1)


@dataclass(frozen=True)
class CompareSettings:
    """Options of `whit compare`."""

    adapter: str = argument("Folder made by `whit train`.")
    rows: int = option(20, "How many held-out rows to show, those that differ first.", least=1)


@dataclass(frozen=True)
class ShowSettings:
    """Options of `whit show`."""

    adapter: str = argument("Folder, file, text form or STORE#NAME of the adapter.")
    qr: bool = option(False, "Draw the text form as a QR code.")


@dataclass(frozen=True)
class ExportSettings:
    """Options of `whit export`."""

    adapter: str = argument("Folder, file, text form or STORE#NAME of the adapter.")
    out: Path = argument("Folder or file to write.")
    to: str = option("lora", "Form to export to.", choices=("peft", "lora", "merged", "gguf-lora"))
    base: str | None = option(None, "The base (default: the one on the adapter's card).")
    number_type: str = option(
        "auto", "merged: number type to write; auto is the base's own where that keeps the update.",
        choices=("auto", *NUMBER_TYPES),
    )  # fmt: skip
    check: bool = option(True, "Load the export back and compare its logits with whit's own.")


@dataclass(frozen=True)
class ImportSettings:
    """Options of `whit import`."""

    folder: Path = argument("PEFT folder: a LoRA or a TinyLoRA, in safetensors.")
    out: Path = argument("Folder to write.")
    base: str | None = option(None, "The base that it was trained on (default: the one that the folder names).")
    check: bool = option(True, "Compare the logits with those of PEFT itself.")


@dataclass(frozen=True)
class BundleSettings:
    """Options of `whit bundle`."""

    adapters: tuple[str, ...] = argument(
        "Folders, files or text forms of adapters of one base.", many=True, optional=True
    )
    out: Path = argument("Folder to write; an older bundle there is replaced.")
    base: str | None = option(None, "The base (default: the one on the adapters' cards).")
    title: str | None = option(None, "What the page is called (default: the adapter's name).")
    open: bool = option(False, "Serve it on this machine and open it in the browser.")
    port: int = option(0, "Port for --open; 0 takes a free one.", least=0, most=65535)


@dataclass(frozen=True)
class CheckSettings(DataColumns):
    """Options of `whit check`."""

    data: Path = argument("Rows to look at.")
    against: tuple[Path, ...] = option(
        (), "Further files (test rows, say) that should share no row with it.", many=True
    )
    base: str | None = option(None, "Also find rows beyond this base's context.")
    fix: Path | None = option(None, "Write a cleaned copy here and list each change.")
    overwrite: bool = option(False, "--fix: replace another file that is there.")
    influence: bool = option(False, "Find the rows that hurt --adapter, and train again without them.")
    adapter: str | None = option(None, "--influence: folder of the adapter that was trained on these rows.")
    held_out: Path | None = option(None, "--influence: the rows it was proved on, where they are a file of their own.")
    score: str | None = option(None, "--influence: how answers are scored (default: as in training).")
    share: float = option(0.1, "--influence: share of the rows to show, and to leave out.", least=0.0, most=0.5)
    retrain: bool = option(True, "--influence: train again without the rows that hurt, and prove what that changes.")
    threads: int | None = option(None, "Threads to compute with (default: all cores).", least=1)


@dataclass(frozen=True)
class PullSettings:
    """Options of `whit pull`."""

    name: str = argument("A name of `whit bases`, or a hub id.")


@dataclass(frozen=True)
class BasesSettings:
    """`whit bases` has no options of its own."""


@dataclass(frozen=True)
class StoreSettings:
    """Options of `whit store`."""

    action: str = argument(
        "What to do: add, list, show, label, rollback, rm, export, import or token.",
        choices=("add", "list", "show", "label", "rollback", "rm", "export", "import", "token"),
    )
    words: tuple[str, ...] = argument(
        "add NAME ADAPTER; show, rollback or rm NAME[@VERSION]; label NAME LABEL; export or import FILE; token NAME.",
        many=True,
        optional=True,
    )
    store: str = option("whit.db", "The store: a file, or a postgresql:// address.")
    by: str | None = option(None, "Who is recorded as having done it (default: the user).")
    label: str | None = option(None, "add: also label it so; rollback: move this label.")
    to: int | None = option(None, "rollback: to this version (default: the one before).", least=1)
    remove: bool = option(False, "label: take the label away; token: revoke it.")
    after: str | None = option(None, "list: names behind this one.")
    limit: int = option(100, "list and show: at most this many lines.", least=1, most=100000)
    use: tuple[str, ...] = option(("*",), "token: patterns of the adapters it may use.", many=True)
    change: tuple[str, ...] = option((), "token: patterns of the adapters it may change.", many=True)
    rate: float | None = option(None, "token: requests a minute.", least=0.1)


@dataclass(frozen=True)
class RouteSettings:
    """Options of `whit route`."""

    words: tuple[str, ...] = argument(
        "TIERS.toml serves it; check TIERS.toml, fit ROWS, learn ROWS …, report LEDGER and schema do what they say.",
        many=True,
    )
    host: str | None = option(None, "serve: address to listen on (default: the file's, else this machine alone).")
    port: int | None = option(None, "serve: port (default: the file's, else 8080).", least=0, most=65535)
    prompt: str = option("Hello!", "check: what the example request says.")
    model: str = option("auto", "check: the model, route or tier that it asks for.")
    tenant: str | None = option(None, "check: whose request it is (default: the first tenant's).")
    label: str | None = option(None, "check: a label on it.")
    keep_quality: float = option(0.95, "fit: share of the strong tier's quality to keep.", least=0.0, most=1.0)
    most_strong: float | None = option(
        None, "fit: instead of a quality, the largest share of rows for the strong tier.", least=0.0, most=1.0
    )
    out: Path | None = option(None, "fit: file to write (default: ROWS.choice.json); learn: folder (default: ROWS).")
    seed: int = option(0, "fit: seed of folds and intervals; learn: of everything.", least=0)
    features: str = option("words", "fit: what it learns over.", choices=("words", "embeddings"))
    base: str = option("eeny", "fit: whose embeddings; learn: the base of what marks names, places and health.")
    rank: int = option(12, "learn: its rank.", least=1, most=256)
    epochs: float = option(8.0, "learn: passes over the rows.", least=0.01)
    learning_rate: float = option(3e-3, "learn: size of a step.", least=1e-7, most=1.0)
    days: float | None = option(None, "report: only this many last days.", least=0.0)
    html: Path | None = option(None, "report: also write a page with plots here.")


@dataclass(frozen=True)
class ServeSettings:
    """Options of `whit serve`."""

    base: str = option(DEFAULT_BASE, "The model to serve: a name of `whit bases`, a .gguf file, a folder or a hub id.")
    store: str | None = option(None, "Adapters to serve: a file of `whit store`, or a postgresql:// address.")
    name: str | None = option(None, "What requests call the base (default: its name).")
    host: str = option("127.0.0.1", "Address to listen at; any but this machine's own needs tokens.")
    port: int = option(8000, "Port to listen at; 0 takes a free one.", least=0, most=65535)
    tokens: bool = option(False, "Ask for a token on this machine too.")
    rows: int = option(32, "How many answers are computed at once.", least=1, most=4096)
    context: int = option(2048, "Most tokens of prompt and answer.", least=16)
    ranks: tuple[int, ...] = option((2,), "Ranks of the tiny and xs adapters that are served.", many=True)
    waiting: int = option(256, "How many answers may wait for a row.", least=1)
    waiting_each: int | None = option(None, "How many of them one token's (default: half).", least=1)
    timeout: float = option(300.0, "Seconds that an answer may take.", least=0.1)
    drain: float = option(30.0, "Seconds that answers under way are given when the server is stopped.", least=0)
    connections: int = option(1000, "Most connections at once.", least=1)
    prefix_mb: int = option(256, "Megabytes kept of prompts that others begin like.", least=1)
    int8: bool = option(False, "Compute the base in 8 bits: faster on a CPU, nearly the same answers.")
    log_prompts: bool = option(False, "Write prompts into the log.")
    ray: str | None = option(
        None, "Serve by replicas on the Ray cluster at this address, all on one postgresql:// store."
    )
    replicas: int = option(2, "--ray: how many replicas.", least=1, most=1000)
    dtype: str = option("auto", "Number type of the base.", choices=DTYPES)
    device: str = _as_in_training("device")
    threads: int | None = option(None, "Threads to compute with (default: all cores).", least=1)


def as_plain(settings: Any) -> dict[str, Any]:
    """Settings as JSON-ready values, for cards and checkpoints."""

    def one(value: Any) -> Any:
        return str(value) if isinstance(value, Path) else [*map(one, value)] if isinstance(value, tuple) else value

    return {part.name: one(getattr(settings, part.name)) for part in fields(settings)}
