"""Scored pairs for the tests of losses: policy and reference by numbers, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raydpo.objective.contract import LOG_SUM_SQ_PROBS, MARGIN, RANK, REF_LOGPS, REF_TOKEN_LOGPS, ScoredRows

LOG_SUM_SQ = 0.5
"""log Σ p² of a step, as a multiple of the log-prob of its token."""


@dataclass(frozen=True)
class Pair:
    """Log-probs of the tokens of both completions under the policy, and sums under the reference, in nats.

    The reference's sums are spread evenly over the tokens where a loss asks for tokens.
    """

    chosen: Sequence[float]
    rejected: Sequence[float]
    ref_chosen: float = 0.0
    ref_rejected: float = 0.0
    margins: tuple[float, float] = (0.0, 0.0)

    @property
    def swapped(self) -> Pair:
        return Pair(self.rejected, self.chosen, self.ref_rejected, self.ref_chosen, self.margins[::-1])


def scored(pairs: Sequence[Pair], dtype: torch.dtype = torch.float64) -> ScoredRows:
    """What an objective sees of some pairs, with every column that any loss reads."""
    completions = [tokens for pair in pairs for tokens in (pair.chosen, pair.rejected)]
    owner = [number for number, tokens in enumerate(completions) for _ in tokens]
    reference = [value for pair in pairs for value in (pair.ref_chosen, pair.ref_rejected)]
    by_token = [value / len(tokens) for value, tokens in zip(reference, completions, strict=True) for _ in tokens]
    token_logps = torch.tensor([logp for tokens in completions for logp in tokens], dtype=dtype)
    return ScoredRows(
        token_logps=token_logps,
        owner=torch.tensor(owner),
        row=torch.arange(len(pairs)).repeat_interleave(2),
        num_rows=len(pairs),
        columns={
            REF_LOGPS: torch.tensor(reference, dtype=dtype),
            RANK: torch.tensor([0, 1]).repeat(len(pairs)),
            MARGIN: torch.tensor([margin for pair in pairs for margin in pair.margins], dtype=dtype),
        },
        token_columns={
            REF_TOKEN_LOGPS: torch.tensor(by_token, dtype=dtype),
            LOG_SUM_SQ_PROBS: LOG_SUM_SQ * token_logps,  # made up
        },
    )


def of_sums(values: Tensor, reference: Tensor) -> ScoredRows:
    """Completions of one token each, from sums [B, 2]."""
    row = torch.arange(len(values)).repeat_interleave(2)
    tokens = values.flatten()
    return ScoredRows(tokens, torch.arange(len(tokens)), row, len(values), {REF_LOGPS: reference.flatten()})
