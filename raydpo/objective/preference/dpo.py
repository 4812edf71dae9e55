"""Direct Preference Optimization and its nearest kin: logistic losses of a margin of log-ratios.

Legend: P pairs; r = log π(y|x) / π_ref(y|x), r_w of the chosen completion and r_l of the rejected one; σ the logistic
function; ε = label_smoothing.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from raydpo.objective.contract import LOG_SUM_SQ_PROBS, MARGIN, REF_TOKEN_LOGPS, ScoredRows
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
    ld_alpha: float = 1.0,
    use_margin: bool = False,
    use_weighting: bool = False,
) -> Tensor:
    """DPO, [P]: −log σ(β (r_w − r_l)) (Rafailov et al. 2023, eq. 7).

    label_smoothing: with ε > 0 conservative DPO (Mitchell 2023): −(1 − ε) log σ(m) − ε log σ(−m); TRL ignores it here.
    f_divergence_type: another one than the reverse KL puts f'(exp r) in place of r (f-DPO, Wang et al. 2023).
    ld_alpha: below 1 tokens behind the length of the shorter completion count in part, see desensitised_log_ratios.
    use_margin: −log σ(m − Δ), Δ the difference of both completions' margins in the data (ODPO, Amini et al. 2024). TRL
    has it in its RewardTrainer only.
    use_weighting: the loss times how likely both completions are under the policy, see policy_weights.
    """
    chosen, rejected = (
        f_scores(log_ratios, f_divergence_type, f_alpha_divergence_coef)
        for log_ratios in desensitised_log_ratios(rows, ld_alpha)
    )
    margin = beta * (chosen - rejected)
    if use_margin:
        margin = margin - margins(rows, rows.columns[MARGIN])
    losses = smoothed_logistic(margin, label_smoothing)
    return losses * policy_weights(rows) if use_weighting else losses


def desensitised_log_ratios(rows: ScoredRows, ld_alpha: float) -> tuple[Tensor, Tensor]:
    """r of chosen and rejected, [P] each, in which tokens beyond the shorter of the two count only α times.

    Length-desensitised DPO (Liu et al. 2024). As in TRL, the reference's tokens are weighed as the policy's are, so
    that the margin is 0 while policy and reference are the same.
    """
    if ld_alpha == 1:
        return rows.of_pairs(rows.log_ratios())
    ratios = rows.table(rows.token_logps - rows.token_columns[REF_TOKEN_LOGPS])
    better, worse, _ = rows.pairs()
    lengths = rows.lengths()
    shared = torch.minimum(lengths[better], lengths[worse])
    place = torch.arange(ratios.shape[1], device=ratios.device)
    weights = (place < shared[:, None]).to(ratios.dtype).clamp(min=ld_alpha)
    return (weights * ratios[better]).sum(dim=1), (weights * ratios[worse]).sum(dim=1)


@torch.no_grad()
def policy_weights(rows: ScoredRows) -> Tensor:
    """WPO's weight of every pair, [P]: w(y_w) w(y_l), which has no gradient (Zhou et al. 2024).

    w(y) = exp(mean over the tokens of log π(y_t) − log Σ_v π(v)²), "sampled alignment": about 1 where the policy itself
    might have drawn the completion. As in TRL, without a bound of 1.
    """
    aligned = rows.token_logps - rows.token_columns[LOG_SUM_SQ_PROBS]
    chosen, rejected = rows.of_pairs(rows.sum_by_completion(aligned) / rows.lengths())
    return (chosen + rejected).exp()


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
