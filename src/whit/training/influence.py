"""Which training rows hurt: what leaving a row out would change, and which answers the other rows contradict.

`harm` is of single rows. With g_i the gradient of row i's loss at the trained numbers, H a small curvature matrix and
ḡ the mean gradient of the validation rows, leaving row i of n out changes the mean validation loss by ḡᵀ H⁻¹ g_i / n
(Koh & Liang, 2017, arXiv 1703.04730, after Hampel, 1974). H is the mean of g_i g_iᵀ over training rows with a damped
diagonal, the empirical Fisher matrix, which for a handful of numbers is small enough to be solved exactly.

`doubt`, by which rows are ranked, is of all rows at once: the loss of a row's answer at the numbers that training would
have come to, had it learned from the validation rows too and not from the answers that are doubted most. That point is
found without training, by Gauss-Newton steps on the log odds of each answer, which move along -g_i / (1 - p_i); doubted
answers are left out anew in every round (least trimmed squares: Rousseeuw, 1984). On sst2 with flipped labels harm
finds fewer of them than the loss alone does, doubt more (docs/log.md).

Promises how far two halves of the validation rows agree on harm. Knows nothing of rows, bases or verdicts: it is
handed gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from whit.errors import DataError
from whit.training.gradients import Gradients

FEWEST = 10  # validation rows below which halves of them say nothing
DAMPING = 1.0
DOUBT_DAMPING = 0.5
_ROUNDS, _STEPS = 3, 3
_ANSWER = 4  # tokens; a longer answer counts as one of so many, or its chance would be nothing and its pull everything


@dataclass(frozen=True)
class Influence:
    """Of each training row, shape (rows,).

    `doubt`: the loss of its answer, in nats, for an adapter that listened to validation rows and not to doubted ones.
    `harm`: by how many nats the mean loss of a validation row would fall if the row were left out; above 0 it hurts.
    `leverage`: gᵀ H⁻¹ g / n, how far the row pulls the numbers, whatever for. `agreement`: how alike two halves of the
    validation rows rank the rows (Spearman's correlation, stepped up to all of them by Spearman and Brown's formula).
    """

    doubt: torch.Tensor
    harm: torch.Tensor
    leverage: torch.Tensor
    agreement: float


def influence(train: Gradients, validation: Gradients, *, damping: float = DAMPING, doubted: float = 0.15) -> Influence:
    """See the module. `damping` is in units of the mean diagonal of the Fisher matrix, `doubted` a share of the rows.

    Raises `DataError` for fewer than `FEWEST` validation rows.
    """
    if len(validation.ids) < FEWEST:
        raise DataError(
            f"{len(validation.ids)} validation rows are too few to say which rows hurt; "
            f"give {FEWEST} or more, better 100 (more rows, or a larger --validation in training)"
        )
    G, judges = train.G.double(), validation.G.double()
    rows = G.shape[0]
    solved = solve(G, torch.cat([G, _halves(judges)]), damping)
    leverage = (G * solved[:rows]).sum(1) / rows
    even, odd = (-(G @ u) / rows for u in solved[rows:])
    count = judges.shape[0]
    share = math.ceil(count / 2) / count
    harm = share * even + (1 - share) * odd
    both = _spearman(even, odd)
    doubt = second_look(train, validation, doubted)
    return Influence(doubt, harm, leverage, 2 * both / (1 + both) if both > 0 else both)


def second_look(
    train: Gradients, validation: Gradients, doubted: float, *, damping: float = DOUBT_DAMPING
) -> torch.Tensor:
    """Each row's `doubt`, (rows,): see the module. The share `doubted` of the rows is left out in every round."""
    m, X = _log_odds(train)
    mv, Xv = _log_odds(validation)
    move = torch.zeros(X.shape[1], dtype=torch.float64)
    # As large as the curvature of rows whose answer has a chance of 0.9 or 0.1, in the mean of the diagonal.
    ridge = damping * 0.1 * float(X.square().sum()) / X.shape[1] + 1e-30
    softplus = torch.nn.functional.softplus
    for _ in range(_ROUNDS):
        keep = torch.ones_like(m)
        keep[softplus(-(m + X @ move)).argsort(descending=True)[: round(doubted * len(m))]] = 0
        for _ in range(_STEPS):
            p, q = torch.sigmoid(m + X @ move), torch.sigmoid(mv + Xv @ move)
            slope = X.T @ ((1 - p) * keep) + Xv.T @ (1 - q) - ridge * move
            H = (X.T * (p * (1 - p) * keep)) @ X + (Xv.T * (q * (1 - q))) @ Xv
            H.diagonal().add_(ridge)
            move = move + torch.cholesky_solve(slope[:, None], torch.linalg.cholesky(H))[:, 0]
    return softplus(-(m + X @ move))


def _log_odds(rows: Gradients) -> tuple[torch.Tensor, torch.Tensor]:
    """The log odds of each row's answer, (rows,), and their gradients, (rows, numbers)."""
    scale = (_ANSWER / rows.tokens.double()).clamp(max=1)
    losses = rows.losses.double() * scale
    miss = -torch.expm1(-losses.clamp_min(1e-6))
    return -losses - miss.log(), -(rows.G.double() * scale[:, None]) / miss[:, None]


def solve(G: torch.Tensor, right: torch.Tensor, damping: float) -> torch.Tensor:
    """Rows x with (GᵀG/n + λI) x = r for every row r of `right`; λ is `damping` times the mean of the diagonal.

    Solved among rows where those are fewer than the numbers (Woodbury's identity).
    """
    rows, numbers = G.shape
    ridge = damping * float(G.square().sum()) / rows / numbers + 1e-30
    if numbers <= rows:
        H = G.T @ G / rows
        H.diagonal().add_(ridge)
        return torch.cholesky_solve(right.T, torch.linalg.cholesky(H)).T
    K = G @ G.T / rows
    K.diagonal().add_(ridge)
    inner = torch.cholesky_solve(G @ right.T, torch.linalg.cholesky(K))
    return (right - (G.T @ inner).T / rows) / ridge


def rows_wanted(agreement: float, rows: int, *, least: float = 0.5) -> int | None:
    """Validation rows for which the agreement would be `least`, by the same formula; None where none shows."""
    if agreement <= 0.02:
        return None
    return math.ceil(rows * least * (1 - agreement) / (agreement * (1 - least)))


def _halves(judges: torch.Tensor) -> torch.Tensor:
    return torch.stack([judges[0::2].mean(0), judges[1::2].mean(0)])


def _spearman(one: torch.Tensor, other: torch.Tensor) -> float:
    ranks = [part.argsort().argsort().double() for part in (one, other)]
    a, b = (part - part.mean() for part in ranks)
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 0 else 0.0
