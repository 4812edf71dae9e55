"""The loss of reward models. Legend: B rows, C completions, P pairs, K heads; r_w and r_l the rewards of a pair."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from raydpo.objective.contract import MARGIN, Mean, RatedRows, RewardObjective
from raydpo.objective.preference.margins import smoothed_logistic


def bradley_terry(
    rows: RatedRows,
    *,
    label_smoothing: float = 0.0,
    center_rewards_coefficient: float = 0.0,
    use_margin: bool = False,
) -> Tensor:
    """Of every pair by every head, [P, K]: −log σ(r_w − r_l − margin) + c (r_w + r_l)².

    Rafailov et al. 2023, eq. 2; the margin is that of Llama 2 (Touvron et al. 2023, eq. 2), the centring term that of
    Eisenstein et al. 2023, both as in TRL's RewardTrainer. label_smoothing ε takes (1 − ε) of the first term and ε of
    it for the pair the other way round; it is not in TRL's.
    """
    better, worse = rows.of_pairs(rows.rewards)
    ahead = better - worse
    if use_margin:
        above, below = rows.of_pairs(rows.columns[MARGIN])
        ahead = ahead - (above - below)[:, None]
    return smoothed_logistic(ahead, label_smoothing) + center_rewards_coefficient * (better + worse).square()


def reward_objective(
    *, label_smoothing: float, center_rewards_coefficient: float, use_margin: bool, heads: int
) -> RewardObjective:
    """The mean of `bradley_terry` over the pairs and the heads, and what is told beside it."""
    loss = partial(
        bradley_terry,
        label_smoothing=label_smoothing,
        center_rewards_coefficient=center_rewards_coefficient,
        use_margin=use_margin,
    )

    def by_row(rows: RatedRows) -> Tensor:
        return rows.sum_by_row(loss(rows).mean(dim=1), rows.pairs().row)

    return RewardObjective(
        loss=by_row,
        metrics=disagreeing_metrics if heads > 1 else reward_metrics,
        mean_over="pairs",
        compares=RatedRows.mean_rewards,
        needs=frozenset({MARGIN}) if use_margin else frozenset(),
    )


def reward_metrics(rows: RatedRows) -> dict[str, Mean]:
    """Rewards, margins and accuracy over pairs, named as those of a policy; the reward is the mean over the heads.

    A tie counts as wrong.
    """
    better, worse = rows.of_pairs(rows.mean_rewards())
    row = rows.pairs().row
    return {
        "rewards/chosen": rows.mean(better, row),
        "rewards/rejected": rows.mean(worse, row),
        "rewards/margins": rows.mean(better - worse, row),
        "rewards/accuracies": rows.mean((better > worse).to(better.dtype), row),
    }


def disagreeing_metrics(rows: RatedRows) -> dict[str, Mean]:
    """The same, and how far the heads of an ensemble differ on a pair: the standard deviation of its margin."""
    better, worse = rows.of_pairs(rows.rewards)
    return reward_metrics(rows) | {
        "rewards/disagreement": rows.mean((better - worse).std(dim=1), rows.pairs().row),
    }
