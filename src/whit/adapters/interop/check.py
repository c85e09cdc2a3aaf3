"""Does it compute the same? Logits on a fixed probe: of an adapter against its base, of an export against whit.

"The adapter loads and does nothing" and "the exported model differs from the trained one" are the two
commonest complaints about adapters; both are settled here by running the model. The probe is the same for
every base: a few sentences, cut to equal length. Knows nothing of files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from whit.errors import AdapterError

if TYPE_CHECKING:
    from whit.adapters.tunable import Bound
    from whit.bases import Base

_SENTENCES = (
    "The quick brown fox jumps over the lazy dog, and then it rests for a while in the shade of a tall old tree.",
    "My card was stolen yesterday evening; please block it and send me a new one as soon as you possibly can, thanks.",
    '{"city": "London", "party_size": 2, "date": "tomorrow", "time": "19:30", "cuisine": "Italian", "outdoor": true}',
    "def add(a, b):\n    return a + b\n\nprint(add(2, 40))  # 42, as everyone knows\nfor i in range(10):\n    print(i)",
)
_TOKENS = 24
# What float32 sums in another order may differ by, as a share of the largest logit.
_ROUNDING = 2e-5
_SHARE = 1e-3


@dataclass(frozen=True)
class Difference:
    """How far an export's logits are from whit's, on the probe.

    `largest` is the largest absolute difference; `effect` the largest change that the adapter itself makes;
    `tolerance` what `largest` may be.
    """

    largest: float
    effect: float
    tolerance: float

    @property
    def within(self) -> bool:
        """Whether the export computes the same."""
        return self.largest <= self.tolerance


def probe(base: Base) -> torch.Tensor:
    """Token ids of the fixed sentences, shape (rows, tokens); a row is as long as the shortest sentence, 24 at most."""
    rows = [base.encode(sentence) for sentence in _SENTENCES]
    length = min(_TOKENS, base.context, *(len(row) for row in rows))
    device = next(base.model.parameters()).device
    return torch.tensor([row[:length] for row in rows], device=device)


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a transformers model on `ids`; float32, shape (rows, tokens, vocabulary)."""
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return found.float()


def assert_changes(base: Base, bound: Bound) -> float:
    """The largest change of a logit that the bound adapter makes on the probe.

    Raises `AdapterError` where there is none: an adapter that loads but changes nothing is an error.
    """
    ids = probe(base)
    bare = logits(base.model, ids)
    with bound.active():
        adapted = logits(base.model, ids)
    if not bool(torch.isfinite(adapted).all()):
        raise AdapterError(f"with this adapter, {base.name} answers with NaN or infinite logits; train it again")
    effect = float((adapted - bare).abs().max())
    if effect > 0:
        return effect
    if _is_nothing(bound):
        raise AdapterError("the adapter changes nothing: its numbers are all zero, as before the first training step")
    if base.dtype != "float32":
        raise AdapterError(
            f"the adapter changes nothing: its effect is lost to rounding in {base.dtype}; load the base in float32"
        )
    raise AdapterError("the adapter changes nothing: every logit of the probe equals the base's")


def compare(expected: torch.Tensor, bare: torch.Tensor, got: torch.Tensor, *, share: float = _SHARE) -> Difference:
    """Compare an export's logits `got` with whit's `expected`, where the base alone says `bare`.

    The tolerance is `share` of the adapter's own effect, so that an export which lost the adapter never passes,
    but no less than what float32 sums in another order differ by, and no more than half the effect.
    """
    effect = float((expected - bare).abs().max())
    rounding = _ROUNDING * float(expected.abs().max())
    tolerance = min(max(share * effect, rounding), 0.5 * effect)
    if expected.shape != got.shape or not bool(torch.isfinite(got).all()):
        return Difference(float("inf"), effect, tolerance)
    return Difference(float((expected - got).abs().max()), effect, tolerance)


def assert_same(difference: Difference, what: str) -> None:
    """Raise `AdapterError` where an export is beyond its tolerance."""
    if not difference.within:
        raise AdapterError(
            f"{what} does not compute what the adapter does: logits differ by up to {difference.largest:.3g}, where "
            f"{difference.tolerance:.3g} is allowed (the adapter itself changes them by up to {difference.effect:.3g})"
        )


def _is_nothing(bound: Bound) -> bool:
    """Whether the update is zero by its numbers alone: v = 0, or B = 0 in every module of a LoRA."""
    from whit.adapters.tunable import BoundLora

    parts = bound.parameters()
    if isinstance(bound, BoundLora):
        parts = parts[1::2]
    return not any(bool(part.detach().any()) for part in parts)
