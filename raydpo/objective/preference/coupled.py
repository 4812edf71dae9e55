"""Losses that couple the pairs of a global batch: the value of a pair rests on all the others.

They are given the whole global batch at once, in an order that neither micro-batches nor ranks decide.

Legend: P pairs of the global batch; r = log π(y|x) / π_ref(y|x), r_w of the chosen completion and r_l of the rejected
one; ℓ the log-ratio π(y_w|x) / π(y_l|x), ℓ_ref the reference's; σ the logistic function.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from raydpo.objective.contract import REF_LOGPS, ScoredRows
from raydpo.objective.preference.margins import margins, smoothed_logistic


def aot(rows: ScoredRows, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """Alignment via optimal transport on pairs, [P]: −log σ(β (ℓ − ℓ_ref)), ℓ and ℓ_ref of equal quantile.

    Melnyk et al. 2024, the paired variant: ℓ is to dominate ℓ_ref as a distribution, so both are sorted over the global
    batch and the k-th smallest meets the k-th smallest. TRL's values, but TRL sorts within a micro-batch of a device,
    so there the loss depends on both.
    """
    of_policy = margins(rows, rows.logps())
    of_reference = margins(rows, rows.columns[REF_LOGPS]).to(of_policy.dtype)
    order = of_policy.detach().argsort(stable=True)
    matched = torch.empty_like(of_reference)
    matched[order] = of_reference.sort().values
    return smoothed_logistic(beta * (of_policy - matched), label_smoothing)


def bco_pair(rows: ScoredRows, *, beta: float = 0.1) -> Tensor:
    """Binary classifier optimization on pairs, [P]: −log σ(β r_w − δ) − log σ(δ − β r_l).

    Jung et al. 2024; δ, the reward shift, is the mean reward β r of all chosen and rejected completions of the global
    batch, without gradient. TRL 1.16 leaves δ out (δ = 0); earlier versions kept a running mean over steps.
    """
    chosen, rejected = rows.of_pairs(beta * rows.log_ratios())
    shift = pair_shift(chosen, rejected)
    return -F.logsigmoid(chosen - shift) - F.logsigmoid(shift - rejected)


def bco_pair_baselines(rows: ScoredRows, beta: float) -> dict[str, Tensor]:
    """The reward shift, under TRL's name."""
    return {"delta": pair_shift(*rows.of_pairs(beta * rows.log_ratios()))}


def pair_shift(chosen: Tensor, rejected: Tensor) -> Tensor:
    """BCO's δ from the rewards of pairs [P], a scalar."""
    return torch.cat((chosen, rejected)).mean().detach()
