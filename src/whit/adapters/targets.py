"""Which matrices of a base an adapter may move, by name and in one fixed order.

The order is layer by layer, and within a layer q, k, v, o, gate, up, down. A module's number in that
order over *all* layers is its identity: it does not change when fewer modules are chosen. Knows the
names that transformers gives to the projections of a decoder; nothing of their contents.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from whit.errors import UsageError

PROJECTIONS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
SHORT_NAMES = tuple(name.split(".")[1] for name in PROJECTIONS)
_SAME_INPUT = {name: kind for kind, names in (("qkv", SHORT_NAMES[:3]), ("mlp", SHORT_NAMES[4:6])) for name in names}
_MODULE = re.compile(r"^(?P<head>.*\blayers)\.(?P<layer>\d+)\.(?P<projection>" + "|".join(PROJECTIONS) + r")$")


@dataclass(frozen=True)
class Target:
    """One matrix that can be adapted: its number in the fixed order, and its module name."""

    index: int
    name: str

    @property
    def layer(self) -> int:
        """The decoder layer, counted from 0."""
        return self.index // len(PROJECTIONS)

    @property
    def projection(self) -> str:
        """The short name: `q_proj` … `down_proj`."""
        return SHORT_NAMES[self.index % len(PROJECTIONS)]


def all_targets(module_names: Iterable[str]) -> tuple[Target, ...]:
    """Every adaptable module among `module_names`, in the fixed order."""
    found = []
    for name in module_names:
        match = _MODULE.match(name)
        if match:
            place = int(match["layer"]) * len(PROJECTIONS) + PROJECTIONS.index(match["projection"])
            found.append(Target(place, name))
    return tuple(sorted(found, key=lambda target: target.index))


def select_targets(targets: Sequence[Target], patterns: Sequence[str]) -> tuple[Target, ...]:
    """The targets that any pattern names: `all`, a short name (`q_proj`), or a shell pattern over module names.

    Raises `UsageError`, naming what there is, where a pattern names nothing.
    """
    chosen: set[int] = set()
    for pattern in patterns:
        hits = {
            target.index
            for target in targets
            if pattern in ("all", target.projection) or fnmatch.fnmatchcase(target.name, pattern)
        }
        if not hits:
            raise UsageError(
                f"--targets: nothing in this base is named {pattern!r}; "
                f"use all, a name of {', '.join(SHORT_NAMES)}, or a pattern such as '*.layers.3.*'"
            )
        chosen |= hits
    return tuple(target for target in targets if target.index in chosen)


def with_same_input(names: Sequence[str]) -> list[list[int]]:
    """Places in `names` of modules that a decoder gives the same input: a layer's q, k and v; its gate and up."""
    found: dict[tuple[str, str], list[int]] = {}
    for place, name in enumerate(names):
        parent, _, leaf = name.rpartition(".")
        found.setdefault((parent, _SAME_INPUT.get(leaf, leaf)), []).append(place)
    return list(found.values())
