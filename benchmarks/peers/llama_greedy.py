"""llama.cpp's greedy continuations: the peer of `greedy.py`, run by a Python that has llama-cpp-python.

    PYTHON benchmarks/peers/llama_greedy.py < job.json

The job names a GGUF file, texts, and how many tokens; printed are, for each text, its token ids and the continuation's.
With `again`, llama.cpp does the same in another order of sums: its flash attention, or the prompt token by token.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import llama_cpp
import numpy as np


def main() -> None:
    library = Path(llama_cpp.__file__).parent / "lib"
    if (library / "libggml.so").exists():
        ctypes.CDLL(str(library / "libggml.so")).ggml_backend_load_all_from_path(str(library).encode())
    job = json.load(sys.stdin)
    full = llama_cpp.GGML_TYPE_F32  # keys and values; half precision would be one more rounding
    again = job.get("again")
    model = llama_cpp.Llama(
        job["base"], n_ctx=512, n_threads=1, n_threads_batch=1, type_k=full, type_v=full, verbose=False,
        flash_attn=again == "flash attention",
    )  # fmt: skip
    found = []
    for text in job["texts"]:
        prompt = model.tokenize(text.encode(), add_bos=False, special=True)
        model.reset()
        for part in [[token] for token in prompt] if again == "token by token" else [prompt]:
            model.eval(part)
        answer: list[int] = []
        for _ in range(job["tokens"]):
            logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(model.ctx), shape=(model.n_vocab(),))
            answer.append(int(logits.argmax()))
            model.eval(answer[-1:])
        found.append({"prompt": prompt, "answer": answer})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
