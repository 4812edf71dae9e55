"""Likelihood losses. Legend: B rows, P pairs."""

from __future__ import annotations

from torch import Tensor

from raydpo.objective.contract import Objective, ScoredRows


def fine_tuning() -> Objective:
    """The sft stage, rows of one completion: the mean negative log-likelihood of a completion token.

    Every token of the global batch weighs the same, whatever the length of its row.
    """
    return Objective(
        loss=lambda rows: -rows.sum_by_row(rows.logps(), rows.row),
        metrics=lambda rows: {"logps/completion": rows.mean(rows.logps(), rows.row)},
        mean_over="tokens",
        compares=ScoredRows.logps,
    )


def chosen_nll(rows: ScoredRows) -> Tensor:
    """Negative log-likelihood of the chosen completion, averaged over its tokens, [P].

    −1/|y_w| log π(y_w|x), the term that Iterative RPO (Pang et al. 2024) and ORPO add to a preference loss. TRL takes
    the mean over all chosen tokens of a micro-batch instead, so that long completions weigh more and the gradient
    depends on the micro-batches.
    """
    chosen, _ = rows.of_pairs(rows.average_logps())
    return -chosen


def preferred_ft(rows: ScoredRows) -> Tensor:
    """Preferred-FT, [P]: −log π(y_w|x), summed over the tokens (Rafailov et al. 2023, section 6). Not in TRL."""
    chosen, _ = rows.of_pairs(rows.logps())
    return -chosen


def unlikelihood(rows: ScoredRows, *, unlikelihood_alpha: float = 1.0) -> Tensor:
    """The unlikelihood baseline of the DPO paper, [P]: −log π(y_w|x) + α log π(y_l|x). Not in TRL.

    Rafailov et al. 2023, section 6, with α in [0, 1]; α = 0 is Preferred-FT. It has no lower bound and ruins a model
    that trains on it for long, which is what the paper shows with it.
    """
    chosen, rejected = rows.of_pairs(rows.logps())
    return unlikelihood_alpha * rejected - chosen
