"""PEFT's own TinyLoRA folders: writing ours as one, and reading one back.

PEFT computes W + B (Σᵢ vᵢ Pᵢ) A, with A, B, P and v all in its checkpoint; ours has A = Vᵀ and B = U S of the
canonical basis. Its tying gives the last group the remainder, ours spreads it, so that a grouping which PEFT
cannot have is written untied, v repeated for every module. An `xs` is written with the r² unit matrices as P.
Promises that a folder which we wrote comes back as the same adapter, number for number, also after PEFT has
loaded and saved it. Anyone else's TinyLoRA, whose directions are the SVD of W, becomes the same update as a `lora`.

Reads safetensors only, by an allow-list of settings. Knows nothing of running a model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from whit.adapters.adapter import Adapter
from whit.adapters.basis import basis_of
from whit.adapters.compact import NUMBER_TYPES, round_to
from whit.adapters.interop.plain_lora import placed
from whit.adapters.interop.tinylora_folder import TinyLoraFolder, read_config, read_folder
from whit.adapters.lora import CONFIG_NAME, WEIGHTS_NAME, LoraWeights
from whit.adapters.vector import VectorSpec, projections, xs_spec
from whit.errors import AdapterError, UsageError, WrongBase
from whit.files import atomic_write

if TYPE_CHECKING:
    from whit.adapters.basis import Basis
    from whit.bases import Base


def tying(modules: int, wanted: NDArray[np.int64]) -> float | None:
    """PEFT's `weight_tying` that gives `wanted` (a group for each module, in the model's order), or None."""
    groups = int(wanted.max()) + 1
    ratio = 1.0 - groups / modules
    return ratio if np.array_equal(peft_groups(modules, ratio), wanted) else None


def peft_groups(modules: int, weight_tying: float) -> NDArray[np.int64]:
    """The group of each module as PEFT counts them (peft 0.21, `TinyLoraModel._create_and_replace`)."""
    groups = max(1, round(modules * (1.0 - weight_tying)))
    size = max(1, modules // groups)
    return np.minimum(np.arange(modules) // size, groups - 1).astype(np.int64)


def export_peft_tinylora(adapter: Adapter, base: Base, folder: str | Path, *, basis: Basis | None = None) -> Path:
    """Write a `tiny` or `xs` adapter as a PEFT TinyLoRA folder; returns its safetensors file.

    Raises `AdapterError` for a `lora`, `WrongBase` or `WrongBasis` where the adapter is of another.
    """
    from safetensors.torch import save

    spec, vector = adapter.spec, adapter.vector
    if spec is None or vector is None:
        raise AdapterError("a lora adapter is no TinyLoRA; export it with --to lora")
    adapter.check_fits(base)
    basis = basis or basis_of(base, spec.rank)
    adapter.check_fits(base, basis)
    places = placed(spec, basis)
    names = [basis.targets[place].name for place in places]
    modules = _modules_in_order(base, names)
    order = [modules.index(name) for name in names]
    P, v, ratio = _numbers(spec, vector, np.argsort(order))

    tensors: dict[str, torch.Tensor] = {}
    for at, (place, name) in enumerate(zip(places, names, strict=True)):
        stem = f"base_model.model.{name}.tinylora_"
        tensors[f"{stem}A"] = basis.inward[place].float().T.contiguous()
        tensors[f"{stem}B"] = basis.outward[place].float().contiguous()
        tensors[f"{stem}P"] = P[at].clone()
    for group, part in enumerate(v):
        tensors[f"base_model.tinylora_v.{group}"] = torch.from_numpy(part.copy())
    config = {
        "peft_type": "TINYLORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": spec.rank,
        "u": v.shape[1],
        "weight_tying": ratio,
        "target_modules": modules,
        "projection_seed": spec.seed,
        "save_projection": True,
        "tinylora_dropout": 0.0,
        "fan_in_fan_out": False,
        "bias": "none",
        "init_weights": True,
        "inference_mode": True,
    }
    # PEFT keeps none of this when it saves again; reading does without it, where the numbers leave no doubt.
    about = {"format": "pt", "whit_groups": str(spec.groups), "whit_number_type": adapter.number_type}
    about["whit_base"] = base.fingerprint
    path = Path(folder)
    atomic_write(path / WEIGHTS_NAME, save(tensors, metadata=about))
    atomic_write(path / CONFIG_NAME, json.dumps(config, indent=2) + "\n")
    return path / WEIGHTS_NAME


def _numbers(
    spec: VectorSpec, vector: NDArray[np.float32], order: NDArray[np.int64]
) -> tuple[torch.Tensor, NDArray[np.float32], float]:
    """P of each target, v of each of PEFT's groups, and its tying. `order[i]` is the target at PEFT's place i."""
    square = spec.rank * spec.rank
    own = vector.reshape(spec.groups, spec.u)
    if spec.kind == "xs":
        unit = torch.eye(square).reshape(square, spec.rank, spec.rank)
        return unit.expand(len(spec.targets), *unit.shape), own[order], 0.0
    groups = spec.group_of()[order]
    ratio = tying(len(order), groups)
    P = torch.from_numpy(projections(spec))
    return (P, own, ratio) if ratio is not None else (P, own[groups], 0.0)


def import_peft(folder: str | Path, base: Base) -> Adapter:
    """Read a PEFT folder of `base`: a LoRA as it is, a TinyLoRA of ours exactly, any other TinyLoRA as a `lora`.

    Raises `DamagedAdapter` for a folder that cannot be read, and `AdapterError` where it is of another base.
    """
    path = Path(folder)
    if read_config(path).get("peft_type") == "LORA":
        weights = LoraWeights.load(path)
        adapter = Adapter.from_lora(weights)
        adapter.check_fits(base)
        return adapter
    held = read_folder(path)
    if held.about.get("whit_base", base.fingerprint) != base.fingerprint:
        raise WrongBase(f"{path}: it was made for another base than {base.name}; load the base that it names")
    basis = basis_of(base, held.rank)
    by_name = {target.name: target for target in basis.targets}
    strange = sorted(set(held.A) - set(by_name))
    if strange:
        raise AdapterError(f"{path}: it adapts {strange[0]}, which is no projection of {base.name}")
    modules = _modules_in_order(base, list(held.A))
    updates = _updates(held, modules, path)
    ours = _recognise(held, updates, basis)
    return ours if ours is not None else _as_lora(held, updates, base, path)


@dataclass(frozen=True)
class _Update:
    """B R A of one module, with the v and P that make R."""

    A: torch.Tensor
    B: torch.Tensor
    P: torch.Tensor
    v: torch.Tensor

    @property
    def R(self) -> torch.Tensor:  # noqa: N802 - the paper's letter
        return torch.einsum("i,ijk->jk", self.v, self.P)


def _updates(held: TinyLoraFolder, modules: Sequence[str], path: Path) -> dict[str, _Update]:
    groups = peft_groups(len(modules), held.weight_tying)
    found = {}
    for at, name in enumerate(modules):
        group = int(groups[at])
        if group not in held.v:
            raise AdapterError(f"{path}: the vector of group {group} is not in it; it belongs to another base")
        P = held.P.get(name)
        if P is None:
            # Left out by `save_projection=False`: PEFT draws it again from its seed and the module's place.
            generator = torch.Generator().manual_seed(held.seed + at)
            shape = (held.u, held.rank, held.rank)
            P = torch.normal(0.0, 1.0 / held.rank**0.5, shape, generator=generator)
        found[name] = _Update(held.A[name], held.B[name], P, held.v[group])
    return found


def _recognise(held: TinyLoraFolder, updates: Mapping[str, _Update], basis: Basis) -> Adapter | None:
    """The adapter that we wrote, or None where A, B and P are not ours."""
    chosen = [(place, target) for place, target in enumerate(basis.targets) if target.name in updates]
    for place, target in chosen:
        one = updates[target.name]
        if not torch.equal(one.A, basis.inward[place].float().T) or not torch.equal(
            one.B, basis.outward[place].float()
        ):
            return None
    targets = tuple(target.index for _, target in chosen)
    each = [updates[target.name] for _, target in chosen]
    square = held.rank**2
    vectors = np.stack([one.v.numpy() for one in each])
    unit = torch.eye(square).reshape(square, held.rank, held.rank)
    if held.u == square and all(torch.equal(one.P, unit) for one in each):
        return _adapter(xs_spec(targets, held.rank), vectors.reshape(-1), basis, held.about)
    for groups in _possible_groups(vectors, held.about):
        try:
            spec = VectorSpec("tiny", held.rank, groups * held.u, groups, targets, held.seed)
        except UsageError:
            continue
        P = torch.from_numpy(projections(spec))
        if all(torch.equal(one.P, P[at]) for at, one in enumerate(each)):
            first = [int(np.flatnonzero(spec.group_of() == group)[0]) for group in range(groups)]
            return _adapter(spec, vectors[first].reshape(-1), basis, held.about)
        return None  # P does not depend on the grouping
    return None


def _possible_groups(vectors: NDArray[np.float32], about: Mapping[str, str]) -> list[int]:
    """Even groupings that these vectors (modules, u) agree with: the one that we noted first, then the fewest."""
    modules = len(vectors)
    noted = about.get("whit_groups", "")
    order = [int(noted)] if noted.isdecimal() and len(noted) < 6 else []
    found = []
    for groups in [*order, *range(1, modules + 1)]:
        if not 1 <= groups <= modules:
            continue
        place = np.arange(modules) * groups // modules
        first = np.searchsorted(place, np.arange(groups))
        if np.array_equal(vectors, vectors[first][place]):
            found.append(groups)
    return found


def _adapter(spec: VectorSpec, vector: NDArray[np.float32], basis: Basis, about: Mapping[str, str]) -> Adapter:
    """In the number type that was noted, or the smallest that holds these numbers exactly."""
    noted = about.get("whit_number_type")
    for number_type in [noted, *NUMBER_TYPES]:
        if number_type in NUMBER_TYPES and np.array_equal(round_to(vector, number_type), vector):
            return Adapter.from_vector(spec, vector, basis, number_type=number_type)
    raise AdapterError("the numbers of this adapter are not finite")


def _as_lora(held: TinyLoraFolder, updates: Mapping[str, _Update], base: Base, path: Path) -> Adapter:
    """The update B R A as a LoRA of the same rank: its A is A, its B is B R."""
    for name, one in updates.items():
        if (one.B.shape[0], one.A.shape[1]) != tuple(base.model.get_submodule(name).weight.shape):
            raise AdapterError(f"{path}: {name} is of another shape than {base.name}'s")
    weights = LoraWeights(
        rank=held.rank,
        alpha=float(held.rank),
        A={name: one.A.float().contiguous() for name, one in updates.items()},
        B={name: (one.B.float() @ one.R.float()).contiguous() for name, one in updates.items()},
        base=base.fingerprint,
        base_name=base.name,
    )
    return Adapter(kind="lora", base=base.fingerprint, lora=weights, number_type="float32")


def _modules_in_order(base: Base, names: Sequence[str]) -> list[str]:
    """`names` in the order in which the model holds them, which is the order that PEFT counts by."""
    wanted = set(names)
    return [name for name, _ in base.model.named_modules() if name in wanted]
