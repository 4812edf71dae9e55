"""What pairwise losses are made of. Legend: B pairs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def margins(values: Tensor) -> Tensor:
    """How much larger the chosen completion's value is than the rejected one's: [B, 2] to [B]."""
    return values[:, 0] - values[:, 1]


def smoothed_logistic(margin: Tensor, label_smoothing: float) -> Tensor:
    """−(1 − ε) log σ(m) − ε log σ(−m), [B]: the expectation over labels that are wrong with probability ε."""
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)
