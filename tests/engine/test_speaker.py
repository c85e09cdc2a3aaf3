"""`whit run --engine wasm`: the same answers as with torch, and torch is never loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROMPTS = ("The cat sat on", "What is a dog?", "One, two,")
_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
sys.argv = ["whit", *sys.argv[1:]]
from whit.cli import main
main()
"""


def run(*words: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TORCH, "run", *words, "--engine", "wasm", "--max-tokens", "16", "--json"],
        input="\n".join(PROMPTS) + "\n",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [each["answer"] for each in json.loads(done.stdout)["answers"]]


def test_the_same_answers_without_torch(tmp_path: Path) -> None:
    from tests.web.conftest import make_lora
    from whit.adapters.adapter import Adapter
    from whit.adapters.basis import basis_of
    from whit.adapters.tunable import bind
    from whit.adapters.vector import VectorSpec
    from whit.bases import load_base
    from whit.data.rows import Turn
    from whit.evaluation.decoding import Decoder

    base = load_base("eeny", dtype="float32")
    basis = basis_of(base, 2)
    spec = VectorSpec("tiny", 2, 13, 1, tuple(target.index for target in basis.targets), 0)
    vector = np.random.default_rng(0).normal(0, 0.3, spec.numbers).astype(np.float32)
    Adapter.from_vector(spec, vector, basis).save(tmp_path / "tiny")
    make_lora(tmp_path / "lora", base, scale=0.2, seed=0)
    ids = [base.encode(base.template.render([Turn("user", each)], instruction="Be short.")) for each in PROMPTS]

    def wanted(adapter: Adapter | None) -> list[str]:
        bound = bind(base, adapter) if adapter else None
        try:
            return [base.decode(found).strip() for found in Decoder(base, bound).answers(ids, most=16)]
        finally:
            if bound:
                bound.detach()

    told = ("--base", "eeny", "--instruction", "Be short.")
    bare = wanted(None)
    assert run("eeny", "--instruction", "Be short.") == bare == run(str(tmp_path / "tiny"), *told, "--bare")
    text = Adapter.load(tmp_path / "tiny").to_text()
    assert run(str(tmp_path / "tiny"), *told) == wanted(Adapter.load(tmp_path / "tiny")) == run(text, *told) != bare
    assert run(str(tmp_path / "lora"), *told) == wanted(Adapter.load(tmp_path / "lora")) != bare


def test_a_quantised_base_is_refused_with_the_reason(tmp_path: Path) -> None:
    from whit.errors import BaseError
    from whit.evaluation.card import Card, Data, save_card
    from whit.settings import RunSettings
    from whit.verbs.run import run as answer

    save_card(Card("tq", "tiny", 13, "eeny:nf4", "f", Data("d", "h", 1, 1, 0, 0)), tmp_path / "card.json")
    for name in (str(tmp_path), "eeny:nf4"):  # an adapter made for one, and one alone
        with pytest.raises(BaseError, match="eeny:nf4: the engine reads GGUF files alone, not bases that bitsandbytes"):
            answer(RunSettings(adapter=name, prompt="a", engine="wasm"))


@pytest.mark.parametrize("damage", ["cut", "length", "shape"])
def test_a_damaged_lora_is_refused(tmp_path: Path, damage: str) -> None:
    from tests.web.conftest import make_lora
    from whit.bases import load_base
    from whit.engine.speaker import Speaker
    from whit.errors import DamagedAdapter

    folder = make_lora(tmp_path / "lora", load_base("eeny", dtype="float32"), scale=0.1, seed=1)
    weights = folder / "adapter_model.safetensors"
    content = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(content[:-100])
    elif damage == "length":
        weights.write_bytes(b"\xff" * 8 + content[8:])
    else:
        weights.write_bytes(content.replace(b'"shape":[2,128]', b'"shape":[4,064]').replace(b"064", b" 64"))
    with pytest.raises(DamagedAdapter):
        Speaker("eeny", str(folder))
