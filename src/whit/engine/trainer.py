"""Training an adapter inside the engine: losses over completions, gradients, Adam.

The caller keeps the schedule and the order of rows, as in the browser. State can be read and restored,
so that a run can be resumed. Knows no rows of text: they come as tokens.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from whit.engine.runtime import Engine

_PARTS = {"gradient": 0, "mean": 1, "square": 2}


class Trainer:
    """AdamW on one adapter's numbers. `clip` is the largest norm of a gradient, 0 for any."""

    def __init__(
        self,
        engine: Engine,
        adapter: int,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        decay: float = 0.0,
        clip: float = 1.0,
    ) -> None:
        self._engine, self.adapter = engine, adapter
        self.handle = engine.call("whit_trainer_new", adapter, beta1, beta2, epsilon, decay, clip)

    def learn(
        self, rows: Sequence[tuple[Sequence[int], Sequence[int]]], weights: Sequence[float] | None = None
    ) -> NDArray[np.float64]:
        """Add the gradient of (prompt, completion) rows; the loss of each, summed over its completion's tokens.

        Each row's loss is multiplied by its weight first: by default, so that the batch's mean over
        completion tokens is what is made smaller.
        """
        tokens = sum(len(completion) for _, completion in rows)
        return self._run(rows, weights or [1.0 / max(tokens, 1)] * len(rows), only_loss=False)

    def losses(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> NDArray[np.float64]:
        """The loss of each row, summed over its completion's tokens; nothing is learnt."""
        return self._run(rows, [0.0] * len(rows), only_loss=True)

    def _run(
        self, rows: Sequence[tuple[Sequence[int], Sequence[int]]], weights: Sequence[float], *, only_loss: bool
    ) -> NDArray[np.float64]:
        from whit.engine.runtime import Packed, words

        heads = b"".join(
            struct.pack("<IIf", len(prompt) + len(completion), len(prompt), weight)
            for (prompt, completion), weight in zip(rows, weights, strict=True)
        )
        flat = [token for prompt, completion in rows for token in (*prompt, *completion)]
        self._engine.call("whit_learn", self.handle, Packed(heads, 12), words(flat), int(only_loss))
        return np.frombuffer(self._engine.result(), dtype="<f8")

    def step(self, rate: float) -> float:
        """Move the adapter by one step; the gradient's norm before it was shortened."""
        self._engine.call("whit_step", self.handle, rate)
        return float(np.frombuffer(self._engine.result(), dtype="<f8")[0])

    def state(self, part: str) -> NDArray[np.float32]:
        """A copy of `gradient`, `mean` or `square` (Adam's means)."""
        return self._engine.floats(self._engine.call("whit_trainer_state", self.handle, _PARTS[part]))

    def restore(self, mean: NDArray[np.float32], square: NDArray[np.float32], steps: int) -> None:
        """Take over the state of a run that was interrupted."""
        for part, values in (("mean", mean), ("square", square)):
            self._engine.set_floats(values, self._engine.call("whit_trainer_state", self.handle, _PARTS[part]))
        self._engine.call("whit_trainer_steps", self.handle, steps)

    @property
    def steps(self) -> int:
        """Steps taken."""
        return self._engine.call("whit_trainer_steps", self.handle, -1)

    def close(self) -> None:
        """Forget it; the adapter stays. Closing twice is no error."""
        if self.handle >= 0:
            self._engine.call("whit_trainer_free", self.handle)
            self.handle = -1
