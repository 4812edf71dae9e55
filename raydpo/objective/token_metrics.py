"""Metrics of what the policy predicts at every completion token, on request and named as TRL's DPOTrainer names them.

Legend: B rows, C completions of all rows, M completion tokens, K metrics asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from raydpo.objective.contract import ScoredRows, TokenMetric

WEIGHT = "/tokens"
"""What is put behind a metric's name to name its denominator: the tokens that its sum was taken over."""


def observe(logits: Tensor, target: Tensor, names: Sequence[TokenMetric]) -> Tensor:
    """What the metrics are made of at each position, [K, m] in float32, from its logits [m, V] and target [m].

    entropy is in nats, mean_token_accuracy is 1 where the target has the largest logit, and logits is the mean over the
    vocabulary.
    """
    return torch.stack([_OF_LOGITS[name](logits, target).float() for name in names])


def _entropy(logits: Tensor, target: Tensor) -> Tensor:
    """log Σ e − Σ e z / Σ e, with z the logit less the largest and e its exponential: half the time of Σ −p log p."""
    # A token that is shut out has the logit −∞, and 0 times that is no number. e^−100 is 0 in all but name.
    z = (logits - logits.amax(dim=1, keepdim=True)).clamp_(min=-100)
    e = z.exp()
    total = e.sum(dim=1)
    return total.log() - e.mul_(z).sum(dim=1) / total


def _is_largest(logits: Tensor, target: Tensor) -> Tensor:
    return logits.argmax(dim=1) == target


def _mean_logit(logits: Tensor, target: Tensor) -> Tensor:
    return logits.mean(dim=1)


_OF_LOGITS = {"entropy": _entropy, "mean_token_accuracy": _is_largest, "logits": _mean_logit}


def token_sums(rows: ScoredRows, observed: Mapping[TokenMetric, Tensor], *, paired: bool) -> dict[str, Tensor]:
    """Sums over tokens by metric, each with the number of its tokens under its name and WEIGHT; scalars, in float64.

    Each of `observed` is [M]. The entropy is of all tokens, mean_token_accuracy of the chosen completions' and logits
    apart, logits/chosen and logits/rejected: a completion counts as often as it is chosen, or rejected, in a pair. Rows
    that are not `paired` have one kind of completion, all of whose tokens count once.
    """
    every = torch.ones(len(rows.row), device=rows.row.device)
    kinds = {"completion": every}
    if paired:
        pairs = rows.pairs()
        kinds = {
            "chosen": torch.bincount(pairs.better, minlength=len(rows.row)),
            "rejected": torch.bincount(pairs.worse, minlength=len(rows.row)),
        }
    sums: dict[str, Tensor] = {}
    for metric, values in observed.items():
        for name, times in _counted(metric, every, kinds).items():
            weights = times.double()[rows.owner]
            sums[name] = (weights * values).sum()
            sums[name + WEIGHT] = weights.sum()
    return sums


def _counted(metric: TokenMetric, every: Tensor, kinds: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of a metric, each with how often every completion counts in it, [C]."""
    if metric == "entropy":
        return {metric: every}
    if metric == "mean_token_accuracy":
        return {metric: kinds.get("chosen", every)}
    return {f"{metric}/{kind}": times for kind, times in kinds.items()}


def take_token_means(totals: dict[str, float]) -> dict[str, float]:
    """Takes what token_sums has named out of the totals of all ranks, and divides.

    A metric without tokens, as of a batch in which all ranks are ties, is left out.
    """
    means: dict[str, float] = {}
    for name in [each.removesuffix(WEIGHT) for each in totals if each.endswith(WEIGHT)]:
        total = totals.pop(name)
        weight = totals.pop(name + WEIGHT)
        if weight:
            means[name] = total / weight
    return means
