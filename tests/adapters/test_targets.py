from __future__ import annotations

import pytest

from whit.adapters.targets import PROJECTIONS, SHORT_NAMES, all_targets, select_targets
from whit.errors import UsageError

NAMES = [f"model.layers.{layer}.{name}" for layer in (10, 2) for name in reversed(PROJECTIONS)]


def test_order_is_by_layer_then_projection_whatever_the_order_given() -> None:
    targets = all_targets([*NAMES, "lm_head", "model.layers.2.self_attn", "model.layers.2.mlp.gate_proj.bias"])
    assert [target.layer for target in targets] == [2] * 7 + [10] * 7
    assert [target.projection for target in targets] == list(SHORT_NAMES) * 2
    assert targets[0].index == 14
    assert targets == all_targets(sorted(NAMES))


def test_selection_by_name_and_pattern() -> None:
    targets = all_targets(NAMES)
    assert select_targets(targets, ["all"]) == targets
    assert [target.name for target in select_targets(targets, ["q_proj"])] == [
        "model.layers.2.self_attn.q_proj",
        "model.layers.10.self_attn.q_proj",
    ]
    assert {target.layer for target in select_targets(targets, ["*.layers.2.*"])} == {2}
    both = select_targets(targets, ["v_proj", "*.layers.10.*"])
    assert len(both) == 8
    assert list(both) == sorted(both, key=lambda target: target.index)


def test_a_pattern_that_names_nothing() -> None:
    with pytest.raises(UsageError, match=r"'qproj'.*q_proj"):
        select_targets(all_targets(NAMES), ["q_proj", "qproj"])
