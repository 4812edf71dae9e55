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

from raydpo.errors import UserError
from raydpo.objective.contract import (
    LABEL,
    LOG_SUM_SQ_PROBS,
    MARGIN,
    MISMATCHED,
    RANK,
    REF_LOGPS,
    REF_TOKEN_LOGPS,
    Mean,
    Objective,
    ScoredRows,
    Values,
)
from raydpo.objective.likelihood import chosen_nll, preferred_ft, unlikelihood
from raydpo.objective.preference import coupled, dpo, pairwise, ranked, reference_free, unpaired

LossUnit = Literal["pairs", "completions", "rows"]


@dataclass(frozen=True)
class Loss:
    """A loss, function(rows, **arguments), whose signature has its arguments and their defaults.

    It has a value for every pair, [P], every completion, [C], or every row, [B], as mean_over says.

    compares is what the loss compares between completions. Where it has a beta, that times beta is the implicit reward
    of the metrics. A loss that is coupled is given the whole global batch, and baselines(rows, beta) are what it takes
    from there, by name.
    """

    function: Callable[..., Tensor]
    compares: Values
    needs: frozenset[str] = frozenset()
    mean_over: LossUnit = "pairs"
    coupled: bool = False
    baselines: Callable[[ScoredRows, float], dict[str, Tensor]] | None = None

    @property
    def defaults(self) -> dict[str, Any]:
        """Every argument with its default."""
        parameters = inspect.signature(self.function).parameters.values()
        return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}


REFERENCE = frozenset({REF_LOGPS})
LABELLED = REFERENCE | {LABEL}

# What an argument reads where it is not left at its default: columns of the data, and statistics of the head.
ARGUMENTS_NEED = MappingProxyType({"ld_alpha": REF_TOKEN_LOGPS, "use_margin": MARGIN})
ARGUMENTS_ASK = MappingProxyType({"use_weighting": LOG_SUM_SQ_PROBS})

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
        "bco_pair": Loss(
            coupled.bco_pair, ScoredRows.log_ratios, REFERENCE, coupled=True, baselines=coupled.bco_pair_baselines
        ),
        "kto": Loss(
            unpaired.kto,
            ScoredRows.log_ratios,
            LABELLED | {MISMATCHED},
            mean_over="completions",
            coupled=True,
            baselines=unpaired.kto_baselines,
        ),
        "bco": Loss(
            unpaired.bco,
            ScoredRows.log_ratios,
            LABELLED,
            mean_over="completions",
            coupled=True,
            baselines=unpaired.bco_baselines,
        ),
        "aot_unpaired": Loss(
            unpaired.aot_unpaired, ScoredRows.log_ratios, LABELLED, mean_over="completions", coupled=True
        ),
        "apo_zero_unpaired": Loss(unpaired.apo_zero_unpaired, ScoredRows.log_ratios, LABELLED, mean_over="completions"),
        "plackett_luce": Loss(ranked.plackett_luce, ScoredRows.log_ratios, REFERENCE | {RANK}, mean_over="rows"),
        "simpo": Loss(reference_free.simpo, ScoredRows.average_logps),
        "cpo": Loss(reference_free.cpo, ScoredRows.logps),
        "orpo": Loss(reference_free.orpo, ScoredRows.average_logps),
        "sft": Loss(chosen_nll, ScoredRows.average_logps),
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

    @property
    def loss(self) -> Loss:
        """The loss that is registered under the name."""
        return LOSSES[self.loss_type]

    @property
    def needs(self) -> frozenset[str]:
        """Columns that the data must have, with these arguments."""
        return self.loss.needs | self._read_by(ARGUMENTS_NEED)

    @property
    def statistics(self) -> frozenset[str]:
        """Columns of tokens that the head must find, with these arguments."""
        return self._read_by(ARGUMENTS_ASK)

    @property
    def in_force(self) -> dict[str, Any]:
        """The arguments without those that would make another loss of it and are left off.

        They are what a run is known by: an argument that is new here does not make another run of an earlier one.
        """
        switches = ARGUMENTS_NEED.keys() | ARGUMENTS_ASK.keys()
        defaults = self.loss.defaults
        return {
            name: value for name, value in self.arguments.items() if name not in switches or value != defaults[name]
        }

    def _read_by(self, columns: Mapping[str, str]) -> frozenset[str]:
        defaults = self.loss.defaults
        return frozenset(
            columns[name] for name, value in self.arguments.items() if name in columns and value != defaults[name]
        )


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
    _check_one_unit(names)
    terms = tuple(_term(name, weight, arguments) for name, weight in zip(names, weights, strict=True))
    _check_statistics(terms)
    return terms


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


def _check_one_unit(names: Sequence[str]) -> None:
    by_unit = {LOSSES[name].mean_over: name for name in names}
    if len(by_unit) > 1:
        means = " and ".join(f"{name} is a mean over {unit}" for unit, name in by_unit.items())
        raise UserError(f"train.objective.loss_type: {means}, so they do not add up; choose losses of one kind.")


def _check_statistics(terms: Sequence[Term]) -> None:
    """The head finds statistics in the pass that makes the gradient, when coupled losses have been made already."""
    coupled_terms = [term.loss_type for term in terms if term.loss.coupled]
    if coupled_terms and any(term.statistics for term in terms):
        raise UserError(
            f"train.objective.use_weighting does not go with {', '.join(coupled_terms)}, which couples the rows of a "
            "batch; remove one of them."
        )


def _term(name: str, weight: float, arguments: Mapping[str, Any]) -> Term:
    defaults = LOSSES[name].defaults
    term = Term(name, weight, defaults | {each: value for each, value in arguments.items() if each in defaults})
    if name == "exo_pair" and term.arguments["label_smoothing"] == 0:
        raise UserError("train.objective.label_smoothing = 0: exo_pair has no such limit; set it above 0, say 0.001.")
    return term


def make_objective(terms: Sequence[Term]) -> Objective:
    """The weighted sum of some losses, averaged over the pairs, completions or rows of the global batch.

    Rewards and the ranking of completions are those of the first loss that has a beta, or of the first. Where one loss
    is coupled, all are given the whole global batch.
    """
    leading = next((term for term in terms if "beta" in term.arguments), terms[0])
    mean_over = leading.loss.mean_over
    return Objective(
        loss=partial(_weighted_sum, terms, mean_over),
        metrics=partial(_metrics, terms, leading),
        mean_over=mean_over,
        compares=leading.loss.compares,
        needs=frozenset().union(*(term.needs for term in terms)),
        statistics=frozenset().union(*(term.statistics for term in terms)),
        coupled=any(term.loss.coupled for term in terms),
    )


def loss_at_reference(terms: Sequence[Term]) -> float | None:
    """The loss while policy and reference are the same, whatever the pairs; None where it rests on the pairs."""
    if any(term.needs - {REF_TOKEN_LOGPS} != REFERENCE or term.statistics for term in terms):
        return None
    # Any log-prob will do: these losses see only how far it is from the reference's, which is the same number.
    logps = torch.full((2,), -1.0, dtype=torch.float64)
    of_one_row = torch.zeros(2, dtype=torch.int64)
    same = ScoredRows(
        logps,
        torch.arange(2),
        row=of_one_row,
        num_rows=1,
        columns={REF_LOGPS: logps},
        token_columns={REF_TOKEN_LOGPS: logps},
    )
    return float(_weighted_sum(terms, "pairs", same))


def _weighted_sum(terms: Sequence[Term], unit: LossUnit, rows: ScoredRows) -> Tensor:
    """The weighted sum of all terms, [B]: of a row's own values, or of sums over its pairs or completions."""
    values = [term.weight * term.loss.function(rows, **term.arguments) for term in terms]
    total = sum(values[1:], start=values[0])
    match unit:
        case "pairs":
            return rows.sum_by_row(total, rows.pairs().row)
        case "completions":
            return rows.sum_by_row(total, rows.row)
    return total


def _metrics(terms: Sequence[Term], leading: Term, rows: ScoredRows) -> dict[str, Mean]:
    """Named as in the field: rewards/* in units of β times what the loss compares, logps/* in nats.

    TRL's rewards are of the sums over tokens for every loss; these are of the means where the loss is. What a coupled
    loss takes from the global batch is the same for every row.
    """
    of_unit = _completion_metrics if leading.loss.mean_over == "completions" else _pair_metrics
    named = of_unit(leading.loss.compares, leading.arguments.get("beta"), rows)
    every_row = torch.ones(rows.num_rows, dtype=rows.token_logps.dtype)
    for term in terms:
        if term.loss.baselines is not None:
            found = term.loss.baselines(rows, term.arguments["beta"])
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
