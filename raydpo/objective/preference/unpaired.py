"""Losses on single completions that are wanted or not. Of a pair, the chosen one is wanted and the rejected one not.

Legend: C completions; r = log π(y|x) / π_ref(y|x); s = 1 for wanted completions and −1 for the others; w the weight of
either; σ the logistic function.

A completion of another prompt, which stands in a row for KTO's baseline alone (see MISMATCHED), is neither: its value
is 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from raydpo.objective.contract import LABEL, MISMATCHED, RANK, ScoredRows
from raydpo.objective.preference.margins import smoothed_logistic


def wanted(rows: ScoredRows) -> Tensor:
    """Whether a completion is wanted, bool [C]: its label, or in rows of pairs whether none of its row is better."""
    if LABEL in rows.columns:
        return rows.columns[LABEL]
    if RANK in rows.columns:
        return rows.columns[RANK] == 0
    first_of_row = torch.ones_like(rows.row, dtype=torch.bool)
    first_of_row[1:] = rows.row[1:] != rows.row[:-1]
    return first_of_row


def judged(rows: ScoredRows) -> Tensor:
    """Whether a completion counts in the loss, bool [C]: all but those of other prompts."""
    if MISMATCHED in rows.columns:
        return ~rows.columns[MISMATCHED]
    return torch.ones_like(rows.row, dtype=torch.bool)


def kto(
    rows: ScoredRows, *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> Tensor:
    """Kahneman-Tversky optimization, [C]: w (1 − σ(s β (r − z₀))) (Ethayarajh et al. 2024).

    z₀ = max(0, mean of r over completions of other prompts), without gradient: the estimate of the KL from the
    reference, over the whole global batch. TRL takes that mean over one micro-batch of every device, and a row's other
    completion from the same micro-batch.
    """
    gains = beta * (rows.log_ratios() - divergence(rows))
    return _weights(rows, desirable_weight, undesirable_weight) * (-_signs(rows) * gains).sigmoid()


def divergence(rows: ScoredRows) -> Tensor:
    """KTO's z₀, a scalar in nats, from all completions of other prompts that the rows have; 0 where they have none."""
    of_others = rows.log_ratios()[rows.columns[MISMATCHED]]
    return (of_others.sum() / max(1, len(of_others))).clamp(min=0).detach()


def kto_baselines(rows: ScoredRows, beta: float) -> dict[str, Tensor]:
    """z₀ in nats, under TRL's name."""
    return {"kl": divergence(rows)}


def bco(rows: ScoredRows, *, beta: float = 0.1) -> Tensor:
    """Binary classifier optimization, [C]: −log σ(s (β r − δ)) (Jung et al. 2024).

    δ, the reward shift, is the mean reward β r of all judged completions of the global batch, without gradient. The
    paper's is the mean of the two means of wanted and unwanted ones, which is the same where there are as many of
    either. TRL's BCOTrainer kept a running mean over steps and ranks of its own; its weights for an underlying
    distribution (UDM) are not built.
    """
    shifted = beta * rows.log_ratios() - reward_shift(rows, beta)
    return -F.logsigmoid(_signs(rows) * shifted) * judged(rows)


def reward_shift(rows: ScoredRows, beta: float) -> Tensor:
    """BCO's δ, a scalar in units of rewards."""
    return (beta * rows.log_ratios()[judged(rows)]).mean().detach()


def bco_baselines(rows: ScoredRows, beta: float) -> dict[str, Tensor]:
    """The reward shift, under TRL's name."""
    return {"delta": reward_shift(rows, beta)}


def apo_zero_unpaired(
    rows: ScoredRows, *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> Tensor:
    """Anchored preference optimisation, zero, of single completions, [C]: w (1 − σ(s β r)).

    D'Oosterlinck et al. 2024, eq. 7, each of whose terms looks at one completion. As in TRL's KTOTrainer.
    """
    rewards = beta * rows.log_ratios()
    return _weights(rows, desirable_weight, undesirable_weight) * (-_signs(rows) * rewards).sigmoid()


def aot_unpaired(rows: ScoredRows, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """Alignment via optimal transport, [C]: −log σ(β (r⁺ − r⁻)), r⁺ and r⁻ of equal quantile.

    Melnyk et al. 2024, the unpaired variant: the r⁺ of wanted completions are to dominate the r⁻ of the others as a
    distribution. The loss is the integral over the quantile, which is exact for any numbers of either: both quantile
    functions are steps. It is given out in halves to the wanted and the unwanted completions, so that the mean over
    completions is the integral. TRL sorts within a micro-batch of a device, and needs pairs. Where all completions of
    a global batch are wanted, or none, there is nothing to compare: every value is 0.
    """
    ratios = rows.log_ratios()
    of_wanted = (wanted(rows) & judged(rows)).nonzero().squeeze(1)
    of_others = (~wanted(rows) & judged(rows)).nonzero().squeeze(1)
    if not len(of_wanted) or not len(of_others):
        return 0 * ratios
    above = of_wanted[ratios[of_wanted].detach().argsort(stable=True)]
    below = of_others[ratios[of_others].detach().argsort(stable=True)]
    step_above, step_below, width = _common_steps(len(above), len(below))
    pieces = width.to(ratios) * smoothed_logistic(
        beta * (ratios[above[step_above]] - ratios[below[step_below]]), label_smoothing
    )
    half = pieces * (0.5 * (len(above) + len(below)))
    values = torch.zeros_like(ratios).index_add(0, above[step_above], half)
    return values.index_add(0, below[step_below], half)


def _common_steps(first: int, second: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pieces of [0, 1) on which quantile functions of `first` and of `second` equal steps are both constant.

    Returns the step of either function on each piece, and the piece's width. Of 2 and 3 steps, in sixths:

        edges     0 2 3 4 6
        first     0 0 1 1
        second    0 1 1 2
        width     2 1 1 2
    """
    of_first = torch.arange(first) * second
    of_second = torch.arange(second) * first
    begins = torch.cat((of_first, of_second)).unique()
    ends = torch.cat((begins[1:], torch.tensor([first * second])))
    return begins // second, begins // first, (ends - begins).double() / (first * second)


def _signs(rows: ScoredRows) -> Tensor:
    """1 for wanted completions and −1 for the others, [C]."""
    return 2 * wanted(rows).to(rows.token_logps.dtype) - 1


def _weights(rows: ScoredRows, desirable: float, undesirable: float) -> Tensor:
    """The weight of every completion, [C]; 0 for those of other prompts."""
    weights = rows.token_logps.new_full(rows.row.shape, undesirable)  # not torch.where, whose numbers are float32
    weights[wanted(rows)] = desirable
    return weights * judged(rows)
