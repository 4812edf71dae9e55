"""Other losses on pairs that need a reference.

Legend: P pairs; r = log π(y|x) / π_ref(y|x), r_w of the chosen completion and r_l of the rejected one; σ the logistic
function.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from raydpo.objective.contract import ScoredRows
from raydpo.objective.preference.margins import margins


def hinge(rows: ScoredRows, *, beta: float = 0.1) -> Tensor:
    """SLiC's hinge on DPO's margin, [P]: max(0, 1 − β (r_w − r_l)).

    Zhao et al. 2023; Liu et al. 2024 (RSO). As in TRL.
    """
    return F.relu(1 - beta * margins(rows, rows.log_ratios()))


def ipo(rows: ScoredRows, *, beta: float = 0.1) -> Tensor:
    """Identity preference optimisation, [P]: (r_w/|y_w| − r_l/|y_l| − 1/(2β))² (Azar et al. 2023, eq. 17, β is its τ).

    The equation has log-ratios of whole completions. They are divided by the lengths as TRL does, whose authors asked
    the paper's: its results are of this form.
    """
    return (margins(rows, rows.average_log_ratios()) - 1 / (2 * beta)).square()


def exo_pair(rows: ScoredRows, *, beta: float = 0.1, label_smoothing: float = 1e-3) -> Tensor:
    """EXO on pairs, [P]: KL(p ‖ q) with p = (σ(m), σ(−m)), q = (1 − ε, ε) and m = β (r_w − r_l).

    Ji et al. 2024, eq. 16. ε must be above 0; TRL asks for it, here the default is what the authors use.
    """
    margin = beta * margins(rows, rows.log_ratios())
    chosen = margin.sigmoid() * (F.logsigmoid(margin) - math.log1p(-label_smoothing))
    rejected = (-margin).sigmoid() * (F.logsigmoid(-margin) - math.log(label_smoothing))
    return chosen + rejected


def nca_pair(rows: ScoredRows, *, beta: float = 0.1) -> Tensor:
    """Noise contrastive alignment, [P]: −log σ(β r_w) − ½ log σ(−β r_w) − ½ log σ(−β r_l).

    Chen et al. 2024, for two completions. As in TRL. The optimum keeps the chosen likelihood from falling.
    """
    chosen, rejected = rows.of_pairs(beta * rows.log_ratios())
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def sppo_hard(rows: ScoredRows, *, beta: float = 0.1) -> Tensor:
    """Self-play preference optimisation with hard labels, [P]: (r_w − 1/(2β))² + (r_l + 1/(2β))².

    Wu et al. 2024, eq. 4.7 with probabilities 1 and 0, β = 1/η. As in TRL; the paper's β is 0.001.
    """
    chosen, rejected = rows.of_pairs(rows.log_ratios())
    target = 1 / (2 * beta)
    return (chosen - target).square() + (rejected + target).square()


def apo_zero(rows: ScoredRows, *, beta: float = 0.1) -> Tensor:
    """Anchored preference optimisation, zero, [P]: 1 − σ(β r_w) + σ(β r_l) (D'Oosterlinck et al. 2024, eq. 7).

    As in TRL. For chosen completions that are better than what the model writes.
    """
    chosen, rejected = rows.of_pairs(beta * rows.log_ratios())
    return (-chosen).sigmoid() + rejected.sigmoid()


def apo_down(rows: ScoredRows, *, beta: float = 0.1) -> Tensor:
    """Anchored preference optimisation, down, [P]: σ(β r_w) + 1 − σ(β (r_w − r_l)) (D'Oosterlinck et al. 2024, eq. 8).

    As in TRL. For chosen completions that are worse than what the model writes.
    """
    chosen, rejected = rows.of_pairs(beta * rows.log_ratios())
    return chosen.sigmoid() + (rejected - chosen).sigmoid()


def discopop(rows: ScoredRows, *, beta: float = 0.1, discopop_tau: float = 0.05) -> Tensor:
    """DiscoPOP, [P]: −(1 − σ(m/τ)) log σ(m) + σ(m/τ) exp(−m), with m = β (r_w − r_l) (Lu et al. 2024, eq. 5).

    As in TRL. The loss that a language model found; it is not convex.
    """
    margin = beta * margins(rows, rows.log_ratios())
    mixed_in = (margin / discopop_tau).sigmoid()
    return -(1 - mixed_in) * F.logsigmoid(margin) + mixed_in * (-margin).exp()
