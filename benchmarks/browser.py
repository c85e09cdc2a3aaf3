"""The engine in a browser tab: speed, size, memory, teaching, and whether it computes what PyTorch does.

    python benchmarks/browser.py                  every part
    python benchmarks/browser.py speed size       some of them; see --help

Headless Chromium, one thread, no isolation headers. `speed` and `memory` have wllama as the peer, on the same file
and in the same run, taking turns; it is fetched by npm into a temporary folder. `cores` is how much of the machine a
side had while it was measured: rates of a busy machine are to be read divided by it. `teach`, `steps` and `parity`
have PyTorch as the peer. The bases are eeny and SmolLM2-135M-Instruct (Q4_1).
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import data_folder, open_base, report, sample, tell
from tab import WLLAMA, Bench, Tab, bench
from twin import Twin

from whit.data.rows import Turn, read_rows
from whit.engine.speaker import Speaker

TICKETS = Path(__file__).resolve().parent.parent / "examples" / "tickets.jsonl"
STORY = "Tell me a long story of {} brothers who leave home."
WORDS = "the rain fell on the quiet town and nobody at the market said a word about the harvest "
FIRST_TOKEN = """
const look = setInterval(() => {
  if (document.documentElement.dataset.state !== 'ready') return;
  clearInterval(look);
  window.readyAt = performance.now();
  const output = document.getElementById('try-tuned');
  const see = () => { if (output.textContent) window.firstAt ??= performance.now(); };
  new MutationObserver(see).observe(output, { childList: true, characterData: true, subtree: true });
  document.getElementById('try-prompt').value = 'Tell me a story.';
  document.getElementById('try-form').requestSubmit();
}, 2);
"""


class Words:
    """A base's template and tokens through the engine: no model is loaded beside the one in the tab."""

    def __init__(self, base: str) -> None:
        speaker = Speaker(base)
        self.name, self.template, self._engine = base, speaker.template, speaker.engine

    def render(self, prompt: str) -> str:
        return self.template.render([Turn("user", prompt)])

    def count(self, prompt: str) -> int:
        return len(self._engine.encode(self.render(prompt)))


def of_length(base: Words, tokens: int, number: int) -> str:
    """A prompt that is `tokens` long with what the template adds (one or two more at most)."""
    words, found = (WORDS * (tokens // 8 + 1)).split(), f"{number}."
    while base.count(found) < tokens and words:
        found += " " + words.pop(0)
    return found


Ask = Callable[[str, int, int], tuple[Any, float, float]]


def measured(base: Words, sides: dict[str, Ask], options: Any) -> dict[str, Any]:
    """Prefill and decode of each side, round by round in turns: the median rate, and it divided by the cores had."""
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for number in range(options.rounds + 1):
        long, short = of_length(base, options.prompt, number), STORY.format(number + 2)
        for side, ask in sides.items():
            for kind, prompt, most in (("prefill", long, 1), ("decode", short, options.most)):
                answer, seconds, used = ask(prompt, most, base.count(prompt))
                if number:  # the first round warms the compiler up
                    found.setdefault((side, kind), []).append((answer[kind], seconds, used))
        tell(f"round {number} of {options.rounds}")
    figures: dict[str, Any] = {side: {} for side in sides}
    for (side, kind), each in found.items():
        rate = statistics.median(rate for rate, _, _ in each)
        cores = sum(used for *_, used in each) / sum(seconds for _, seconds, _ in each)
        figures[side] |= {kind: round(rate, 2), f"{kind}_cores": round(cores, 2)}
        figures[side][f"{kind}_per_core"] = round(rate / max(cores, 0.01), 2)
    return figures


def whit_side(tab: Tab) -> Ask:
    return lambda prompt, most, tokens: tab.timed("askWhit", prompt, most, tokens)


def peer_side(tab: Tab, base: Words) -> Ask:
    return lambda prompt, most, tokens: tab.timed("askPeer", base.render(prompt), most, tokens)


def speed(place: Bench, options: Any) -> list[dict[str, Any]]:
    """SmolLM2: decode and prefill, against wllama with one thread and (with isolation headers) with two."""
    base = Words("smollm2")
    made = place.bundle("smollm2")
    model = f"/page/{json.loads((made / 'bundle.json').read_text())['base']['file']}"
    place.peer()
    sides = {}
    tab = place.tab()
    tell(f"whit: {tab.call('openWhit')}")
    sides["whit"] = whit_side(tab)
    for threads in (1, 2):
        peer = place.tab(isolated=threads > 1)
        about = peer.call("openPeer", model, threads)
        tell(f"wllama: {about}")
        if about["threads"] != threads:
            sys.exit(f"wllama runs {about['threads']} threads where {threads} were asked for")
        sides[f"wllama {WLLAMA}, {threads} thread{'s' * (threads > 1)}"] = peer_side(peer, base)
    found = measured(base, sides, options)
    rows = [{"part": "speed", "base": base.name, "side": side, **figures} for side, figures in found.items()]
    ours = found.pop("whit")
    for side, theirs in found.items():
        kinds = ("prefill", "prefill_per_core", "decode", "decode_per_core")
        ratios = {kind: round(ours[kind] / theirs[kind], 2) for kind in kinds}
        rows.append({"part": "speed", "base": base.name, "whit_against": side, **ratios})
    return rows


def small(place: Bench, options: Any) -> list[dict[str, Any]]:
    """The built-in bases: decode and prefill, and the first token of a cached page after a reload."""
    rows = []
    for name in options.bases:
        base = Words(name)
        place.bundle(name)
        tab = place.tab()
        opened = tab.call("openWhit")
        found = measured(base, {"whit": whit_side(tab)}, options)["whit"]
        page = tab.context.new_page()
        page.set_default_timeout(600_000)
        page.goto(f"{tab.address}/page/")
        page.wait_for_selector("html[data-state=ready][data-offline=ready]", state="attached")
        page.add_init_script(FIRST_TOKEN)
        times = []
        for _ in range(options.rounds):
            page.reload()
            while page.evaluate("window.firstAt === undefined"):
                page.wait_for_timeout(20)
            times.append(page.evaluate("[window.readyAt, window.firstAt]"))
        ready, first = (round(statistics.median(each) / 1000, 3) for each in zip(*times, strict=True))
        about = {"part": "small", "base": name, "engine": opened["engine"], **found}
        rows.append({**about, "ready_seconds_after_reload": ready, "first_token_seconds_after_reload": first})
    return rows


def size(place: Bench, options: Any) -> list[dict[str, Any]]:
    """Both builds of the engine, gzipped, against wllama's WebAssembly."""
    from whit.engine.runtime import VARIANTS, engine_bytes

    peer = len(gzip.compress((place.peer() / "esm" / "wasm" / "wllama.wasm").read_bytes(), 9))
    rows = []
    for variant in VARIANTS:
        ours = len(gzip.compress(engine_bytes(variant), 9))
        about = {"part": "size", "build": variant, "gzipped": ours, "wllama_gzipped": peer}
        rows.append({**about, "times_smaller": round(peer / ours, 1)})
    return rows


def memory(place: Bench, options: Any) -> list[dict[str, Any]]:
    """What a tab with SmolLM2 holds after an answer, whit's and wllama's."""
    base = Words("smollm2")
    made = place.bundle("smollm2")
    model = f"/page/{json.loads((made / 'bundle.json').read_text())['base']['file']}"
    place.peer()
    tab, peer = place.tab(), place.tab()
    tab.call("openWhit")
    tab.call("askWhit", STORY.format(3), options.most, 1)
    peer.call("openPeer", model, 1)
    peer.call("askPeer", base.render(STORY.format(3)), options.most, 1)
    engine, ours, theirs = tab.call("memory"), tab.memory(), peer.memory()
    about = {"part": "memory", "base": base.name, "engine_mb": round(engine / 1e6), "tab_mb": round(ours / 1e6)}
    return [{**about, "wllama_tab_mb": round(theirs / 1e6), "ratio": round(ours / theirs, 2)}]


def teach(place: Bench, options: Any) -> list[dict[str, Any]]:
    """A LoRA taught sms_spam in the tab and in Python: seconds, scores on dev, answers across both."""
    import torch

    torch.set_num_threads(1)
    name = options.bases[0]
    base = open_base(name, "float32")
    folder = data_folder() / "sms_spam"
    rows = sample(read_rows(folder / "train.jsonl"))[: options.rows]
    place.bundle(name)
    tab = place.tab()
    tab.call("openWhit")
    plain = [{"prompt": row.prompt, "completion": row.completion} for row in rows]
    taught, seconds, used = tab.timed("teach", plain)
    cores = used / seconds
    tell(f"in the tab: {taught['seconds']:.1f} s, {taught['steps']} steps, {cores:.2f} cores")
    learned = [rows[place_] for place_ in taught["train"]]
    by_prompt = {row.prompt: row for row in rows}
    test = [by_prompt[example["prompt"]] for example in taught["examples"]]
    alone = Twin(base, learned, test)
    python = alone.train(taught["steps"])
    tell(f"in Python: {python['seconds']:.1f} s, {python['cores']:.2f} cores")
    in_page = [example["tuned"] for example in taught["examples"]]
    crossed = [
        text.strip()
        for text in tab.call("answers", b64encode(python["file"]).decode(), [row.prompt for row in test], alone.most)
    ]
    back = alone.answers(b64decode(taught["file"]))
    bare = [example["base"] for example in taught["examples"]]
    # The page holds out too few rows to compare scores on: both adapters answer dev, in Python as in the tab (below).
    judge = Twin(base, learned, read_rows(folder / "dev.jsonl"))
    dev = {"tab": judge.answers(b64decode(taught["file"])), "python": judge.answers(python["file"])}
    about = {"part": "teach", "base": name, "rows": len(rows), "learned": len(learned), "held_out": len(test)}
    return [
        {
            **about,
            "steps": taught["steps"],
            "tab_seconds": round(taught["seconds"], 1),
            "tab_seconds_with_proof": round(taught["whole"], 1),
            "tab_cores": round(cores, 2),
            "python_seconds": round(python["seconds"], 1),
            "python_cores": round(python["cores"], 2),
            "base_held_out": alone.score(bare),
            "tab_held_out": alone.score(in_page),
            "dev_rows": len(judge.test),
            "tab_dev": judge.score(dev["tab"]),
            "python_dev": judge.score(dev["python"]),
        },
        {
            **about,
            "python_adapter_in_tab_same": _same(crossed, python["answers"]),
            "tab_adapter_in_python_same": _same(back, in_page),
        },
    ]


def _same(found: list[str], expected: list[str]) -> float:
    return round(sum(a == b for a, b in zip(found, expected, strict=True)) / len(expected), 3)


def steps(place: Bench, options: Any) -> list[dict[str, Any]]:
    """One pass of xs steps on SmolLM2: seconds a row in the tab, and in PyTorch with one thread."""
    import torch

    from whit.adapters.targets import all_targets
    from whit.adapters.tunable import tune_vector
    from whit.adapters.vector import xs_spec
    from whit.evaluation.proof import Examiner
    from whit.evaluation.scoring import make_scorer
    from whit.training.batching import collate
    from whit.training.optimizers import Adam
    from whit.training.sft import loss_of

    torch.set_num_threads(1)
    base = open_base("smollm2")
    rows = read_rows(TICKETS, limit=options.short)
    encoded = Examiner(base, make_scorer("auto", rows), None, 48).encode(rows, learn=True)
    batches = [encoded[at : at + 4] for at in range(0, len(encoded), 4)]
    place.bundle("smollm2")
    tab = place.tab()
    given = [[[row.prompt_ids, row.completion_ids] for row in batch] for batch in batches]
    found, seconds, used = tab.timed("steps", given, 1e-2)
    cores = used / seconds
    ours = [seconds for seconds, _ in found["found"]]
    tell(f"in the tab: {sum(ours):.1f} s, {cores:.2f} cores")
    bound = tune_vector(base, xs_spec([t.index for t in all_targets(n for n, _ in base.model.named_modules())], 2))
    optimizer = Adam(bound.parameters())
    theirs, losses, spent = [], [], time.process_time()
    for batch in batches:
        began = time.perf_counter()
        for parameter in bound.parameters():
            parameter.grad = None
        with bound.active():
            loss = loss_of(base, collate(batch)).mean()
            loss.backward()
        optimizer.step(1e-2, None)
        theirs.append(time.perf_counter() - began)
        losses.append(float(loss.detach()))
    spent = time.process_time() - spent
    bound.detach()
    tokens = sum(len(row.prompt_ids) + len(row.completion_ids) for row in encoded)
    half = len(batches) // 2
    return [
        {
            "part": "steps",
            "base": base.name,
            "rows": len(rows),
            "tokens_a_row": round(tokens / len(rows)),
            "tab_seconds": round(sum(ours), 1),
            "tab_cores": round(cores, 2),
            "tab_ms_a_row": round(1000 * sum(ours) / len(rows)),
            "torch_ms_a_row": round(1000 * sum(theirs) / len(rows)),
            "torch_dtype": base.dtype,
            "torch_cores": round(spent / sum(theirs), 2),
            "ratio": round(sum(ours) / sum(theirs), 2),
            "tab_loss_second_half": round(statistics.mean(loss for _, loss in found["found"][half:]), 3),
            "torch_loss_second_half": round(statistics.mean(losses[half:]), 3),
            "engine_mb": round(found["memory"] / 1e6),
        }
    ]


def parity(place: Bench, options: Any) -> list[dict[str, Any]]:
    """Logits and greedy answers through wasmtime, against transformers in float32 of the same file."""
    import numpy as np
    import torch

    from whit.engine import Engine
    from whit.engine.answers import advance

    rows = []
    for name in ("smollm2", *options.bases):
        base = open_base(name, "float32")
        engine = Engine.open(base.path)
        same, cosines = 0, []
        prompts = read_rows(TICKETS, limit=options.prompts)
        for row in prompts:
            prompt = engine.encode(base.template.render(row.turns))
            answer = engine.ask(prompt, most=64, ends=list(base.stop_ids))
            while not answer.done:
                advance([answer])
            tokens = list(answer.tokens)
            with torch.inference_mode():
                expected = base.model(torch.tensor([prompt + tokens])).logits[0].float().numpy().astype(np.float64)
            # Greedy if each token is the likeliest after its own past; where it ended, a stop must be the likeliest.
            best = expected[len(prompt) - 1 :].argmax(-1).tolist()
            ended = answer.reason == "end"
            same += best[:-1] == tokens and (not ended or best[-1] in base.stop_ids)
            found = engine.logits(prompt).astype(np.float64)
            wanted = expected[: len(prompt)]
            norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(wanted, axis=-1)
            cosines.append(float(((found * wanted).sum(-1) / norms).min()))
        about = {"part": "parity", "base": name, "prompts": len(prompts), "same_greedy_64": same}
        rows.append({**about, "least_cosine": round(min(cosines), 7)})
    return rows


PARTS = {part.__name__: part for part in (size, speed, small, memory, teach, steps, parity)}


def main() -> None:
    told = "".join(f"\n  {name:8}{part.__doc__}" for name, part in PARTS.items())
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=f"{__doc__}\nparts:{told}", formatter_class=form)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--bases", nargs="+", default=["eeny"], help="built-in bases; the first is taught")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is told")
    parser.add_argument("--most", type=int, default=64, help="tokens decoded a round")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the prompt for prefill")
    parser.add_argument("--rows", type=int, default=300, help="rows to teach with")
    parser.add_argument("--short", type=int, default=200, help="rows of the xs pass")
    parser.add_argument("--prompts", type=int, default=20, help="prompts of parity")
    parser.add_argument("--peer", type=Path, help="an unpacked @wllama/wllama, instead of fetching it")
    parser.add_argument("--keep", type=Path, help="a folder where bundles are kept between runs")
    options = parser.parse_args()
    for name in options.parts:
        if name not in PARTS:
            parser.error(f"there is no part {name}; there are {', '.join(PARTS)}")
    for name in options.parts or PARTS:
        with bench(options.keep, options.peer) as place:
            report(PARTS[name](place, options))


if __name__ == "__main__":
    main()
