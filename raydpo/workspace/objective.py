"""The run file's preference loss. The losses are looked up only when asked for: that loads torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from raydpo.config.schema import RunFile
from raydpo.data.mismatched import MISMATCHED

if TYPE_CHECKING:
    from raydpo.objective.contract import Objective
    from raydpo.objective.registry import Term


def objective_terms(run: RunFile) -> tuple[Term, ...]:
    """The losses that preference training adds up, with all their arguments. Raises UserError for a mistake in them."""
    from raydpo.objective.registry import resolve

    settings = run.train.objective
    return resolve(settings.loss_type, settings.loss_weights, **settings.arguments)


def preference_objective(run: RunFile) -> Objective:
    """What preference training minimises."""
    from raydpo.objective.registry import make_objective

    return replace(make_objective(objective_terms(run)), observes=tuple(run.train.metrics))


def needs_others(run: RunFile) -> bool:
    """Whether preference training reads a completion of another prompt in every row: then prepare puts one there."""
    return MISMATCHED in preference_objective(run).needs


def needs_reference(run: RunFile) -> bool:
    """Whether preference training reads the reference's log-probs: then they are scored, stored and checked first."""
    from raydpo.objective.contract import REF_LOGPS

    return REF_LOGPS in preference_objective(run).needs
