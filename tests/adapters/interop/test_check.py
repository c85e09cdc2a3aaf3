"""An adapter that changes nothing is an error, and an export that differs is one too."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from whit.adapters.adapter import Adapter
from whit.adapters.interop.check import assert_changes, assert_same, compare, logits, probe
from whit.adapters.tunable import bind, tune_lora, tune_vector
from whit.adapters.vector import VectorSpec
from whit.bases import Base
from whit.errors import AdapterError


def test_the_probe_is_fixed_and_within_the_context(base: Base) -> None:
    ids = probe(base)
    assert ids.shape == (4, 24)
    assert torch.equal(ids, probe(base))


@pytest.mark.parametrize("name", ["tied", "some", "xs"])
def test_an_adapter_that_changes_something(
    base: Base, specs: dict[str, VectorSpec], make: Callable[..., Adapter], name: str
) -> None:
    bound = bind(base, make(specs[name]))
    try:
        with torch.no_grad():
            bare = logits(base.model, probe(base))
            with bound.active():
                expected = float((logits(base.model, probe(base)) - bare).abs().max())
        assert assert_changes(base, bound) == expected > 0
    finally:
        bound.detach()


def test_a_zero_vector_is_said_to_be_zero(base: Base, specs: dict[str, VectorSpec]) -> None:
    bound = tune_vector(base, specs["tied"])
    try:
        with pytest.raises(AdapterError, match="numbers are all zero"):
            assert_changes(base, bound)
    finally:
        bound.detach()


def test_a_lora_without_a_step_is_said_to_be_zero(base: Base) -> None:
    from whit.adapters.targets import all_targets

    targets = all_targets(name for name, _ in base.model.named_modules())
    bound = tune_lora(base, targets, rank=2, alpha=4, dropout=0.0, seed=0)
    try:
        with pytest.raises(AdapterError, match="numbers are all zero"):
            assert_changes(base, bound)
    finally:
        bound.detach()


def test_an_effect_below_rounding(base: Base, specs: dict[str, VectorSpec], make: Callable[..., Adapter]) -> None:
    bound = bind(base, make(specs["tied"], scale=1e-20, number_type="float32"))
    try:
        with pytest.raises(AdapterError, match="changes nothing: every logit"):
            assert_changes(base, bound)
    finally:
        bound.detach()


def test_an_adapter_that_breaks_the_model(
    base: Base, specs: dict[str, VectorSpec], make: Callable[..., Adapter]
) -> None:
    bound = bind(base, make(specs["xs"], scale=1e37, number_type="float32"))
    try:
        with pytest.raises(AdapterError, match="NaN"):
            assert_changes(base, bound)
    finally:
        bound.detach()


def test_tolerance_follows_the_effect() -> None:
    bare = torch.linspace(-10, 10, 100)
    for effect in (1e-3, 1.0):
        expected = bare + effect * torch.from_numpy(np.sin(np.arange(100))).float()
        assert compare(expected, bare, expected).within
        lost = compare(expected, bare, bare)
        assert not lost.within
        with pytest.raises(AdapterError, match="does not compute"):
            assert_same(lost, "it")
        assert not compare(expected, bare, expected * float("nan")).within
        assert not compare(expected, bare, expected[:50]).within
        assert compare(expected, bare, expected).tolerance <= effect / 2
