"""Does llama.cpp say what whit says? Greedy continuations of 20 prompts, token by token.

    python benchmarks/greedy.py eeny --llama PYTHON

PYTHON is one that has llama-cpp-python. whit computes in float32 from the file's dequantised weights; llama.cpp also
rounds what goes into each product to 8 bits. So two things are compared with it: whit as it is, and whit with inputs
rounded in the same way (blocks of 32 for Q8_0, of 256 for TQ2_0), which shows whether that is all the difference.
Where two part, whit's own lead of its token over the other's is told (in logits). What may be asked for is shown by
llama.cpp against itself: with its flash attention, which sums in another order, and with prompts read token by token.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import open_base, report

from whit.bases import Base
from whit.bases.gguf_file import GgufFile

PROMPTS = (
    "Once upon a time there was",
    "The little girl opened the door and",
    "It was a cold winter morning, and",
    '"I do not know," said the old man,',
    "The king had three sons. The eldest",
    "My dog likes to",
    "They walked along the river until",
    "There was nothing in the box but",
    "In the garden behind the house",
    "When the rain stopped, the children",
    "<|im_start|>user\nI would like to book a table for two.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWhat is the weather like in Paris tomorrow?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nPlay a song by the Beatles.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nTurn the command into JSON.\nwake me at seven<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nIs this message spam or ok?\nYou have won a prize<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nI need a bus to London on Friday.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nTom has 3 apples and gets 4 more. How many has he?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nTell me a story about a fox.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nFind me a dentist near here.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nThank you, that is all.<|im_end|>\n<|im_start|>assistant\n",
)


def rounded(x: torch.Tensor, block: int) -> torch.Tensor:
    """`x` to the nearest 255 steps of each block's largest magnitude, as ggml's q8_0 (f16 scale) and q8_K do."""
    blocks = x.unflatten(-1, (-1, block))
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True)) if block == 256 else blocks.abs().amax(-1, True)
    scale = largest / (-127 if block == 256 else 127)
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    steps = (blocks * inverse).round().clamp(-128, 127)
    kept = scale if block == 256 else scale.half().float()
    return (steps * kept).flatten(-2)


@contextlib.contextmanager
def inputs_rounded(base: Base) -> Iterator[None]:
    """Every product's input goes through `rounded`."""
    ternary = any(tensor.type.name.startswith("TQ") for tensor in GgufFile(base.path).tensors.values())
    hooks = []
    for name, module in base.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            block = 256 if ternary and name != "lm_head" else 32
            hooks.append(module.register_forward_pre_hook(lambda _, given, block=block: (rounded(given[0], block),)))
    yield
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def continuation(base: Base, prompt: list[int], most: int) -> tuple[list[int], list[torch.Tensor]]:
    """The likeliest tokens one after another, and the logits that each was chosen by."""
    answer: list[int] = []
    seen: list[torch.Tensor] = []
    for _ in range(most):
        seen.append(base.model(torch.tensor([prompt + answer])).logits[0, -1].float())
        answer.append(int(seen[-1].argmax()))
    return answer, seen


def against(name: str, own: list[tuple[list[int], list[torch.Tensor]]], other: list[list[int]]) -> dict[str, Any]:
    """How many continuations are the same; of the others, where they part and how near the choice was."""
    parted = []
    for place, ((answer, logits), found) in enumerate(zip(own, other, strict=True)):
        first = next((at for at, pair in enumerate(zip(answer, found, strict=True)) if pair[0] != pair[1]), None)
        if first is not None:
            lead = float(logits[first][answer[first]] - logits[first][found[first]])
            parted.append({"prompt": place, "token": first, "lead_in_logits": round(lead, 4)})
    return {"whit": name, "prompts": len(own), "same": len(own) - len(parted), "parted": parted}


def by_llama(path: Path, python: str, most: int, again: str | None = None) -> list[dict[str, Any]]:
    job = {"base": str(path), "texts": PROMPTS, "tokens": most, "again": again}
    peer = Path(__file__).parent / "peers" / "llama_greedy.py"
    done = subprocess.run([python, str(peer)], input=json.dumps(job), capture_output=True, text=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bases", nargs="+")
    parser.add_argument("--llama", required=True, help="a Python that has llama-cpp-python")
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    for name in options.bases:
        base = open_base(name, "float32")
        prompts = [base.encode(text) for text in PROMPTS]
        own = [continuation(base, prompt, options.tokens) for prompt in prompts]
        found = by_llama(base.path, options.llama, options.tokens)
        tokens_alike = sum(item["prompt"] == prompt for item, prompt in zip(found, prompts, strict=True))
        theirs = [item["answer"] for item in found]
        with inputs_rounded(base):
            as_they_do = [continuation(base, prompt, options.tokens) for prompt in prompts]
        about = {"base": name, "tokens": options.tokens, "prompts_tokenised_alike": tokens_alike}
        report([about | against("float32", own, theirs), about | against("inputs in 8 bits", as_they_do, theirs)])
        for how in ("flash attention", "token by token"):
            again = by_llama(base.path, options.llama, options.tokens, how)
            itself = sum(item["answer"] == answer for item, answer in zip(again, theirs, strict=True))
            report([about | {"llama.cpp": how, "prompts": len(theirs), "same": itself}])


if __name__ == "__main__":
    main()
