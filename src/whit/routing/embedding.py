"""Local embeddings: a prompt as the mean of a base's last hidden states, and the chance that is read there.

Promises vectors of length one that do not depend on what else is looked at, from a base whose fingerprint is the one
that was learned with; nothing leaves this process. A prompt's last tokens stand for a long one. Knows nothing of tiers
or of how a chance is used.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from whit.errors import DataError

if TYPE_CHECKING:
    from whit.bases import Base

KINDS = ("logistic", "knn")
_TOKENS, _CHARACTERS, _BATCH = 512, 8192, 16  # of a prompt's end; prompts in one pass


class Embedder:
    """A base that says where texts lie; `name` is what it is found by again."""

    def __init__(self, base: Base, name: str = "") -> None:
        self.base, self.name = base, name or base.name
        self._most = min(_TOKENS, base.context)

    @property
    def fingerprint(self) -> str:
        """The base's."""
        return self.base.fingerprint

    @classmethod
    def load(cls, name: str) -> Embedder:
        """By a base's name, in float32, so that every machine finds the same. Raises `BaseError`."""
        from whit.bases import load_base

        return cls(load_base(name, dtype="float32"), name)

    def __call__(self, texts: Sequence[str]) -> Any:
        """Where texts lie, float32, (texts, hidden), each of length one; zeros for a text without tokens."""
        import numpy as np
        import torch

        # What is cut before the tokenizer bounds its time too: no text is too long.
        rows = [self.base.encode(text[-_CHARACTERS:])[-self._most :] for text in texts]
        found = np.zeros((len(rows), int(self.base.model.config.hidden_size)), np.float32)
        order = sorted((at for at, row in enumerate(rows) if row), key=lambda at: len(rows[at]))
        device = self.base.model.device
        with torch.inference_mode():
            for first in range(0, len(order), _BATCH):
                some = order[first : first + _BATCH]
                tokens = torch.zeros(len(some), len(rows[some[-1]]), dtype=torch.long)
                seen = torch.zeros_like(tokens)
                for place, at in enumerate(some):
                    tokens[place, : len(rows[at])] = torch.tensor(rows[at])
                    seen[place, : len(rows[at])] = 1
                seen = seen.to(device)
                hidden = self.base.model.get_decoder()(
                    input_ids=tokens.to(device), attention_mask=seen, use_cache=False
                ).last_hidden_state
                sums = (hidden.float() * seen[:, :, None]).sum(1)  # its length is taken out, so the mean's divisor too
                found[some] = torch.nn.functional.normalize(sums, dim=-1).cpu().numpy()
        return found


@lru_cache(maxsize=2)
def embedder(base: str, fingerprint: str) -> Embedder:
    """The base that a choice was learned with, loaded once. Raises `DataError` where it is another, `BaseError`."""
    found = Embedder.load(base)
    if found.fingerprint != fingerprint:
        raise DataError(
            f"the choice was learned over embeddings of {base} {fingerprint[:12]}, and here {base} is "
            f"{found.fingerprint[:12]}: fit it anew with whit route fit"
        )
    return found


@dataclass(frozen=True)
class Space:
    """How a chance is read from where a prompt lies: by a logistic regression, or by the share of its nearest rows.

    `weights` (one a coordinate) and `bias` are of the first; `points` (base64 of float16, (rows, hidden)), `labels`
    (`0` or `1` a row) and `neighbours` of the second.
    """

    base: str
    fingerprint: str
    kind: str
    weights: tuple[float, ...] = ()
    bias: float = 0.0
    neighbours: int = 0
    points: str = ""
    labels: str = ""

    def __post_init__(self) -> None:
        """Raise `ValueError` where the parts do not go together."""
        if self.kind not in KINDS or not self.base or not self.fingerprint:
            raise ValueError("no way to read a chance")
        if self.kind == "logistic" and not (self.weights and all(map(math.isfinite, (self.bias, *self.weights)))):
            raise ValueError("with numbers that are not finite")
        if self.kind == "knn" and (self.neighbours < 1 or not self._rows[0].shape[1]):
            raise ValueError("without rows")

    @cached_property
    def _rows(self) -> tuple[Any, Any]:
        import numpy as np

        labels = np.array([{"0": 0.0, "1": 1.0}[each] for each in self.labels])
        points = np.frombuffer(base64.b64decode(self.points, validate=True), "<f2").astype(np.float32)
        if not np.isfinite(points).all():
            raise ValueError("with numbers that are not finite")
        return points.reshape(len(labels), -1), labels

    def chances(self, vectors: Any) -> Any:
        """The chances of prompts that lie at `vectors`, (prompts, hidden)."""
        import numpy as np

        if self.kind == "knn":
            return nearest(*self._rows, vectors, self.neighbours)
        return 1 / (1 + np.exp(-np.clip(vectors @ np.array(self.weights) + self.bias, -50, 50)))

    def ready(self) -> None:
        """Load the base. Raises `DataError` where it is not the one learned with, `BaseError`."""
        embedder(self.base, self.fingerprint)

    def chance(self, prompt: str) -> float:
        """The chance of one prompt, by the base in this process. Raises as `ready`."""
        return float(self.chances(embedder(self.base, self.fingerprint)([prompt]))[0])


def nearest(points: Any, labels: Any, vectors: Any, neighbours: int) -> Any:
    """For each vector the share of its nearest points, by cosine, whose label is 1."""
    import numpy as np

    near = np.argsort(-(vectors @ points.T), axis=1, kind="stable")[:, :neighbours]
    return np.asarray(labels, float)[near].mean(1)


def pack(points: Any) -> str:
    """Points as they stand in a `Space`."""
    import numpy as np

    return base64.b64encode(np.ascontiguousarray(points, "<f2").tobytes()).decode("ascii")
