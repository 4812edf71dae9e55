"""Preference losses and the metrics that belong to them.

Legend: B pairs. Log-probs are sums over a completion's tokens, in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PairLogps:
    """log π(y|x) of both completions of B pairs: two float tensors of shape [B], in nats."""

    chosen: Tensor
    rejected: Tensor

    @classmethod
    def from_columns(cls, logps: Tensor) -> PairLogps:
        """From [B, 2]: column 0 is chosen, column 1 rejected."""
        return cls(logps[:, 0], logps[:, 1])


@dataclass(frozen=True)
class ImplicitRewards:
    """r̂ = β log π/π_ref of both completions, shape [B] each (Rafailov et al. 2023, section 4)."""

    chosen: Tensor
    rejected: Tensor

    @property
    def margins(self) -> Tensor:
        """How much more the policy prefers chosen than the reference does, shape [B]."""
        return self.chosen - self.rejected


def implicit_rewards(policy: PairLogps, ref: PairLogps, *, beta: float) -> ImplicitRewards:
    """The reward that DPO fits, up to a term in the prompt alone that cancels in a pair."""
    return ImplicitRewards(beta * (policy.chosen - ref.chosen), beta * (policy.rejected - ref.rejected))


def dpo_loss(policy: PairLogps, ref: PairLogps, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Per-pair DPO loss, shape [B] (Rafailov et al. 2023, eq. 7).

    With label_smoothing ε > 0 this is conservative DPO (Mitchell 2023): a label is taken to be wrong with
    probability ε, so the loss is the expectation over both labels.
    """
    margins = implicit_rewards(policy, ref, beta=beta).margins
    return -(1 - label_smoothing) * F.logsigmoid(margins) - label_smoothing * F.logsigmoid(-margins)


def preference_metrics(policy: PairLogps, ref: PairLogps, *, beta: float) -> dict[str, Tensor]:
    """Per-pair metrics, shape [B] each, named as in the field: rewards/* in units of β·nats, logps/* in nats.

    rewards/accuracies counts a tie as wrong, so that policy = reference scores 0 and not one half.
    """
    rewards = implicit_rewards(policy, ref, beta=beta)
    return {
        "rewards/chosen": rewards.chosen,
        "rewards/rejected": rewards.rejected,
        "rewards/margins": rewards.margins,
        "rewards/accuracies": (rewards.margins > 0).to(rewards.margins.dtype),
        "logps/chosen": policy.chosen,
        "logps/rejected": policy.rejected,
    }
