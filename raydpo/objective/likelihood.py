"""Likelihood losses: supervised fine-tuning. Legend: B rows."""

from __future__ import annotations

from torch import Tensor


def nll_loss(logps: Tensor) -> Tensor:
    """Negative log-likelihood of each completion, summed over its tokens, shape [B], in nats.

    The caller divides by the number of completion tokens in the global batch, so every token weighs the same
    whatever the micro-batching.
    """
    return -logps
