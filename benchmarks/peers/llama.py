"""llama.cpp at one request after another, each with its own LoRA: the peer of `served.py`, run by a Python that has it.

    PYTHON benchmarks/peers/llama.py < job.json

The job names GGUF bases (one that is not there is made from the first, in Q8_0), LoRAs, prompts (token ids), tokens an
answer, seconds and threads to try; the best rate is printed. llama.cpp does not batch requests with different LoRAs
together; there is no HTTP here, which is in its favour.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np


def main() -> None:
    # A build with its kernels in libraries of their own loads them when told to.
    library = Path(llama_cpp.__file__).parent / "lib"
    if (library / "libggml.so").exists():
        ctypes.CDLL(str(library / "libggml.so")).ggml_backend_load_all_from_path(str(library).encode())
    job = json.load(sys.stdin)
    best: dict[str, Any] = {"tokens_per_second": 0.0}
    for path in map(Path, job["bases"]):
        if not path.exists():
            as_q8(job["bases"][0], path)
        for threads in job["threads"]:
            rate = measure(path, threads, job)
            print(f"llama.cpp {path.name}, {threads} threads: {rate:.1f} tokens/s", file=sys.stderr, flush=True)
            if rate > best["tokens_per_second"]:
                best = {"tokens_per_second": round(rate, 1), "base": path.name, "threads": threads}
    print(json.dumps(best))


def as_q8(path: str, out: Path) -> None:
    """The same base in Q8_0."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, True
    if llama_cpp.llama_model_quantize(path.encode(), str(out).encode(), ctypes.byref(settings)):
        sys.exit(f"{path} could not be made Q8_0")


def measure(path: Path, threads: int, job: dict[str, Any]) -> float:
    """Tokens a second of requests one after another, prompts included."""
    model = llama_cpp.Llama(str(path), n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)
    loras = [llama_cpp.llama_adapter_lora_init(model.model, name.encode()) for name in job["loras"]]
    if not all(loras):
        sys.exit("a LoRA was refused")
    scales, words = (ctypes.c_float * 1)(1.0), model.n_vocab()
    count, at, began = 0, 0, time.perf_counter()
    while time.perf_counter() - began < job["seconds"]:
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(loras[at % len(loras)])
        if llama_cpp.llama_set_adapters_lora(model.ctx, adapters, 1, scales):
            sys.exit("a LoRA could not be set")
        model.reset()
        model.eval(job["prompts"][at % len(job["prompts"])])
        for _ in range(job["tokens"]):
            logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(model.ctx), shape=(words,))
            model.eval([int(logits.argmax())])
            count += 1
        at += 1
    return count / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
