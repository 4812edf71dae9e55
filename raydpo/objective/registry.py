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
from typing import Any, Literal

import torch
from torch import Tensor

from raydpo.config.errors import UserError
from raydpo.objective.contract import LABEL, MISMATCHED, REF_LOGPS, Mean, Objective, ScoredRows, Values
from raydpo.objective.likelihood import preferred_ft, sft, unlikelihood
from raydpo.objective.preference import coupled, dpo, pairwise, reference_free, unpaired


@dataclass(frozen=True)
class Loss:
    """A loss, function(rows, **arguments), whose signature has its arguments and their defaults.

    It has a value a pair, [P], or a value a completion, [C], as unit says. compares is what the loss compares between
    completions. Where it has a beta, that times beta is the implicit reward of the metrics. A loss that is coupled sees
    the whole global batch, and baselines(rows, beta) names what it takes from there.
    """

    function: Callable[..., Tensor]
    compares: Values
    needs: frozenset[str] = frozenset()
    unit: Literal["pairs", "completions"] = "pairs"
    coupled: bool = False
    baselines: Callable[[ScoredRows, float], dict[str, Tensor]] | None = None

    @property
    def defaults(self) -> dict[str, Any]:
        """Every argument with its default."""
        parameters = inspect.signature(self.function).parameters.values()
        return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}


REFERENCE = frozenset({REF_LOGPS})
LABELLED = frozenset({REF_LOGPS, LABEL})
WITH_OTHERS = frozenset({REF_LOGPS, LABEL, MISMATCHED})

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
        "aot": Loss(coupled.aot, ScoredRows.log_ratios, REFERENCE, coupled=True),
        "aot_unpaired": Loss(unpaired.aot_unpaired, ScoredRows.log_ratios, LABELLED, unit="completions", coupled=True),
        "bco_pair": Loss(
            coupled.bco_pair, ScoredRows.log_ratios, REFERENCE, coupled=True, baselines=coupled.bco_pair_baselines
        ),
        "bco": Loss(
            unpaired.bco,
            ScoredRows.log_ratios,
            LABELLED,
            unit="completions",
            coupled=True,
            baselines=unpaired.bco_baselines,
        ),
        "kto": Loss(
            unpaired.kto,
            ScoredRows.log_ratios,
            WITH_OTHERS,
            unit="completions",
            coupled=True,
            baselines=unpaired.kto_baselines,
        ),
        "apo_zero_unpaired": Loss(unpaired.apo_zero_unpaired, ScoredRows.log_ratios, LABELLED, unit="completions"),
        "simpo": Loss(reference_free.simpo, ScoredRows.average_logps),
        "cpo": Loss(reference_free.cpo, ScoredRows.logps),
        "orpo": Loss(reference_free.orpo, ScoredRows.average_logps),
        "sft": Loss(sft, ScoredRows.average_logps),
        "preferred_ft": Loss(preferred_ft, ScoredRows.logps),
        "unlikelihood": Loss(unlikelihood, ScoredRows.logps),
    }
)

SYNONYMS = MappingProxyType({"dpo": "sigmoid", "dpo_norm": "sigmoid_norm"})  # other projects' names

ELSEWHERE = MappingProxyType(
    {
        "cdpo": "write loss_type: sigmoid with label_smoothing",
        "rpo": "write loss_type: [sigmoid, sft] with loss_weights: [1.0, ALPHA]",
        "cpo_simpo": "write loss_type: [simpo, sft] with loss_weights: [1.0, ALPHA]",
        "f_dpo": "write loss_type: sigmoid with f_divergence_type",
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
    _check_one_unit(names)
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


def _check_one_unit(names: Sequence[str]) -> None:
    by_unit = {unit: [name for name in names if LOSSES[name].unit == unit] for unit in ("pairs", "completions")}
    if all(by_unit.values()):
        raise UserError(
            f"train.objective.loss_type adds {', '.join(by_unit['completions'])}, a loss of single completions, to "
            f"{', '.join(by_unit['pairs'])}, a loss of pairs: their means are over different things; keep one kind."
        )


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
    """The weighted sum of some losses, averaged over the pairs or the completions of the global batch.

    Rewards and the ranking of completions are those of the first loss that has a beta, or of the first. Where one loss
    is coupled, all are given the whole global batch.
    """
    leading = next((term for term in terms if "beta" in term.arguments), terms[0])
    losses = [LOSSES[term.loss_type] for term in terms]
    return Objective(
        loss=partial(_weighted_sum, terms),
        metrics=partial(_metrics, terms, leading),
        mean_over=losses[0].unit,
        compares=LOSSES[leading.loss_type].compares,
        needs=frozenset().union(*(loss.needs for loss in losses)),
        coupled=any(loss.coupled for loss in losses),
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
    """[B]: of every row the sum over its pairs, or over its completions."""
    values = [term.weight * LOSSES[term.loss_type].function(rows, **term.arguments) for term in terms]
    unit_row = rows.pairs().row if LOSSES[terms[0].loss_type].unit == "pairs" else rows.row
    return rows.sum_by_row(sum(values[1:], start=values[0]), unit_row)


def _metrics(terms: Sequence[Term], leading: Term, rows: ScoredRows) -> dict[str, Mean]:
    """Named as in the field: rewards/* in units of β times what the loss compares, logps/* in nats.

    TRL's rewards are of the sums over tokens for every loss; these are of the means where the loss is. What a coupled
    loss takes from the global batch is the same for every row.
    """
    loss = LOSSES[leading.loss_type]
    of_unit = _pair_metrics if loss.unit == "pairs" else _completion_metrics
    named = of_unit(loss.compares, leading.arguments.get("beta"), rows)
    every_row = torch.ones(rows.num_rows, dtype=rows.token_logps.dtype)
    for term in terms:
        if (baselines := LOSSES[term.loss_type].baselines) is not None:
            found = baselines(rows, term.arguments["beta"])
            named |= {name: Mean(value * every_row, every_row) for name, value in found.items()}
    return named


def _pair_metrics(compares: Values, beta: float | None, rows: ScoredRows) -> dict[str, Mean]:
    """Over pairs. rewards/accuracies counts a tie as wrong, so that policy = reference scores 0 and not one half."""
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
    return {name: rows.mean(values, row) for name, values in named.items()}


def _completion_metrics(compares: Values, beta: float | None, rows: ScoredRows) -> dict[str, Mean]:
    """Over wanted completions (chosen) and over the others (rejected); these make no pairs, so there is no margin."""
    of_kind = {
        "chosen": unpaired.wanted(rows) & unpaired.judged(rows),
        "rejected": ~unpaired.wanted(rows) & unpaired.judged(rows),
    }
    named = {"logps": rows.logps()}
    if beta is not None:
        named = {"rewards": beta * compares(rows), **named}
    return {
        f"{name}/{kind}": rows.mean(values[members], rows.row[members])
        for name, values in named.items()
        for kind, members in of_kind.items()
    }
