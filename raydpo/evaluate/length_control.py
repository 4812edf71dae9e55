"""The win rate that would be left if both answers were equally long, after AlpacaEval 2 (Dubois et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from raydpo.evaluate.stats import Interval
from raydpo.evaluate.student import student_quantile

_STEPS = 100
_ENOUGH = 1e-10


def length_controlled_win_rate(
    outcomes: Sequence[float],
    longer_by: Sequence[float],
    groups: Sequence[Hashable],
    confidence: float = 0.95,
) -> Interval:
    """σ(θ) of the fit P(win) = σ(θ + φ·tanh(Δ / s)); s is the standard deviation of Δ.

    outcomes: 1 for a win, 0 for a loss, 1/2 for a tie; longer_by: Δ, by how much the first answer is longer, in any
    unit; groups: what is independent, the prompts. This is AlpacaEval's regression with one pair of models, and
    without its effects of single prompts, which need many models. Where all Δ are equal there is no φ.

    The fit maximises the likelihood with Firth's penalty (1993), so that it is finite when one side always wins. The
    interval of θ has the larger of two variances, the likelihood's and one between groups (a sandwich); its bounds
    go through σ and stay within 0..1. Raises ValueError for fewer than two groups.
    """
    numbers: dict[Hashable, int] = {}
    member = np.asarray([numbers.setdefault(group, len(numbers)) for group in groups])
    k = len(numbers)
    if k < 2:
        raise ValueError(f"an interval needs at least 2 independent values, got {k}")
    y = np.asarray(outcomes, dtype=np.float64)
    design = _design(np.asarray(longer_by, dtype=np.float64))
    weights = _fit(design, y)
    p = _sigmoid(design @ weights)
    inverse = np.linalg.inv(_information(design, p))
    scores = np.zeros((k, design.shape[1]))
    np.add.at(scores, member, design * (y - p)[:, None])
    between = inverse @ (scores.T @ scores) @ inverse * k / (k - 1)
    margin = student_quantile(confidence, k - 1) * math.sqrt(max(inverse[0, 0], between[0, 0]))
    theta = float(weights[0])
    low, mean, high = (float(_sigmoid(np.asarray(value))) for value in (theta - margin, theta, theta + margin))
    return Interval(mean, low, high, len(y), k)


def _design(longer_by: NDArray[np.float64]) -> NDArray[np.float64]:
    """The regressors, shape [n, 2], or [n, 1] where length explains nothing because it is always the same."""
    spread = float(longer_by.std())
    columns = [np.ones_like(longer_by)]
    if spread > 0:
        columns.append(np.tanh(longer_by / spread))
    return np.stack(columns, axis=1)


def _fit(design: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Newton's method on the score with Firth's correction, Xᵀ(y - p + h (1/2 - p)), h being the leverages."""
    weights = np.zeros(design.shape[1])
    for _ in range(_STEPS):
        p = _sigmoid(design @ weights)
        spread = p * (1 - p)
        inverse = np.linalg.inv(_information(design, p))
        leverages = spread * np.einsum("ij,jk,ik->i", design, inverse, design)
        step = inverse @ design.T @ (y - p + leverages * (0.5 - p))
        step *= min(1.0, 2.0 / float(np.abs(step).max() or 1.0))  # a step from a flat place would jump out of sight
        weights = weights + step
        if float(np.abs(step).max()) < _ENOUGH:
            break
    return weights


def _information(design: NDArray[np.float64], p: NDArray[np.float64]) -> NDArray[np.float64]:
    information: NDArray[np.float64] = design.T @ (design * (p * (1 - p))[:, None])
    return information


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    values: NDArray[np.float64] = 0.5 * (1 + np.tanh(x / 2))
    return values
