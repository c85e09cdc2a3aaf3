"""Quantised bases: what is computed is what is dequantised, gradients pass, adapters fit, and faults are told."""

from __future__ import annotations

import functools
import importlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from whit.bases import Base, load_base
from whit.bases.memory import available_bytes, weight_bytes
from whit.bases.quantize import BYTES, METHODS, fingerprint_of, join_name, split_name
from whit.errors import BaseError, UsageError, WrongBase
from whit.testing import write_tiny_base

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "tiny", hidden=64, ffn=128, heads=2, kv_heads=1)


def test_names() -> None:
    assert split_name("smollm2:nf4") == ("smollm2", "nf4") and split_name("a/b@c:int8") == ("a/b@c", "int8")
    assert split_name("smollm2") == ("smollm2", None) and split_name(":nf4") == (":nf4", None)
    assert split_name("C:folder") == ("C:folder", None)
    assert join_name("x", None) == "x" and join_name("x", "nf4") == "x:nf4" == join_name("x:nf4", "nf4")
    with pytest.raises(UsageError, match="quantised as int8 by its name"):
        join_name("x:int8", "nf4")


@pytest.mark.parametrize("method", METHODS)
def test_it_computes_with_what_it_dequantises(folder: Path, method: str) -> None:
    plain = load_base(str(folder), dtype="float32")
    base = load_base(f"{folder}:{method}", dtype="float32")
    assert base.quantized == method and base.name.endswith(f":{method}") and len(base.packed) == 14
    assert base.fingerprint == fingerprint_of(plain.fingerprint, method) != plain.fingerprint
    assert base.parameters == plain.parameters
    dense = load_base(str(folder), dtype="float32")
    worst = {"nf4": 0.15, "int8": 0.006}[method]
    for name in base.packed:
        W, original = base.weight(name), plain.weight(name)
        assert W.dtype == torch.float32 and W.shape == original.shape
        assert float((W - original).abs().max()) <= worst * float(original.abs().max())
        dense.model.get_submodule(name).weight.data.copy_(W)
    ids = torch.tensor([base.encode("how do i pay with my card")])
    with torch.no_grad():
        found, expected = base.model(ids).logits, dense.model(ids).logits
        assert torch.allclose(found, expected, atol=1e-4)
        assert not torch.allclose(expected, plain.model(ids).logits, atol=1e-3)


def unpacked(folder: Path, method: str) -> Base:
    """The base in float32 with a dense layer in the place of every packed one."""
    dense = load_base(f"{folder}:{method}", dtype="float32")
    for name in dense.packed:
        linear = torch.nn.Linear(*reversed(dense.weight(name).shape), bias=False)
        linear.weight.data.copy_(dense.weight(name))
        linear.requires_grad_(False)
        parent, _, leaf = name.rpartition(".")
        setattr(dense.model.get_submodule(parent), leaf, linear)
    return dense


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["xs", "lora"])
def test_adapters_learn_on_it_as_on_the_dense_matrices(folder: Path, method: str, kind: str) -> None:
    from whit.adapters.targets import all_targets
    from whit.adapters.tunable import tune_lora, tune_vector
    from whit.adapters.vector import xs_spec

    base, dense = load_base(f"{folder}:{method}", dtype="float32"), unpacked(folder, method)
    gradients = []
    for one in (base, dense):
        targets = all_targets(module for module, _ in one.model.named_modules())
        if kind == "lora":
            bound = tune_lora(one, targets, rank=2, alpha=4.0, dropout=0.0, seed=0)
        else:
            bound = tune_vector(one, xs_spec([target.index for target in targets], 2))
        ids = torch.tensor([one.encode("what if i see my new card")])
        with bound.active():
            one.model(ids).logits.float().logsumexp(-1).sum().backward()
        gradients.append(torch.cat([part.grad.flatten() for part in bound.parameters() if part.grad is not None]))
        bound.detach()
    assert float(gradients[0].abs().max()) > 0
    assert torch.allclose(gradients[0], gradients[1], atol=1e-3 * float(gradients[1].abs().max()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("twice", [False, True])
def test_a_sparse_adapters_weights_are_those_chosen_on_the_dense_matrices(
    folder: Path, method: str, twice: bool
) -> None:
    from whit.adapters.targets import all_targets
    from whit.training.memory import checkpointed
    from whit.training.sparse import find_places

    def loss_on(one: Base, text: str) -> torch.Tensor:
        found: torch.Tensor = one.model(torch.tensor([one.encode(text)])).logits.float().logsumexp(-1).mean()
        return found

    found = []
    for one in (load_base(f"{folder}:{method}", dtype="float32"), unpacked(folder, method)):
        targets = all_targets(module for module, _ in one.model.named_modules())
        losses = [functools.partial(loss_on, one, text) for text in ("what if i see my new card", "how do i pay")]
        with checkpointed(one, twice):
            found.append(find_places(one, targets, 7, losses, rate=0.01))
        assert all(layer.stand_in is None for layer in one.packed.values())
        assert not any(part.requires_grad for part in one.model.parameters())
    assert found[0] == found[1]


def test_an_adapter_of_the_dense_base_does_not_fit(folder: Path) -> None:
    from whit.adapters.targets import all_targets
    from whit.adapters.tunable import bind, tune_vector
    from whit.adapters.vector import tiny_spec

    plain, base = load_base(str(folder)), load_base(f"{folder}:nf4")
    indices = [target.index for target in all_targets(name for name, _ in plain.model.named_modules())]
    bound = tune_vector(plain, tiny_spec(indices, 13, rank=2))
    adapter = bound.export()
    bound.detach()
    with pytest.raises(WrongBase):
        bind(base, adapter)


def test_the_packed_layers_take_what_is_said(folder: Path) -> None:
    base = load_base(f"{folder}:nf4", dtype="float32")
    held = sum(part.numel() * part.element_size() for layer in base.packed.values() for part in layer.buffers())
    count = sum(layer.in_features * layer.out_features for layer in base.packed.values())
    assert held == pytest.approx(BYTES["nf4"] * count, rel=0.02)
    assert not any(part.numel() > 10 for layer in base.packed.values() for part in layer.parameters())
    whole = sum(part.numel() * part.element_size() for part in (*base.model.parameters(), *base.model.buffers()))
    assert whole == pytest.approx(weight_bytes(base.source, 4, "nf4"), rel=0.05)


def test_a_base_beyond_the_memory_is_refused_with_advice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from whit.bases import memory

    there = available_bytes()
    assert there is None or there > 1e6
    monkeypatch.setattr(memory, "available_bytes", lambda device: 200_000)
    with pytest.raises(BaseError, match=r"its weights take .*, and .* of memory are free; try --quantize int8"):
        load_base(str(folder), dtype="float32")
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10)
    with pytest.raises(BaseError, match="choose a smaller base"):
        load_base(str(folder), dtype="float32")


def test_a_missing_package_and_a_missing_backend_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from whit.bases import quantize

    def no_kernel(W: torch.Tensor, method: str) -> None:
        raise NotImplementedError(
            "Could not run 'bitsandbytes::quantize_4bit' with arguments from the 'X' backend\nmore"
        )

    monkeypatch.setattr(quantize, "_pack", no_kernel)
    with pytest.raises(BaseError, match="has no backend here that quantises as nf4 on cpu"):
        load_base(f"{folder}:nf4")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(BaseError, match=r"needs the package bitsandbytes .*pip install 'whit\[quantize\]'"):
        load_base(f"{folder}:nf4")


def test_bitsandbytes_fetches_nothing_and_says_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A stand-in that does what bitsandbytes does when it is imported on a CPU with AVX512-BF16."""
    from whit.bases.quantize import import_bitsandbytes

    (tmp_path / "bitsandbytes.py").write_text(
        "import logging\n"
        "fetched = False\n"
        "try:\n"
        "    from kernels import get_kernel\n"
        "    fetched = get_kernel('native code')\n"
        "except Exception as error:\n"
        "    logging.getLogger('bitsandbytes.backends.cpu.ops').warning('Failed to load: %s', error)\n"
    )
    (tmp_path / "kernels.py").write_text("def get_kernel(name):\n    return True\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bitsandbytes")
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    import_bitsandbytes()
    assert sys.modules["bitsandbytes"].fetched is False and not caplog.records
    assert importlib.import_module("kernels").get_kernel("by others") is True
    kept = sys.modules["kernels"]
    import_bitsandbytes()
    assert sys.modules["kernels"] is kept and not logging.getLogger("bitsandbytes.backends.cpu.ops").disabled


_LORA = """
import sys
from whit.adapters.targets import all_targets
from whit.adapters.tunable import tune_lora
from whit.bases import load_base

base = load_base(sys.argv[1], dtype="float32")
targets = all_targets(name for name, _ in base.model.named_modules())
tune_lora(base, targets, rank=2, alpha=4.0, dropout=0.0, seed=0)
assert "bitsandbytes" in sys.modules
"""


def test_a_lora_fetches_nothing_and_says_nothing_of_it(folder: Path, tmp_path: Path) -> None:
    """PEFT imports bitsandbytes wherever it is installed."""
    (tmp_path / "kernels.py").write_text("def get_kernel(*given, **named):\n    print('fetched', given)\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", _LORA, str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert (done.returncode, done.stdout) == (0, "") and "kernel" not in done.stderr, done.stderr
