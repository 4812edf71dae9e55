"""Scored pairs for the tests of losses: policy and reference by numbers, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raydpo.objective.contract import REF_LOGPS, ScoredRows


@dataclass(frozen=True)
class Pair:
    """Log-probs of the tokens of both completions under the policy, and sums under the reference, in nats."""

    chosen: Sequence[float]
    rejected: Sequence[float]
    ref_chosen: float = 0.0
    ref_rejected: float = 0.0

    @property
    def swapped(self) -> Pair:
        return Pair(self.rejected, self.chosen, self.ref_rejected, self.ref_chosen)


def scored(pairs: Sequence[Pair], dtype: torch.dtype = torch.float64) -> ScoredRows:
    """What an objective sees of some pairs."""
    completions = [tokens for pair in pairs for tokens in (pair.chosen, pair.rejected)]
    owner = [number for number, tokens in enumerate(completions) for _ in tokens]
    reference = [value for pair in pairs for value in (pair.ref_chosen, pair.ref_rejected)]
    return ScoredRows(
        token_logps=torch.tensor([logp for tokens in completions for logp in tokens], dtype=dtype),
        owner=torch.tensor(owner),
        row=torch.arange(len(pairs)).repeat_interleave(2),
        num_rows=len(pairs),
        columns={REF_LOGPS: torch.tensor(reference, dtype=dtype)},
    )


def of_sums(values: Tensor, reference: Tensor) -> ScoredRows:
    """Completions of one token each, from sums [B, 2]."""
    row = torch.arange(len(values)).repeat_interleave(2)
    tokens = values.flatten()
    return ScoredRows(tokens, torch.arange(len(tokens)), row, len(values), {REF_LOGPS: reference.flatten()})
