"""Direct Preference Optimization and its nearest kin: logistic losses of a margin of log-ratios.

Legend: P pairs; r = log π(y|x) / π_ref(y|x), r_w of the chosen completion and r_l of the rejected one; σ the logistic
function; ε = label_smoothing.
"""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from raydpo.objective.contract import ScoredRows
from raydpo.objective.preference.margins import margins, smoothed_logistic

FDivergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]

LARGEST_EXPONENT = 80.0  # exp of it is finite in float32


def sigmoid(
    rows: ScoredRows,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    f_divergence_type: FDivergence = "reverse_kl",
    f_alpha_divergence_coef: float = 0.5,
) -> Tensor:
    """DPO, [P]: −log σ(β (r_w − r_l)) (Rafailov et al. 2023, eq. 7).

    With ε > 0 conservative DPO (Mitchell 2023): −(1 − ε) log σ(m) − ε log σ(−m); TRL ignores label_smoothing here.
    With another f-divergence than the reverse KL, f-DPO (Wang et al. 2023): f'(exp r) in place of r.
    """
    scores = f_scores(rows.log_ratios(), f_divergence_type, f_alpha_divergence_coef)
    return smoothed_logistic(beta * margins(rows, scores), label_smoothing)


def f_scores(log_ratios: Tensor, f_divergence_type: FDivergence, alpha: float) -> Tensor:
    """f'(u) of the density ratios u = exp r, which a policy that is held by an f-divergence has for r.

    Constants that cancel in a margin are left out, except those that keep f'(1) = 0. Exponents are bounded, so that
    nothing overflows: TRL bounds only those of the α-divergence.

    reverse_kl        log u
    forward_kl        1 − 1/u
    js_divergence     log 2u/(1 + u)
    alpha_divergence  (u^(α−1) − 1)/(α − 1), and log u for α = 1
    """
    match f_divergence_type:
        case "forward_kl":
            return 1 - (-log_ratios).clamp(max=LARGEST_EXPONENT).exp()
        case "js_divergence":
            return math.log(2) + F.logsigmoid(log_ratios)
        case "alpha_divergence" if alpha != 1:
            exponents = ((alpha - 1) * log_ratios).clamp(max=LARGEST_EXPONENT)
            return exponents.expm1() / (alpha - 1)
    return log_ratios


def sigmoid_norm(rows: ScoredRows, *, beta: float = 5.0, label_smoothing: float = 0.0) -> Tensor:
    """Length-normalised DPO, [P]: −log σ(β (r_w/|y_w| − r_l/|y_l|)) (Lambert et al. 2024, Tülu 3).

    β is Tülu 3's and Olmo's; TRL has one default of 0.1 for all losses, and ignores label_smoothing here.
    """
    return smoothed_logistic(beta * margins(rows, rows.average_log_ratios()), label_smoothing)


def robust(rows: ScoredRows, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """Provably robust DPO, [P]: (−(1 − ε) log σ(m) + ε log σ(−m)) / (1 − 2ε), with m = β (r_w − r_l).

    Chowdhury et al. 2024: without bias where labels are wrong with probability ε < 1/2. As in TRL.
    """
    margin = beta * margins(rows, rows.log_ratios())
    as_labelled = -(1 - label_smoothing) * F.logsigmoid(margin)
    flipped = -label_smoothing * F.logsigmoid(-margin)
    return (as_labelled - flipped) / (1 - 2 * label_smoothing)
