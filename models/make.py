"""Make eeny or meeny: `python models/make.py eeny --corpus FOLDER --tasks FOLDER`.

One command per model: pre-training, the instruction stage, the GGUF file, its figures. Run again after any
stop, it goes on from the last checkpoint; run again with more `--tokens`, from before the learning rate fell.
Tokens, checkpoints and curves lie in the cache folder. Parses and calls; the work is in the modules beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from models import checkpoint, corpus, package
from models.config import RECIPES, Recipe
from models.instruct import PLAIN_EVERY, ChatWindows, encode_chat
from models.network import Network
from models.prepare import TOKENIZER, make_tokenizer, prepare, save_hub
from models.pretrain import Plan, pretrain
from models.rows import instruction_rows
from models.score import network_bits
from whit.bases.dtypes import DTYPES, choose_dtype
from whit.errors import DataError, UsageError, WhitError
from whit.files import atomic_write

STAGES = ("pretrain", "instruct", "package", "manifest", "score")


def instruction_recipe(recipe: Recipe) -> Recipe:
    """The short second stage: longer windows, smaller rates that fall from the first step on."""
    return replace(
        recipe, sequence=recipe.shape.context, batch=4, micro_batch=2, matrix_rate=recipe.matrix_rate / 2,
        vector_rate=recipe.vector_rate / 2, warmup_steps=20, decay_share=0.95,
    )  # fmt: skip


def _plan(folder: Path, steps: int, arguments: Any) -> Plan:
    dtype = str(choose_dtype(arguments.dtype, arguments.device)).removeprefix("torch.")
    return Plan(folder, steps, device=arguments.device, dtype=dtype)


def instruct(recipe: Recipe, network: Network, windows: corpus.Windows, tokenizer: Any, arguments: Any) -> Network:
    """Teach `instruction + input → answer`. Returns the network."""
    second = instruction_recipe(recipe)
    rows = instruction_rows(arguments.corpus, arguments.tasks, recipe.seed)
    chats = ChatWindows([encode_chat(tokenizer, turns) for turns in rows], windows.resized(second.sequence),
                        sequence=second.sequence, every=arguments.plain_every)  # fmt: skip
    steps = max(1, round(arguments.instruct_tokens / (second.batch * second.sequence)))
    # Another pre-training gives other weights to begin with, hence a stage of its own.
    named = f"instruct-{round(arguments.tokens)}-{round(arguments.instruct_tokens)}-{arguments.plain_every}"
    folder = arguments.cache / recipe.name / named
    initial = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
    print(f"instruction stage: {len(rows)} rows, {chats.per_epoch} windows, {steps} steps", file=sys.stderr)
    return pretrain(second, chats, None, _plan(folder, steps, arguments), initial=initial)


def figures(network: Network, tokenizer: Any, folder: Path, sources: list[str], limit: int) -> dict[str, Any]:
    """Bits per byte of each source's held-out documents (at most `limit` bytes of each) under the shipped weights."""
    network = network.cpu().eval()
    found = {}
    for source in sources:
        texts, size = [], 0
        for text in corpus.load_source(folder, source)[1]:
            if size >= limit:
                break
            texts.append(text)
            size += len(text.encode())
        bits = network_bits(network, lambda text: tokenizer.encode(text, add_special_tokens=False).ids, texts)
        found[source] = {"bits_per_byte": round(bits.per_byte, 4), "bytes": bits.bytes}
    return found


def start_weights(recipe: Recipe, start: str) -> dict[str, torch.Tensor]:
    """The weights to begin with: a checkpoint's own (`.pt`), or those of a published base."""
    if not start.endswith(".pt"):
        return package.read(recipe, start)
    path = Path(start)
    try:
        found: dict[str, torch.Tensor] = checkpoint.read(path)[1]["network"]
    except ValueError as error:
        raise DataError(f"--start {error}") from error
    wanted = Network(recipe.shape).state_dict()
    if {name: tensor.shape for name, tensor in found.items()} != {n: t.shape for n, t in wanted.items()}:
        raise DataError(f"--start {path} is no checkpoint of {recipe.name}: its weights have other names or shapes")
    return found


def run(arguments: Any) -> None:
    """The stages asked for, each resumed from where it stands."""
    if "instruct" in arguments.stages and (arguments.tasks is None or arguments.corpus is None):
        raise UsageError("the instruction stage needs --corpus and --tasks; or give --stages pretrain package score")
    if arguments.plain_every < 2:
        raise UsageError(f"--plain-every {arguments.plain_every}: at least 2, for with 1 no window would be a chat")
    recipe = RECIPES[arguments.model]
    if arguments.micro_batch:
        recipe = replace(recipe, micro_batch=arguments.micro_batch)
    folder = arguments.cache / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    text_folder = arguments.corpus
    if arguments.hub:
        text_folder = save_hub(arguments.hub, arguments.hub_column, folder / "hub")
        recipe = replace(recipe, mixture={"hub": 1})
    if text_folder is None:
        raise UsageError("give --corpus FOLDER or --hub NAME")
    tokenizer = make_tokenizer(text_folder, arguments.tokenizer)
    windows, validation = prepare(recipe, text_folder, arguments.cache, tokenizer)
    steps = max(1, round(arguments.tokens / (recipe.batch * recipe.sequence)))
    print(f"{recipe.name}: {steps} steps, {windows.per_epoch * recipe.sequence} tokens an epoch", file=sys.stderr)
    initial = start_weights(recipe, arguments.start) if arguments.start else None
    # The instruction stage keeps the recipe's own rates: at lower ones less of the habit of answering is learned.
    first = replace(
        recipe, decay_share=arguments.decay_share or recipe.decay_share,
        matrix_rate=recipe.matrix_rate * arguments.rate_share, vector_rate=recipe.vector_rate * arguments.rate_share,
    )  # fmt: skip
    network = pretrain(first, windows, validation, _plan(folder, steps, arguments), initial=initial)
    if "instruct" in arguments.stages:
        network = instruct(recipe, network, windows, tokenizer, arguments)
    if "package" in arguments.stages:
        path = package.write(recipe, network.cpu(), tokenizer, arguments.output or folder / f"{recipe.name}.gguf")
        print(f"{path}: {path.stat().st_size} bytes", file=sys.stderr)
    if "manifest" in arguments.stages:
        listed = corpus.manifest(text_folder, recipe.mixture)
        atomic_write(folder / "manifest.json", json.dumps(listed, indent=1) + "\n")
    if "score" in arguments.stages:
        result = figures(network, tokenizer, text_folder, list(recipe.mixture), arguments.score_bytes)
        atomic_write(folder / "figures.json", json.dumps(result, indent=1) + "\n")
        print(json.dumps(result))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--corpus", type=Path, help="folder with one text file for each source")
    parser.add_argument("--hub", help="a data set of the hub, or a local one, in place of the corpus folder")
    parser.add_argument("--hub-column", default="text")
    parser.add_argument("--tasks", type=Path, help="folder with snips, svamp and pii, for the instruction stage")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="pretrain always runs")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "whit" / "pretrain")
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="trained first where the file is absent")
    parser.add_argument("--output", type=Path, help="where the GGUF goes (default: beside the checkpoints)")
    parser.add_argument("--tokens", type=float, default=8e6, help="positions to pre-train on, all sessions together")
    parser.add_argument("--instruct-tokens", type=float, default=1.5e6)
    parser.add_argument(
        "--plain-every", type=int, default=PLAIN_EVERY, help="instruction stage: of so many windows one is plain text"
    )
    parser.add_argument("--score-bytes", type=int, default=200_000, help="held-out bytes of each source")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="auto: what this machine multiplies faster in")
    parser.add_argument("--start", help="begin with these weights (a checkpoint, a GGUF file or a base's name)")
    parser.add_argument("--rate-share", type=float, default=1.0, help="of pre-training's rates, to go on after a fall")
    parser.add_argument(
        "--decay-share", type=float, help="of all steps, in which the rate falls (default: the recipe's)"
    )
    parser.add_argument("--threads", type=int, default=2, help="1 is faster where other work wants the cores")
    parser.add_argument("--micro-batch", type=int, help="sequences in one forward: about memory only")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    try:
        run(arguments)
    except WhitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    # Attention's smallest shares are subnormal numbers, which processors compute by microcode: a third of the time.
    # Set for the whole process, and therefore here.
    torch.set_flush_denormal(True)
    sys.exit(main())
