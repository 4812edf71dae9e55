"""What pairwise losses are made of. Legend: C completions, P pairs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from raydpo.objective.contract import ScoredRows


def margins(rows: ScoredRows, values: Tensor) -> Tensor:
    """How much larger the chosen completion's value is than the rejected one's: [C] to [P]."""
    chosen, rejected = rows.of_pairs(values)
    return chosen - rejected


def smoothed_logistic(margin: Tensor, label_smoothing: float) -> Tensor:
    """−(1 − ε) log σ(m) − ε log σ(−m), [P]: the expectation over labels that are wrong with probability ε."""
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)
