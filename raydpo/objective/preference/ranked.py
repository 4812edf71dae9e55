"""Losses on ranked groups: one prompt and n >= 2 completions, each with its rank.

Legend: B rows, C completions, P pairs; r = log π(y|x) / π_ref(y|x).
"""

from __future__ import annotations

from torch import Tensor

from raydpo.objective.contract import ScoredRows


def plackett_luce(rows: ScoredRows, *, beta: float = 0.1) -> Tensor:
    """DPO on a ranking τ, [B]: −Σ_k log (exp(β r_τ(k)) / Σ_{j≥k} exp(β r_τ(j))) (Rafailov et al. 2023, appendix A.3).

    Each completion in turn, the best first, is chosen among those that are left. On two completions it is DPO. Not in
    TRL.
    """
    better, worse, _ = rows.pairs()
    rewards = beta * rows.log_ratios()
    behind = rewards[worse] - rewards[better]
    # log (1 + Σ exp(behind)) for every completion, from the largest term, which is 0 where nothing is above it.
    largest = rewards.new_zeros(len(rewards)).scatter_reduce(0, better, behind.detach(), "amax")
    terms = (behind - largest[better]).exp()
    chosen_among = (-largest).exp().index_add(0, better, terms)
    return rows.sum_by_row(largest + chosen_among.log(), rows.row)
