"""Losses on pairs without a reference.

Legend: P pairs; ℓ = log π(y|x), ℓ_w of the chosen completion and ℓ_l of the rejected one; σ the logistic function.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from raydpo.objective.contract import ScoredRows
from raydpo.objective.likelihood import chosen_nll
from raydpo.objective.preference.margins import margins, smoothed_logistic


def simpo(rows: ScoredRows, *, beta: float = 2.0, simpo_gamma: float = 0.5, label_smoothing: float = 0.0) -> Tensor:
    """SimPO, [P]: −log σ(β ℓ_w/|y_w| − β ℓ_l/|y_l| − γ) (Meng et al. 2024, eq. 6).

    β is the paper's smallest; TRL's CPOTrainer has 0.1 for all losses. There, too, cpo_alpha adds a likelihood term by
    default; here that is `loss_type: [simpo, sft]`.
    """
    return smoothed_logistic(beta * margins(rows, rows.average_logps()) - simpo_gamma, label_smoothing)


def cpo(rows: ScoredRows, *, beta: float = 0.1, cpo_alpha: float = 1.0, label_smoothing: float = 0.0) -> Tensor:
    """Contrastive preference optimisation, [P]: −log σ(β (ℓ_w − ℓ_l)) − α ℓ_w/|y_w|.

    Xu et al. 2024, eq. 3 and its likelihood term, which here is a mean over the tokens of a row; TRL's is one over all
    chosen tokens of a micro-batch.
    """
    return smoothed_logistic(beta * margins(rows, rows.logps()), label_smoothing) + cpo_alpha * chosen_nll(rows)


def orpo(rows: ScoredRows, *, beta: float = 0.1) -> Tensor:
    """Odds ratio preference optimisation, [P]: −ℓ_w/|y_w| − β log σ(log odds_w/odds_l) (Hong et al. 2024, eqs. 6, 7).

    odds = P/(1 − P) with P = exp(ℓ/|y|); β is the paper's λ. Only completions are trained on; TRL's likelihood term
    has the prompt's tokens as well, and is a mean over all tokens of a micro-batch.
    """
    average = rows.average_logps()
    # A completion that is all but certain has odds without end; its log-prob rounds to 0.
    below_zero = average.clamp(max=-torch.finfo(average.dtype).eps)
    log_odds = below_zero - (-below_zero.expm1()).log()
    return chosen_nll(rows) - beta * F.logsigmoid(margins(rows, log_odds))
