"""The run file's preference loss. The losses are looked up only when asked for: that loads torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from raydpo.config.schema import Train

if TYPE_CHECKING:
    from raydpo.objective.contract import Objective
    from raydpo.objective.registry import Term


def objective_terms(train: Train) -> tuple[Term, ...]:
    """The losses that preference training adds up, with all their arguments. Raises UserError for a mistake in them."""
    from raydpo.objective.registry import resolve

    settings = train.objective
    return resolve(settings.loss_type, settings.loss_weights, **settings.arguments)


def preference_objective(train: Train) -> Objective:
    """What preference training minimises."""
    from raydpo.objective.registry import make_objective

    return replace(make_objective(objective_terms(train)), observes=tuple(train.metrics))


def needs_reference(train: Train) -> bool:
    """Whether preference training reads the reference's log-probs: then they are scored, stored and checked first."""
    from raydpo.objective.contract import REF_LOGPS

    return REF_LOGPS in preference_objective(train).needs
