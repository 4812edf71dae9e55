"""Every preference loss by its name, and how a run file's words become an objective.

A new loss is a function and a line in LOSSES. Names and arguments are TRL's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from raydpo.errors import UserError
from raydpo.objective.contract import REF_LOGPS, Objective, ScoredRows, Values
from raydpo.objective.likelihood import preferred_ft, sft, unlikelihood
from raydpo.objective.preference import dpo, pairwise, reference_free


@dataclass(frozen=True)
class Loss:
    """A loss per pair, function(rows, **arguments) -> [P], whose signature has its arguments and their defaults.

    compares is what the loss compares between completions. Where it has a beta, that times beta is the implicit reward
    of the metrics.
    """

    function: Callable[..., Tensor]
    compares: Values
    needs: frozenset[str] = frozenset()

    @property
    def defaults(self) -> dict[str, Any]:
        """Every argument with its default."""
        parameters = inspect.signature(self.function).parameters.values()
        return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}


REFERENCE = frozenset({REF_LOGPS})

LOSSES: Mapping[str, Loss] = MappingProxyType(
    {
        "sigmoid": Loss(dpo.sigmoid, ScoredRows.log_ratios, REFERENCE),
        "sigmoid_norm": Loss(dpo.sigmoid_norm, ScoredRows.average_log_ratios, REFERENCE),
        "robust": Loss(dpo.robust, ScoredRows.log_ratios, REFERENCE),
        "hinge": Loss(pairwise.hinge, ScoredRows.log_ratios, REFERENCE),
        "ipo": Loss(pairwise.ipo, ScoredRows.average_log_ratios, REFERENCE),
        "exo_pair": Loss(pairwise.exo_pair, ScoredRows.log_ratios, REFERENCE),
        "nca_pair": Loss(pairwise.nca_pair, ScoredRows.log_ratios, REFERENCE),
        "sppo_hard": Loss(pairwise.sppo_hard, ScoredRows.log_ratios, REFERENCE),
        "apo_zero": Loss(pairwise.apo_zero, ScoredRows.log_ratios, REFERENCE),
        "apo_down": Loss(pairwise.apo_down, ScoredRows.log_ratios, REFERENCE),
        "discopop": Loss(pairwise.discopop, ScoredRows.log_ratios, REFERENCE),
        "simpo": Loss(reference_free.simpo, ScoredRows.average_logps),
        "cpo": Loss(reference_free.cpo, ScoredRows.logps),
        "orpo": Loss(reference_free.orpo, ScoredRows.average_logps),
        "sft": Loss(sft, ScoredRows.average_logps),
        "preferred_ft": Loss(preferred_ft, ScoredRows.logps),
        "unlikelihood": Loss(unlikelihood, ScoredRows.logps),
    }
)

SYNONYMS = MappingProxyType({"dpo": "sigmoid", "dpo_norm": "sigmoid_norm"})  # other projects' names

COUPLED = "couples the pairs of a global batch, which no loss of raydpo does yet"
ELSEWHERE = MappingProxyType(
    {
        "cdpo": "write loss_type: sigmoid with label_smoothing",
        "rpo": "write loss_type: [sigmoid, sft] with loss_weights: [1.0, ALPHA]",
        "cpo_simpo": "write loss_type: [simpo, sft] with loss_weights: [1.0, ALPHA]",
        "f_dpo": "write loss_type: sigmoid with f_divergence_type",
        "kto": f"it {COUPLED}",
        "bco_pair": f"it {COUPLED}",
        "aot": f"it {COUPLED}",
        "aot_unpaired": f"it {COUPLED}",
    }
)


@dataclass(frozen=True)
class Term:
    """One loss of a weighted sum, with all of its arguments."""

    loss_type: str
    weight: float
    arguments: Mapping[str, Any]


def resolve(
    loss_types: Sequence[str], loss_weights: Sequence[float] | None = None, /, **arguments: Any
) -> tuple[Term, ...]:
    """The terms of an objective, defaults filled in; an argument goes to every loss that takes it.

    Raises UserError for a name that is not known, an argument that no loss of them takes, and weights that do not
    match; its message names the key of the run file.
    """
    names = [_known(name) for name in loss_types]
    if len(set(names)) < len(names):
        raise UserError(f"train.objective.loss_type names a loss twice: {', '.join(names)}; give it the whole weight.")
    weights = [1.0] * len(names) if loss_weights is None else loss_weights
    if len(weights) != len(names):
        raise UserError(
            f"train.objective.loss_weights has {len(weights)} values for the {len(names)} losses of loss_type "
            f"({', '.join(names)}); give one a loss."
        )
    for argument in arguments:
        _check_taken(argument, names)
    return tuple(_term(name, weight, arguments) for name, weight in zip(names, weights, strict=True))


def _known(name: str) -> str:
    name = SYNONYMS.get(name, name)
    if name in ELSEWHERE:
        raise UserError(f"train.objective.loss_type = {name!r} is no loss of raydpo's: {ELSEWHERE[name]}.")
    if name not in LOSSES:
        [nearest] = get_close_matches(name, LOSSES, n=1, cutoff=0.0)
        raise UserError(
            f"train.objective.loss_type = {name!r}: there is no such loss; the nearest is {nearest}, and all are "
            f"{', '.join(LOSSES)}."
        )
    return name


def _check_taken(argument: str, names: Sequence[str]) -> None:
    if any(argument in LOSSES[name].defaults for name in names):
        return
    takers = [name for name, loss in LOSSES.items() if argument in loss.defaults]
    raise UserError(
        f"train.objective.{argument} is set, and {' + '.join(names)} does not take it; remove it, or choose a loss "
        f"that does: {', '.join(takers)}."
    )


def _term(name: str, weight: float, arguments: Mapping[str, Any]) -> Term:
    defaults = LOSSES[name].defaults
    term = Term(name, weight, defaults | {each: value for each, value in arguments.items() if each in defaults})
    if name == "exo_pair" and term.arguments["label_smoothing"] == 0:
        raise UserError("train.objective.label_smoothing = 0: exo_pair has no such limit; set it above 0, say 0.001.")
    return term


def make_objective(terms: Sequence[Term]) -> Objective:
    """The weighted sum of some losses, averaged over the pairs of the global batch.

    Rewards and the ranking of completions are those of the first loss that has a beta, or of the first.
    """
    leading = next((term for term in terms if "beta" in term.arguments), terms[0])
    compares = LOSSES[leading.loss_type].compares
    return Objective(
        loss=partial(_weighted_sum, terms),
        metrics=partial(_metrics, compares, leading.arguments.get("beta")),
        mean_over="pairs",
        metrics_over="pairs",
        compares=compares,
        needs=frozenset().union(*(LOSSES[term.loss_type].needs for term in terms)),
    )


def loss_at_reference(terms: Sequence[Term]) -> float | None:
    """The loss while policy and reference are the same, whatever the pairs; None where it rests on the pairs."""
    if not all(LOSSES[term.loss_type].needs == REFERENCE for term in terms):
        return None
    logps = torch.full((2,), -1.0, dtype=torch.float64)
    of_one_row = torch.zeros(2, dtype=torch.int64)
    same = ScoredRows(logps, torch.arange(2), row=of_one_row, num_rows=1, columns={REF_LOGPS: logps})
    return float(_weighted_sum(terms, same))


def _weighted_sum(terms: Sequence[Term], rows: ScoredRows) -> Tensor:
    """[B]: of every row the sum over its pairs."""
    values = [term.weight * LOSSES[term.loss_type].function(rows, **term.arguments) for term in terms]
    return rows.sum_by_row(sum(values[1:], start=values[0]), rows.pairs().row)


def _metrics(compares: Values, beta: float | None, rows: ScoredRows) -> dict[str, Tensor]:
    """Sums over the pairs of each row, named as in the field.

    rewards/* are in units of β times what the loss compares, logps/* in nats. rewards/accuracies counts a tie as wrong,
    so that policy = reference scores 0 and not one half. TRL's rewards are of the sums over tokens for every loss;
    these are of the means where the loss is.
    """
    named = dict(zip(("logps/chosen", "logps/rejected"), rows.of_pairs(rows.logps()), strict=True))
    if beta is not None:
        chosen, rejected = rows.of_pairs(beta * compares(rows))
        margin = chosen - rejected
        accuracy = (margin > 0).to(margin.dtype)
        named = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": margin,
            "rewards/accuracies": accuracy,
            **named,
        }
    row = rows.pairs().row
    return {name: rows.sum_by_row(values, row) for name, values in named.items()}
