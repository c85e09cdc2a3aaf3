"""The fixed directions that `tiny` and `xs` adapters move along: for each adapted matrix W, U·S and V of rank r.

U holds the directions in which the module's outputs vary most on a fixed text, S by how much (the standard
deviation along each), and V = Wᵀ U S⁻¹, so that z = Vᵀ x has variance 1 and W ≈ U S Vᵀ for the inputs that
occur. A step in R therefore means the same in every module. (The truncated SVD of W itself, as in the papers, is the
case in which inputs vary equally in all directions; they do not: see docs/log.md for what that cost.)

Derived from the base alone and the same everywhere: outputs and SVD are computed in float64 from the dequantised
weights, whatever number type the base was loaded in; signs and near-equal singular values follow the rules below;
what is kept, U·S and V, is rounded to bfloat16, far coarser than the float64 rounding in which two machines may
differ. Known by its fingerprint, computed once per base and cached.

Rules (version 2), for the SVD of a module's centred outputs Y, shape (tokens, out), divided by √tokens:
- sign: the sum of U's column times the Philox stream (module, 0, SIGNS) is positive;
- singular values within `CLUSTER` of their neighbour (relative to the largest) form a cluster. The columns inside
  one are not determined by Y, so they are replaced by the QR factor of the projection of Philox columns
  (module, column, CLUSTERS) on the cluster's space;
- a singular value of at most `CLUSTER` times the largest counts as zero: U·S's and V's columns are then zero.

Knows nothing of vectors, training or files of adapters.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from whit.adapters.philox import philox_uniform
from whit.adapters.targets import Target, all_targets
from whit.errors import BaseError, StorageError, UsageError

if TYPE_CHECKING:
    import torch

    from whit.adapters.learned import LearnedBasis
    from whit.bases import Base

RULES = 2
MAX_RANK = 64
CLUSTER = 1e-6
_SIGNS, _CLUSTERS, _START = 0x5349, 0x434C, 0x5354
_KEY = 0x77686974  # "whit"

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Basis:
    """Directions of one base at one rank.

    `outward[i]` is U·S of target i, shape (out, r); `inward[i]` is V, shape (in, r); both bfloat16. `learned` holds P
    where it was learned and not drawn; the fingerprint is then that one's.
    """

    rank: int
    targets: tuple[Target, ...]
    outward: tuple[torch.Tensor, ...]
    inward: tuple[torch.Tensor, ...]
    base_fingerprint: str
    learned: LearnedBasis | None = None

    @property
    def fingerprint(self) -> str:
        """64 hex characters over rules, rank, module numbers, shapes and the stored bfloat16 bytes."""
        if self.learned is not None:
            return self.learned.fingerprint
        cached = self.__dict__.get("_fingerprint")
        if cached is None:
            import torch

            digest = hashlib.sha256(f"whit basis {RULES} {self.rank}".encode())
            for target, us, v in zip(self.targets, self.outward, self.inward, strict=True):
                digest.update(f"\n{target.index} {us.shape[0]} {v.shape[0]}\n".encode())
                for part in (us, v):
                    digest.update(part.contiguous().view(torch.int16).numpy().tobytes())
            cached = digest.hexdigest()
            object.__setattr__(self, "_fingerprint", cached)
        return str(cached)


def truncated_svd(weight: Array, rank: int, index: int) -> tuple[Array, Array]:
    """Canonical U·S, shape (out, r), and V, shape (in, r), of one matrix (out, in); all float64.

    `index` is the module's number in the fixed order. The leading eigenvectors of the smaller Gram matrix
    are found by ARPACK to machine precision (LAPACK for small matrices, or where ARPACK gives up), so
    the result does not depend on the method. Raises `UsageError` where the matrix is smaller than `rank`.
    """
    W = np.ascontiguousarray(weight, dtype=np.float64)
    smaller = min(W.shape)
    if rank > smaller:
        raise UsageError(f"a basis of rank {rank} needs matrices of at least that size; this base has {smaller}")
    spare = min(smaller, rank + 3)
    V, s = _leading(W, spare)
    if _cluster_end(s, rank - 1) == spare < smaller:
        # A cluster may go on beyond what was computed: only the whole spectrum knows where it ends.
        V, s = _leading(W, smaller)
    V = _settle(V, s, rank, index)
    US = W @ V
    # Beyond the rank of W, U·S is nothing but rounding, which differs from machine to machine.
    US[:, s[:rank] <= CLUSTER * s[0]] = 0.0
    return US, V


def _leading(W: Array, count: int) -> tuple[Array, Array]:
    """The `count` leading right singular vectors (in, count) and values (count,), largest first."""
    from scipy.linalg import eigh
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    wide = W.shape[1] > W.shape[0]
    gram = W @ W.T if wide else W.T @ W
    size = gram.shape[0]
    vectors: Array | None = None
    if size > 256 and count <= size // 8:
        start = philox_uniform(size, key=_KEY, stream=(0, 0, _START), variance=1.0).astype(np.float64)
        product = LinearOperator(gram.shape, matvec=lambda x: gram @ x, dtype=np.float64)
        with contextlib.suppress(ArpackNoConvergence):
            vectors = eigsh(product, k=count, ncv=max(40, 4 * count), tol=0, v0=start, maxiter=500)[1]
    if vectors is None:
        # All of them: asked for a part of a tight cluster, LAPACK's other drivers may give back fewer.
        vectors = eigh(gram, driver="evd", check_finite=False)[1][:, size - count :]
    # The Gram matrix squares the values; taking them again from W keeps the small ones exact.
    if wide:
        image = W.T @ vectors
        s = np.linalg.norm(image, axis=0)
        vectors = np.linalg.qr(image[:, np.argsort(-s)])[0]
    else:
        s = np.linalg.norm(W @ vectors, axis=0)
        vectors = vectors[:, np.argsort(-s)]
    return vectors, np.sort(s)[::-1]


def _settle(V: Array, s: Array, rank: int, index: int) -> Array:
    """Apply the rules of cluster and sign to the leading vectors; returns (in, rank)."""
    width = V.shape[0]
    settled = V[:, :rank].copy()
    live = int((s[:rank] > CLUSTER * s[0]).sum())
    column = 0
    while column < live:
        end = _cluster_end(s, column)
        if end > column + 1:
            inside = V[:, column:end]
            kept = min(end, live)
            fixed = np.stack([_fixed(width, index, at, _CLUSTERS) for at in range(column, kept)], axis=1)
            settled[:, column:kept] = np.linalg.qr(inside @ (inside.T @ fixed))[0]
        column = end
    for at in range(live, rank):
        # No direction of W is left: a fixed column, made orthogonal (twice, for rounding) to those before it.
        rest = _fixed(width, index, at, _CLUSTERS)
        for _ in range(2):
            rest = rest - settled[:, :at] @ (settled[:, :at].T @ rest)
        settled[:, at] = rest / np.linalg.norm(rest)
    below = _fixed(width, index, 0, _SIGNS) @ settled < 0
    return np.ascontiguousarray(np.where(below, -settled, settled))


def _cluster_end(s: Array, column: int) -> int:
    end = column + 1
    while end < s.shape[0] and s[end - 1] - s[end] <= CLUSTER * s[0]:
        end += 1
    return end


def _fixed(width: int, index: int, column: int, purpose: int) -> Array:
    """A float64 column (width,) that is the same everywhere."""
    return philox_uniform(width, key=_KEY, stream=(index, column, purpose), variance=1.0).astype(np.float64)


def output_directions(Y: Array, W: Array, rank: int, index: int) -> tuple[Array, Array]:
    """U·S, shape (out, r), and V = Wᵀ U S⁻¹, shape (in, r), for outputs Y (tokens, out) of the matrix W (out, in)."""
    scores, U = truncated_svd((Y - Y.mean(0)) / np.sqrt(len(Y)), rank, index)
    s = np.linalg.norm(scores, axis=0)
    live = s > 0
    return U * s, np.where(live, W.T @ U / np.where(live, s, 1.0), 0.0)


def compute_basis(base: Base, rank: int) -> Basis:
    """The basis of every adaptable module of `base`. Takes seconds; see `basis_of` for the cached one."""
    import torch
    from threadpoolctl import threadpool_limits

    if not 1 <= rank <= MAX_RANK:
        raise UsageError(f"--rank: between 1 and {MAX_RANK}, not {rank}")
    targets = all_targets(name for name, _ in base.model.named_modules())
    if not targets:
        raise BaseError(f"base {base.name}: no projection that whit can adapt was found in it")

    from whit.adapters.outputs import module_outputs

    outputs = module_outputs(base, [target.name for target in targets])

    def directions(target: Target) -> tuple[torch.Tensor, torch.Tensor]:
        Y, weight = (part.numpy() for part in outputs[target.name])
        if not (np.isfinite(weight).all() and np.isfinite(Y).all()):
            raise BaseError(f"base {base.name}: {target.name} holds NaN or infinite weights; fetch the base again")
        us, v = output_directions(Y, weight.astype(np.float64), rank, target.index)
        return torch.from_numpy(us).to(torch.bfloat16), torch.from_numpy(v).to(torch.bfloat16)

    # One matrix a core: BLAS gains little from two cores on matrices of this size.
    workers = max(1, min(8, os.cpu_count() or 1))
    with threadpool_limits(1), ThreadPoolExecutor(workers) as pool:
        pairs = list(pool.map(directions, targets))
    return Basis(
        rank=rank,
        targets=targets,
        outward=tuple(us.contiguous() for us, _ in pairs),
        inward=tuple(v.contiguous() for _, v in pairs),
        base_fingerprint=base.fingerprint,
    )


def basis_of(base: Base, rank: int) -> Basis:
    """The basis of `base` at `rank`, from the cache folder where it is there and whole."""
    path = _cache_path(base.fingerprint, rank)
    cached = load_basis(path, base_fingerprint=base.fingerprint) if path.is_file() else None
    if cached is not None and cached.rank == rank:
        return cached
    basis = compute_basis(base, rank)
    with contextlib.suppress(StorageError):  # a cache that cannot be written costs seconds, no more
        save_basis(basis, path)
    return basis


def _cache_path(base_fingerprint: str, rank: int) -> Path:
    from whit.bases.cache import cache_folder

    return cache_folder() / "basis" / base_fingerprint[:32] / f"basis-{RULES}-r{rank}.safetensors"


def save_basis(basis: Basis, path: str | Path) -> None:
    """Write a basis as one safetensors file. Raises `StorageError`."""
    from safetensors.torch import save

    from whit.files import atomic_write

    tensors = {}
    for target, us, v in zip(basis.targets, basis.outward, basis.inward, strict=True):
        tensors[f"{target.name}.US"] = us
        tensors[f"{target.name}.V"] = v
    about = {"rules": str(RULES), "rank": str(basis.rank), "base": basis.base_fingerprint}
    atomic_write(path, save(tensors, metadata={**about, "fingerprint": basis.fingerprint}))


def load_basis(path: str | Path, *, base_fingerprint: str) -> Basis | None:
    """Read a basis back; None where the file is damaged, of other rules, or of another base."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            about = file.metadata() or {}
            if about.get("rules") != str(RULES) or about.get("base") != base_fingerprint:
                return None
            names = [key.removesuffix(".V") for key in file.keys() if key.endswith(".V")]  # noqa: SIM118
            targets = all_targets(names)
            basis = Basis(
                rank=int(about["rank"]),
                targets=targets,
                outward=tuple(file.get_tensor(f"{target.name}.US") for target in targets),
                inward=tuple(file.get_tensor(f"{target.name}.V") for target in targets),
                base_fingerprint=base_fingerprint,
            )
            return basis if basis.fingerprint == about.get("fingerprint") else None
    except (SafetensorError, OSError, KeyError, ValueError, IndexError, RuntimeError):
        return None
