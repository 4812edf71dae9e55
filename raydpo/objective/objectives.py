"""What the trainer can minimise. A new objective is one function here.

Legend: B rows, n completions per row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from raydpo.objective.likelihood import nll_loss
from raydpo.objective.preference import PairLogps, dpo_loss, preference_metrics

RowLoss = Callable[[Tensor, Tensor | None], Tensor]
RowMetrics = Callable[[Tensor, Tensor | None], dict[str, Tensor]]


@dataclass(frozen=True)
class Objective:
    """A loss per row, what to report beside it, and what its mean is taken over.

    loss(logps [B, n], ref_logps [B, n] or None) -> [B]; metrics takes the same and returns named [B] tensors.
    mean_over "rows" divides the global batch's sum by its rows (pairs), "tokens" by its completion tokens.
    """

    loss: RowLoss
    metrics: RowMetrics
    mean_over: Literal["rows", "tokens"]


def dpo(*, beta: float, label_smoothing: float = 0.0) -> Objective:
    """Direct Preference Optimization on pairs (chosen, rejected) with stored reference log-probs."""

    def split(logps: Tensor, ref_logps: Tensor | None) -> tuple[PairLogps, PairLogps]:
        assert ref_logps is not None, "DPO needs the reference's log-probs"
        return PairLogps.from_columns(logps), PairLogps.from_columns(ref_logps)

    def loss(logps: Tensor, ref_logps: Tensor | None) -> Tensor:
        policy, ref = split(logps, ref_logps)
        return dpo_loss(policy, ref, beta=beta, label_smoothing=label_smoothing)

    def metrics(logps: Tensor, ref_logps: Tensor | None) -> dict[str, Tensor]:
        policy, ref = split(logps, ref_logps)
        return preference_metrics(policy, ref, beta=beta)

    return Objective(loss, metrics, mean_over="rows")


def sft() -> Objective:
    """Supervised fine-tuning: the mean negative log-likelihood of a completion token."""

    def loss(logps: Tensor, ref_logps: Tensor | None) -> Tensor:
        return nll_loss(logps[:, 0])

    def metrics(logps: Tensor, ref_logps: Tensor | None) -> dict[str, Tensor]:
        return {"logps/completion": logps[:, 0]}

    return Objective(loss, metrics, mean_over="tokens")
