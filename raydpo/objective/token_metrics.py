"""Metrics of what the policy predicts at every completion token, on request and named as TRL's DPOTrainer names them.

Legend: B rows, C completions of all rows, M completion tokens, K metrics asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from raydpo.objective.contract import Mean, Objective, ScoredRows, TokenMetric, Unit
from raydpo.objective.preference.unpaired import judged, wanted


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


def token_means(rows: ScoredRows, objective: Objective, figures: Sequence[Tensor]) -> dict[str, Mean]:
    """Means over tokens by metric. figures: what the head has observed for the objective, [K, M], or nothing.

    The entropy is of all tokens, mean_token_accuracy of the chosen completions' and logits apart, logits/chosen and
    logits/rejected: a completion counts as often as it is chosen, or rejected, in a pair, and for losses on single
    completions as what it is. In the sft stage all are of one kind. Completions of other prompts are left out.
    """
    every = judged(rows).float()
    kinds = _kinds(rows, objective.mean_over, every)
    means: dict[str, Mean] = {}
    for observed in figures:
        for metric, values in zip(objective.observes, observed, strict=True):
            for name, times in _counted(metric, every, kinds).items():
                weights = times.double()[rows.owner]
                means[name] = Mean((weights * values).sum(), weights.sum())
    return means


def _kinds(rows: ScoredRows, unit: Unit, every: Tensor) -> dict[str, Tensor]:
    """How often every completion counts as one of a kind, [C]; `unit` is what the loss is the mean over."""
    match unit:
        case "tokens":
            return {"completion": every}
        case "completions":
            return {"chosen": every * wanted(rows), "rejected": every * ~wanted(rows)}
    pairs = rows.pairs()
    return {
        "chosen": torch.bincount(pairs.better, minlength=len(rows.row)),
        "rejected": torch.bincount(pairs.worse, minlength=len(rows.row)),
    }


def _counted(metric: TokenMetric, every: Tensor, kinds: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of a metric, each with how often every completion counts in it, [C]."""
    if metric == "entropy":
        return {metric: every}
    if metric == "mean_token_accuracy":
        return {metric: kinds.get("chosen", every)}
    return {f"{metric}/{kind}": times for kind, times in kinds.items()}
