"""How far the policy has moved: the sequence KL between two models on given completions.

Legend: M completion positions, V vocabulary, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raydpo.model.batch import Batch
from raydpo.model.score import ScoringModel, sequence_logps

CHUNK_POSITIONS = 256  # two sets of logits are held at once


@torch.no_grad()
def sequence_kl(policy: ScoringModel, ref: ScoringModel, batch: Batch) -> Tensor:
    """Σ_t KL(π(·|x, y<t) ‖ π_ref(·|x, y<t)) per completion, shape [B, n], in nats (Rafailov et al. 2023, section 6.1).

    Each step's KL is over the whole vocabulary, so on completions sampled from the policy this estimates the sequence
    KL with less variance than log π/π_ref would, and it is never negative.
    """
    states = policy.completion_states(batch), ref.completion_states(batch)
    per_token = torch.cat(
        [_token_kl(policy.head.logits(a), ref.head.logits(b)) for a, b in zip(*map(_chunked, states), strict=True)]
    )
    return sequence_logps(per_token, batch)


def _chunked(states: Tensor) -> tuple[Tensor, ...]:
    return states.split(CHUNK_POSITIONS)


def _token_kl(policy_logits: Tensor, ref_logits: Tensor) -> Tensor:
    """[m, V] twice -> [m]; clamped at 0, below which only rounding leads."""
    log_p, log_q = policy_logits.log_softmax(dim=1), ref_logits.log_softmax(dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1).clamp_min(0)
