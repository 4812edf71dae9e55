"""The run file's losses: of preferences and of the reward model. Looked up only when asked for: that loads torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from raydpo.config.schema import Reward, Train
from raydpo.data.mismatched import MISMATCHED
from raydpo.errors import UserError

if TYPE_CHECKING:
    from raydpo.objective.contract import Objective, RewardObjective
    from raydpo.objective.registry import Term


def objective_terms(train: Train) -> tuple[Term, ...]:
    """The losses that preference training adds up, with all their arguments. Raises UserError for a mistake in them."""
    from raydpo.objective.registry import resolve

    settings = train.objective
    terms = resolve(settings.loss_type, settings.loss_weights, **settings.arguments)
    _check_not_alone(terms, train.global_batch_size)
    return terms


def _check_not_alone(terms: Sequence[Term], global_batch_size: int) -> None:
    """A row that is a batch of its own would be compared with itself: nothing to rank, and no baseline but its own."""
    from raydpo.objective.registry import LOSSES

    coupled = [term.loss_type for term in terms if LOSSES[term.loss_type].coupled]
    if coupled and global_batch_size < 2:
        raise UserError(
            f"train.global_batch_size = {global_batch_size}: {', '.join(coupled)} compares the rows of a global batch "
            "with each other; set it to 2 or more."
        )


def check_tokens_are_kept(train: Train, *, kept: bool) -> None:
    """Raise UserError where a loss reads the reference's log-probs token by token, and only sums reach it."""
    from raydpo.objective.contract import REF_TOKEN_LOGPS

    if not any(REF_TOKEN_LOGPS in term.needs for term in objective_terms(train)):
        return
    if train.reference == "overlap":
        raise UserError(
            "train.objective.ld_alpha reads the reference's log-prob of every token, and train.reference=overlap "
            "brings sums only; set train.reference: precompute."
        )
    if not kept:
        raise UserError(
            "train.objective.ld_alpha reads the reference's log-prob of every token, and "
            "reference.keep_token_logps=false keeps sums only; set it to true."
        )


def preference_objective(train: Train) -> Objective:
    """What preference training minimises."""
    from raydpo.objective.registry import make_objective

    return replace(make_objective(objective_terms(train)), observes=tuple(train.metrics))


def needs_others(train: Train) -> bool:
    """Whether preference training reads a completion of another prompt in every row: then prepare puts one there."""
    return MISMATCHED in preference_objective(train).needs


def needs_reference(train: Train) -> bool:
    """Whether preference training reads the reference's log-probs: then they are scored, stored and checked first."""
    from raydpo.objective.contract import REF_LOGPS

    return REF_LOGPS in preference_objective(train).needs


def reward_terms(reward: Reward) -> dict[str, Any]:
    """What the run file says of a reward model and its loss: everything but its training."""
    return {
        "heads": reward.heads,
        "label_smoothing": reward.label_smoothing,
        "center_rewards_coefficient": reward.center_rewards_coefficient,
        "use_margin": reward.use_margin,
    }


def reward_model_objective(reward: Reward) -> RewardObjective:
    """What the training of a reward model minimises."""
    from raydpo.objective.reward_model import reward_objective

    return reward_objective(**reward_terms(reward))
