"""Budgets, groups and P: exactly N numbers or an error that names budgets which can be had."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from whit.adapters.philox import philox_uniform
from whit.adapters.vector import Expansion, VectorSpec, nearest_budgets, projections, tiny_spec, xs_spec
from whit.errors import UsageError


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 60), st.integers(1, 3), st.integers(0, 700), st.one_of(st.none(), st.integers(1, 70)))
@example(1, 1, 0, 1)
def test_exactly_the_numbers_asked_for_or_near_budgets(
    modules: int, rank: int, numbers: int, groups: int | None
) -> None:
    try:
        spec = tiny_spec(range(modules), numbers, rank=rank, groups=groups)
    except UsageError as error:
        assert not _reachable(modules, rank, numbers, groups)
        if groups is not None and groups > modules:
            assert f"--groups {groups}: more than the {modules} modules" in str(error)
            return
        near = [int(word) for word in re.findall(r"\d+", str(error).split("near are")[1].split(", or raise")[0])]
        assert near
        for budget in near:
            assert tiny_spec(range(modules), budget, rank=rank, groups=groups).numbers == budget
    else:
        assert spec.numbers == numbers == spec.groups * spec.u
        assert groups in (None, spec.groups)
        sizes = np.bincount(spec.group_of(), minlength=spec.groups)
        assert sizes.max() - sizes.min() <= 1
        assert sizes.sum() == modules
        assert (np.diff(spec.group_of()) >= 0).all()
        assert spec.u <= sizes.min() * rank * rank


def _reachable(modules: int, rank: int, numbers: int, groups: int | None) -> bool:
    """By trying every grouping: a vector may not be longer than its smallest group has directions."""
    choices = [groups] if groups else range(1, modules + 1)
    return numbers > 0 and any(
        choice <= modules and numbers % choice == 0 and numbers // choice <= modules // choice * rank * rank
        for choice in choices
    )


@pytest.mark.parametrize("numbers", [1, 13, 120, 210, 840])
def test_well_known_budgets_of_smollm2(numbers: int) -> None:
    assert tiny_spec(range(210), numbers).numbers == numbers


def test_nearest_budgets_are_near() -> None:
    assert nearest_budgets(841, 210, 4) == [837, 838, 839, 840] or 840 in nearest_budgets(841, 210, 4)
    assert 840 in nearest_budgets(10**9, 210, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("nano", 2, 4, 1, (0,)), "unknown kind"),
        (("tiny", 2, 4, 1, ()), "at least one module"),
        (("tiny", 0, 4, 1, (0,)), "one rank"),
        (("tiny", 65, 4, 1, (0,)), "rank of at most"),
        (("tiny", 2, 4, 1, (3, 1)), "in order"),
        (("tiny", 2, 4, 1, (1, 1)), "in order"),
        (("tiny", 2, 4, 1, (-1, 1)), "in order"),
        (("tiny", 2, 5, 2, (0, 1)), "cannot be shared"),
        (("tiny", 2, 9, 1, (0, 1)), "can move by"),
        (("tiny", 2, 4, 1, (0, 1), 65536), "seed"),
        (("tiny", 2, 4, 1, (0, 1), -1), "seed"),
        (("tiny", 64, 500_000, 1, tuple(range(1000))), "too large"),
        (("xs", 2, 4, 1, (0, 1)), "xs of rank 2 on 2 modules has 8"),
    ],
)
def test_specs_that_cannot_be(fields: tuple[object, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        VectorSpec(*fields)  # type: ignore[arg-type]


def test_p_depends_on_neither_grouping_nor_other_modules() -> None:
    whole = projections(tiny_spec(range(10), 4, groups=1, seed=5))
    part = projections(tiny_spec([2, 7], 8, groups=2, seed=5))
    assert np.array_equal(part, whole[[2, 7]])
    flat = philox_uniform(16, key=5, stream=(7, 0, 0x50), variance=0.5)
    assert np.array_equal(whole[7].ravel(), flat)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("rows", [None, 4])
def test_expansion_is_the_papers_sum(groups: int, rows: int | None) -> None:
    spec = tiny_spec(range(7), 6, groups=groups)
    v = torch.randn(*([rows] if rows else []), 6, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    R = Expansion(spec)(v)
    P, group = projections(spec), spec.group_of()
    for module in range(7):
        for row in range(rows or 1):
            own = (v[row] if rows else v).numpy().reshape(groups, -1)[group[module]]
            expected = sum(number * P[module, i] for i, number in enumerate(own))
            got = R[module, row] if rows else R[module]
            assert np.allclose(got.numpy(), expected, atol=1e-6)


def test_expansion_of_xs_is_the_numbers_themselves() -> None:
    v = torch.arange(12.0)
    assert torch.equal(Expansion(xs_spec(range(3), 2))(v), v.reshape(3, 2, 2))
    rows = torch.stack([v, -v])
    assert torch.equal(Expansion(xs_spec(range(3), 2))(rows)[:, 1], -v.reshape(3, 2, 2))


def test_a_vector_of_another_length() -> None:
    with pytest.raises(ValueError, match="12"):
        Expansion(xs_spec(range(3), 2))(torch.zeros(13))
