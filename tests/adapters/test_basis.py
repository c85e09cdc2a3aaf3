"""The basis: LAPACK's SVD up to sign, the rules where W does not determine it, and the same everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import resources
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whit.adapters import basis as module
from whit.adapters import outputs
from whit.adapters.basis import Basis, basis_of, compute_basis, load_basis, save_basis, truncated_svd
from whit.adapters.philox import philox_uniform
from whit.bases import Base, load_base
from whit.errors import BaseError, UsageError


def _random(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns))


def _with_values(values: list[float], rows: int, columns: int, seed: int = 0) -> np.ndarray:
    left = np.linalg.qr(_random(rows, len(values), seed))[0]
    right = np.linalg.qr(_random(columns, len(values), seed + 1))[0]
    return (left * values) @ right.T


# 300 and more on the smaller side go through ARPACK, fewer through LAPACK
@pytest.mark.parametrize(("rows", "columns"), [(20, 20), (40, 9), (9, 40), (400, 300), (300, 400), (320, 320)])
@pytest.mark.parametrize("rank", [1, 2, 8])
def test_lapack_up_to_sign(rows: int, columns: int, rank: int) -> None:
    W = _random(rows, columns)
    US, V = truncated_svd(W, rank, 3)
    U, s, Vh = np.linalg.svd(W, full_matrices=False)
    assert US.shape == (rows, rank)
    assert V.shape == (columns, rank)
    for column in range(rank):
        sign = np.sign(Vh[column] @ V[:, column])
        assert np.allclose(V[:, column], sign * Vh[column], atol=1e-9)
        assert np.allclose(US[:, column], sign * s[column] * U[:, column], atol=1e-8)


def test_small_singular_values_are_exact_too() -> None:
    W = _with_values([10.0, 1.0, 1e-2, 1e-4], 300, 290)
    US, _ = truncated_svd(W, 4, 0)
    assert np.linalg.norm(US, axis=0) == pytest.approx([10, 1, 1e-2, 1e-4], rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 30), st.integers(3, 30), st.integers(0, 500))
def test_sign_rule(seed: int, rows: int, columns: int, index: int) -> None:
    W = _random(rows, columns, seed)
    US, V = truncated_svd(W, 3, index)
    signs = philox_uniform(columns, key=0x77686974, stream=(index, 0, 0x5349), variance=1.0)
    assert (signs.astype(np.float64) @ V > 0).all()
    flipped_US, flipped_V = truncated_svd(-W, 3, index)
    assert np.allclose(flipped_V, V, atol=1e-7)
    assert np.allclose(flipped_US, -US, atol=1e-7)


HARD = {
    "orthogonal": np.linalg.qr(_random(30, 30))[0],
    "identity": np.eye(24),
    "zero": np.zeros((16, 24)),
    "zero tall": np.zeros((24, 16)),
    "repeated across the rank": _with_values([3.0, 1.0, 1.0, 1.0, 0.5], 20, 30),
    "repeated first": _with_values([2.0, 2.0, 0.1], 40, 20),
    "rank one, wide": _with_values([5.0], 12, 40),
    "rank one, tall": _with_values([5.0], 40, 12),
    "large, repeated": _with_values([2.0] * 20 + [1.0] * 10, 300, 310),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_rules_settle_what_w_does_not(name: str, rank: int) -> None:
    """Reordering rows and columns is another computation with other rounding, of the same directions."""
    W = HARD[name]
    US, V = truncated_svd(W, rank, 1)
    assert np.allclose(V.T @ V, np.eye(rank), atol=1e-9)
    assert np.allclose(US, W @ V, atol=1e-9)
    s = np.linalg.svd(W, compute_uv=False)[:rank]
    assert np.allclose(np.linalg.norm(US, axis=0), s, atol=1e-6)
    rows = np.random.default_rng(5).permutation(W.shape[0])
    other_US, other_V = truncated_svd(W[rows], rank, 1)
    noise = 1e-13 * np.random.default_rng(6).normal(size=W.shape) * np.abs(W).max()
    assert np.allclose(other_V, V, atol=1e-6)
    assert np.allclose(truncated_svd(W + noise, rank, 1)[1], V, atol=1e-6)
    assert np.allclose(other_US, US[rows], atol=1e-6)
    # What is beyond the rank of W is exactly nothing, so that its bytes agree too.
    assert (US[:, s <= 1e-6 * max(s[0], 1e-300)] == 0).all()


@pytest.mark.parametrize("name", ["orthogonal", "identity", "repeated across the rank", "repeated first"])
def test_a_cluster_is_the_span_of_the_singular_vectors(name: str) -> None:
    W = HARD[name]
    _, V = truncated_svd(W, 2, 0)
    s = np.linalg.svd(W, compute_uv=False)
    assert np.linalg.norm(W @ V, axis=0) == pytest.approx(s[:2])


def test_arpack_and_lapack_agree() -> None:
    W = _random(300, 420)
    arpack = truncated_svd(W, 4, 0)
    from scipy.sparse.linalg import ArpackNoConvergence

    refusal = ArpackNoConvergence("no convergence", np.zeros(0), np.zeros((0, 0)))
    with mock.patch("scipy.sparse.linalg.eigsh", side_effect=refusal) as refused:
        lapack = truncated_svd(W, 4, 0)
    assert refused.called
    for one, other in zip(arpack, lapack, strict=True):
        assert np.allclose(one, other, atol=1e-10)


def test_a_matrix_smaller_than_the_rank() -> None:
    with pytest.raises(UsageError, match="this base has 3"):
        truncated_svd(_random(3, 9), 4, 0)


def test_basis_of_a_base(shared_base: Base) -> None:
    """U spans the leading principal components of what transformers' own forward puts out; z has variance 1."""
    basis = compute_basis(shared_base, 3)
    assert len(basis.targets) == 14
    given: dict[str, torch.Tensor] = {}
    for target in basis.targets:
        layer = shared_base.model.get_submodule(target.name)
        layer.register_forward_hook(lambda *seen, name=target.name: given.__setitem__(name, seen[1][0][0, 8:]))
    text = (resources.files("whit.adapters") / outputs.TEXT).read_text()
    ids = shared_base.encode(text)[: min(outputs.TOKENS, shared_base.context)]
    assert len(ids) > 64
    before = {name: part.clone() for name, part in shared_base.model.state_dict().items()}
    with torch.no_grad():
        shared_base.model(input_ids=torch.tensor([ids]))
    for target, US, V in zip(basis.targets, basis.outward, basis.inward, strict=True):
        W = shared_base.weight(target.name).double().numpy()
        assert (US.dtype, V.dtype) == (torch.bfloat16, torch.bfloat16)
        assert (tuple(US.shape), tuple(V.shape)) == ((W.shape[0], 3), (W.shape[1], 3))
        x = given[target.name].double().numpy()
        Y = x @ W.T
        _, s, Vh = np.linalg.svd((Y - Y.mean(0)) / np.sqrt(len(Y)), full_matrices=False)
        assert np.linalg.norm(US.double(), axis=0) == pytest.approx(s[:3], rel=1e-2)
        cosines = np.abs(np.diag(Vh[:3] @ (US.double().numpy() / s[:3])))
        assert (cosines > 0.99).all()
        assert (x @ V.double().numpy()).std(0) == pytest.approx(np.ones(3), rel=2e-2)
    for name, part in shared_base.model.state_dict().items():
        assert torch.equal(part, before[name])


_PRINT = """
import sys
from threadpoolctl import threadpool_limits
import torch
from whit.bases import load_base
from whit.adapters.basis import compute_basis
for dtype in ("float32", "bfloat16"):
    base = load_base(sys.argv[1], dtype=dtype)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with threadpool_limits(threads):
            print(compute_basis(base, 2).fingerprint)
"""


def test_the_same_in_another_process_with_other_threads_and_number_type(base_folder: Path, basis: Basis) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    command = [sys.executable, "-c", _PRINT, str(base_folder)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
    assert len(told) == 4
    assert set(told) == {basis.fingerprint}


def test_another_base_another_rank_another_basis(tmp_path: Path, shared_base: Base, basis: Basis) -> None:
    from whit.testing import tiny_base

    assert compute_basis(shared_base, 1).fingerprint != basis.fingerprint
    assert compute_basis(tiny_base(tmp_path, seed=1), 2).fingerprint != basis.fingerprint


@pytest.mark.parametrize("rank", [0, -1, 65])
def test_ranks_that_cannot_be(shared_base: Base, rank: int) -> None:
    with pytest.raises(UsageError, match="--rank"):
        compute_basis(shared_base, rank)


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    from whit.testing import tiny_base

    base = tiny_base(tmp_path, seed=2)
    with torch.no_grad():
        base.model.get_submodule("model.layers.0.self_attn.q_proj").weight[0, 0] = float("nan")
    with pytest.raises(BaseError, match=r"q_proj holds NaN"):
        compute_basis(base, 2)


def test_cache_hit_does_not_compute(shared_base: Base, basis: Basis) -> None:
    with mock.patch.object(module, "compute_basis", side_effect=AssertionError("computed again")):
        again = basis_of(shared_base, 2)
    assert again.fingerprint == basis.fingerprint
    assert again.targets == basis.targets


def test_a_damaged_cache_is_computed_again(base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHIT_CACHE", str(tmp_path))
    base = load_base(base_folder, dtype="float32")
    whole = basis_of(base, 1)
    (file,) = tmp_path.rglob("basis-*-r1.safetensors")
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[-5] ^= 1
    for damaged in (b"", content[: len(content) // 2], bytes(flipped), b"\xff" * len(content)):
        file.write_bytes(damaged)
        assert load_basis(file, base_fingerprint=base.fingerprint) is None
        assert basis_of(base, 1).fingerprint == whole.fingerprint
        assert load_basis(file, base_fingerprint=base.fingerprint) is not None


def test_a_basis_of_another_base_or_rules_is_not_taken(tmp_path: Path, basis: Basis) -> None:
    path = tmp_path / "b.safetensors"
    save_basis(basis, path)
    assert load_basis(path, base_fingerprint="0" * 64) is None
    assert load_basis(path, base_fingerprint=basis.base_fingerprint) is not None
    with mock.patch.object(module, "RULES", 3):
        assert load_basis(path, base_fingerprint=basis.base_fingerprint) is None


def test_a_cache_of_hostile_shapes_is_not_taken(tmp_path: Path, basis: Basis) -> None:
    from safetensors.torch import save_file

    about = {"rules": "2", "rank": "2", "base": basis.base_fingerprint, "fingerprint": basis.fingerprint}
    path = tmp_path / "b.safetensors"
    name = "model.layers.0.self_attn.q_proj"
    for shape, dtype in (((), torch.bfloat16), ((3,), torch.int8), ((2, 2), torch.float64)):
        tensors = {f"{name}.US": torch.zeros(shape, dtype=dtype), f"{name}.V": torch.zeros(shape, dtype=dtype)}
        save_file(tensors, str(path), metadata=about)
        assert load_basis(path, base_fingerprint=basis.base_fingerprint) is None


@pytest.mark.slow
def test_smollm2s_basis_is_what_it_was(smollm2: Path) -> None:
    """Written down, so that another machine, LAPACK or version of whit that disagrees is noticed."""
    basis = compute_basis(load_base(smollm2, dtype="float32"), 2)
    assert len(basis.targets) == 210
    assert basis.fingerprint.startswith("b57473d79419d38e")
