"""`whit serve` from outside: many clients with own adapters, adapters never seen before, and hours of too much load.

    python benchmarks/served.py clients --llama PYTHON
    python benchmarks/served.py unseen
    python benchmarks/served.py load --minutes 30

Each part starts a server of its own on this machine, with a store of adapters whose answers differ.

clients: 64 clients, each with its own `xs` adapter, ask one after another for so many seconds; completion tokens a
second. With `--llama`, a Python that has llama-cpp-python does the same requests one at a time, each with its own LoRA
(the same adapters), with Q8_0 and with the base's own file, at 1 and 2 threads; its best counts.

unseen: milliseconds that a first request with an adapter takes longer than one with an adapter that was used before,
from the store and inline; one token is asked for. Told twice: with prompts that are new from their first token on,
which is what finding and loading an adapter costs; and with a beginning that all prompts share (the chat template's own
system turn), which the server has computed already for an adapter that was used, and must compute for a new one.

load: requests come at 1.5 times the rate that the server was found to sustain; users have adapters of `--kinds` in
turn. Every answer is compared with what the
same user got when nobody else was there; every refusal must say when to come again. Memory of the server over time.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
from common import open_base, random_lora, report, tell

from whit.adapters.adapter import Adapter
from whit.adapters.basis import basis_of
from whit.adapters.targets import all_targets
from whit.adapters.vector import tiny_spec, xs_spec
from whit.serving.payload import to_payload
from whit.serving.store import Item, open_store

PARTS = ("unseen", "clients", "load")
QUESTIONS = (
    "What is the weather like in Paris today?", "Tell me a short story about a fox.", "How do I bake bread?",
    "Name three rivers and where they flow.", "Why is the sky blue?", "Write a polite reply to a late customer.",
)  # fmt: skip


def make_adapters(base: Any, count: int, *, kind: str = "xs", size: float = 0.15, seed: int = 0) -> list[Adapter]:
    """Adapters large enough that their answers differ."""
    if kind == "lora":
        return [random_lora(base, 8, size=0.03, seed=1000 * seed + at) for at in range(count)]
    indices = [target.index for target in all_targets(name for name, _ in base.model.named_modules())]
    spec = tiny_spec(indices, 13) if kind == "tiny" else xs_spec(indices, 2)
    draw, basis = np.random.default_rng(seed), basis_of(base, 2)
    vectors = [draw.normal(0, size, spec.numbers).astype(np.float32) for _ in range(count)]
    return [Adapter.from_vector(spec, vector, basis) for vector in vectors]


@contextlib.contextmanager
def served(options: argparse.Namespace, adapters: list[Adapter], *more: str) -> Iterator[tuple[str, int]]:
    """A server in a process of its own; its address and process id."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "whit.db"
        with open_store(path) as store:
            store.add_many([Item(f"user/{at}", to_payload(each)) for at, each in enumerate(adapters)], by="benchmark")
        code = "import sys; from whit.cli import main; sys.argv[0] = 'whit'; main()"
        words = ["serve", "--base", options.base, "--store", str(path), "--name", "base", "--port", "0",
                 "--rows", str(options.rows), "--context", "512", *more]  # fmt: skip
        words += ["--int8"] if options.int8 else []
        log = (Path(folder) / "log").open("w")
        child = subprocess.Popen([sys.executable, "-c", code, *words], stderr=log)
        try:
            url = None
            while url is None:
                time.sleep(0.2)
                if child.poll() is not None:
                    sys.exit("the server ended: " + (Path(folder) / "log").read_text()[-2000:])
                for line in (Path(folder) / "log").read_text().splitlines():
                    if line.startswith("serving "):
                        url = line.split()[-1]
            yield url, child.pid
        finally:
            child.terminate()
            child.wait(60)
            log.close()


def body(user: int, prompt: str, tokens: int, model: str | None = None, system: str | None = None) -> dict[str, Any]:
    first = [{"role": "system", "content": system}] if system else []
    return {"model": model or f"base:user/{user}", "messages": [*first, {"role": "user", "content": prompt}],
            "max_tokens": tokens, "temperature": 0}  # fmt: skip


def client(most: int) -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=most, max_keepalive_connections=most))


async def closed_loop(url: str, clients: int, seconds: float, tokens: int) -> tuple[float, float]:
    """Tokens and requests a second of clients that ask one question after another."""
    count, done = 0, 0
    end = time.monotonic() + seconds

    async with client(clients) as http:

        async def one(user: int) -> None:
            nonlocal count, done
            draw = random.Random(user)
            while time.monotonic() < end:
                prompt = f"{draw.choice(QUESTIONS)} ({draw.randrange(10_000)})"
                answer = await http.post(f"{url}/chat/completions", json=body(user, prompt, tokens))
                if answer.status_code == 429:  # the queue is full, so the server is busy: what is measured
                    await asyncio.sleep(0.2)
                    continue
                answer.raise_for_status()
                if time.monotonic() < end:
                    count, done = count + answer.json()["usage"]["completion_tokens"], done + 1

        began = time.monotonic()
        await asyncio.gather(*(one(user) for user in range(clients)))
    return count / (min(end, time.monotonic()) - began), done / seconds


def clients(options: argparse.Namespace) -> dict[str, Any]:
    base = open_base(options.base)
    adapters = make_adapters(base, options.clients)
    with served(options, adapters) as (url, _):
        asyncio.run(closed_loop(url, options.clients, min(10, options.seconds), options.tokens))  # warms up
        rate, requests = asyncio.run(closed_loop(url, options.clients, options.seconds, options.tokens))
    found: dict[str, Any] = {
        "clients": options.clients, "tokens_each": options.tokens, "seconds": options.seconds, "int8": options.int8,
        "tokens_per_second": round(rate, 1), "requests_per_second": round(requests, 2),
    }  # fmt: skip
    tell(f"whit: {rate:.1f} tokens/s")
    if options.llama:
        found["llama.cpp"] = llama(options, base, adapters)
        found["over_llama.cpp"] = round(rate / found["llama.cpp"]["tokens_per_second"], 2)
    return found


def llama(options: argparse.Namespace, base: Any, adapters: list[Adapter]) -> dict[str, Any]:
    """The peer's best rate."""
    from whit.adapters.interop.gguf_lora import write_gguf_lora
    from whit.adapters.interop.plain_lora import as_lora
    from whit.data.rows import Turn

    with tempfile.TemporaryDirectory() as folder:
        loras = [
            str(write_gguf_lora(as_lora(each, base), base, Path(folder) / f"{at}.gguf"))
            for at, each in enumerate(adapters)
        ]
        prompts = [base.encode(base.template.render([Turn("user", f"{question} (1)")])) for question in QUESTIONS]
        job = {
            "bases": [str(base.path), str(Path(folder) / "base-q8_0.gguf")], "loras": loras, "prompts": prompts,
            "tokens": options.tokens, "seconds": options.seconds / 4, "threads": [1, 2],
        }  # fmt: skip
        peer = Path(__file__).parent / "peers" / "llama.py"
        done = subprocess.run(
            [options.llama, str(peer)], input=json.dumps(job), stdout=subprocess.PIPE, text=True, check=True
        )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def unseen(options: argparse.Namespace) -> dict[str, Any]:
    base = open_base(options.base)
    adapters = make_adapters(base, 2 * options.tries + 1, kind="tiny")
    texts = [each.to_text() for each in make_adapters(base, 2 * options.tries, kind="tiny", seed=1)]
    found: dict[str, list[float]] = {f"{kind}{way}": [] for kind in ("store", "inline") for way in ("", "_shared")}
    with served(options, adapters) as (url, _), httpx.Client(timeout=60) as http:

        def ask(model: str, shared: bool) -> float:
            at = next(number)
            # Every word of the chat template before this one is in the cache of whoever asked before.
            system = None if shared else f"{at} helps."
            began = time.perf_counter()
            http.post(f"{url}/chat/completions", json=body(0, f"Request {at}", 1, model, system)).raise_for_status()
            return 1000 * (time.perf_counter() - began)

        used, number = f"base:user/{2 * options.tries}", iter(range(10_000, 100_000))
        for _ in range(5):
            ask(used, True)
            ask(used, False)
        for at in range(options.tries):
            for shared in (False, True):
                place = at + options.tries * shared
                for kind, model in (("store", f"base:user/{place}"), ("inline", texts[place])):
                    # Before and after it a request whose adapter is known: what drifts is taken off.
                    before = ask(used, shared)
                    first = ask(model, shared)
                    found[kind + "_shared" * shared].append(first - (before + ask(used, shared)) / 2)
    return {"tries": options.tries, "int8": options.int8, **{
        f"{kind}_added_ms": {"median": round(statistics.median(ms), 2), "p90": round(sorted(ms)[int(0.9 * len(ms))], 2)}
        for kind, ms in found.items()
    }}  # fmt: skip


async def load(options: argparse.Namespace) -> dict[str, Any]:
    base = open_base(options.base)
    of_kind = {kind: make_adapters(base, options.clients, kind=kind) for kind in options.kinds}
    adapters = [of_kind[options.kinds[at % len(of_kind)]][at] for at in range(options.clients)]
    del base, of_kind
    seen: collections.Counter[str] = collections.Counter()
    with served(options, adapters, "--waiting", "64", "--timeout", "60") as (url, process):
        async with client(2000) as http:

            async def ask(user: int, question: str) -> tuple[int, str, bool]:
                answer = await http.post(f"{url}/chat/completions", json=body(user, question, options.tokens))
                if answer.status_code == 200:
                    return 200, str(answer.json()["choices"][0]["message"]["content"]), True
                return answer.status_code, answer.text, "retry-after" in answer.headers

            right: dict[tuple[int, str], str] = {}
            for user in range(options.clients):  # each user alone
                for question in QUESTIONS[:2]:
                    right[user, question] = (await ask(user, question))[1]
            own = len({text for (_, question), text in right.items() if question == QUESTIONS[0]})
            tell(f"{own} of {options.clients} users have an answer of their own")
            _, capacity = await closed_loop(url, options.clients, options.seconds, options.tokens)
            rate = 1.5 * capacity
            tell(f"capacity {capacity:.1f} requests/s; now {rate:.1f}")
            draw, keys, under_way = random.Random(0), sorted(right), set[asyncio.Task[None]]()

            async def check(user: int, question: str) -> None:
                try:
                    status, said, told = await ask(user, question)
                except httpx.HTTPError as error:
                    seen[f"failed: {type(error).__name__}"] += 1
                    return
                if status == 200:
                    seen["right" if said == right[user, question] else "WRONG"] += 1
                else:
                    seen[f"{status}" if status != 429 or told else "429 without Retry-After"] += 1

            began, memory, next_look, at = time.monotonic(), list[float](), 0.0, 0.0
            while (now := time.monotonic() - began) < 60 * options.minutes:
                while at <= now:
                    task = asyncio.create_task(check(*draw.choice(keys)))
                    under_way.add(task)
                    task.add_done_callback(under_way.discard)
                    at += draw.expovariate(rate)
                if now >= next_look:
                    memory.append(_memory(process))
                    next_look += 10
                    if len(memory) % 6 == 1:
                        tell(f"{now / 60:.0f} min: {dict(seen)}, {memory[-1]:.0f} MB")
                await asyncio.sleep(max(0.0, min(at - now, 0.05)))
            await asyncio.gather(*under_way)
    quarter = max(1, len(memory) // 4)
    return {
        "minutes": options.minutes, "int8": options.int8, "capacity_requests_per_second": round(capacity, 2),
        "offered_requests_per_second": round(rate, 2), "kinds": options.kinds, "users": options.clients,
        "users_with_own_answers": own,
        "answers": dict(sorted(seen.items())), "memory_mb": {
            "second_quarter": round(statistics.mean(memory[quarter : 2 * quarter] or memory), 1),
            "last_quarter": round(statistics.mean(memory[-quarter:]), 1), "most": round(max(memory), 1),
        },
    }  # fmt: skip


def _memory(process: int) -> float:
    """Resident MB of a process."""
    text = Path(f"/proc/{process}/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS")) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="part", help="clients, unseen, load (all)")
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--int8", action="store_true", help="the server computes in 8 bits")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60, help="of each measurement")
    parser.add_argument("--tries", type=int, default=40)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument(
        "--kinds", nargs="+", choices=("tiny", "xs", "lora"), default=["xs"], help="the users' adapters"
    )
    parser.add_argument("--llama", help="a Python that has llama-cpp-python")
    options = parser.parse_args()
    for part in options.parts or PARTS:
        if part == "load":
            report([asyncio.run(load(options))])
        else:
            report([{"clients": clients, "unseen": unseen}[part](options)])


if __name__ == "__main__":
    main()
