"""What an objective sees and what it declares.

Legend: B rows, n completions per row, M completion tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

REF_LOGPS = "ref_logps"
"""The column of the reference's log π(y|x): sums over tokens, in nats."""


@dataclass(frozen=True)
class ScoredRows:
    """B whole rows with the policy's log-prob of each of their completion tokens, in nats.

    Two rows of two completions with 1 and 2, 2 and 1 tokens:

        token_logps   -1 -2 -3 -4 -5 -6
        owner          0  1  1  2  2  3        row * n + completion
        logps         [[-1, -5], [-9, -6]]
        lengths       [[1, 2], [2, 1]]
    """

    token_logps: Tensor  # [M]
    owner: Tensor  # [M], int64
    num_rows: int  # B
    completions_per_row: int  # n
    columns: Mapping[str, Tensor]  # by name, [B, n] each: what is known of every completion beside its tokens

    def logps(self) -> Tensor:
        """log π(y|x) of every completion, [B, n]: the sums over its tokens."""
        sums = self.token_logps.new_zeros(self.num_rows * self.completions_per_row)
        return sums.index_add(0, self.owner, self.token_logps).view(self.num_rows, self.completions_per_row)

    def lengths(self) -> Tensor:
        """Tokens of every completion, [B, n], in the dtype of the log-probs."""
        counts = torch.bincount(self.owner, minlength=self.num_rows * self.completions_per_row)
        return counts.to(self.token_logps.dtype).view(self.num_rows, self.completions_per_row)

    def average_logps(self) -> Tensor:
        """Mean log-prob of a completion's tokens, [B, n]."""
        return self.logps() / self.lengths()

    def log_ratios(self) -> Tensor:
        """log π(y|x) / π_ref(y|x) of every completion, [B, n]."""
        return self.logps() - self.columns[REF_LOGPS]

    def average_log_ratios(self) -> Tensor:
        """Mean log-ratio of a completion's tokens, [B, n]."""
        return self.log_ratios() / self.lengths()


RowLoss = Callable[[ScoredRows], Tensor]
"""One value a row, [B], differentiable in token_logps."""

RowMetrics = Callable[[ScoredRows], dict[str, Tensor]]
"""Values by name, one a row, [B] each."""

Values = Callable[[ScoredRows], Tensor]
"""One value a completion, [B, n]."""


@dataclass(frozen=True)
class Objective:
    """What is minimised, what to report beside it, and what it asks of the rows.

    A loss is local: the value of a row rests on that row alone, so the head makes the gradient while it has the logits
    of the row at hand. A loss that couples the rows of a global batch would say so here, and take a second pass.
    """

    loss: RowLoss
    metrics: RowMetrics
    mean_over: Literal["rows", "tokens"]  # of the global batch: its rows, or its completion tokens
    compares: Values  # the larger, the more the policy prefers a completion to the others of its row
    needs: frozenset[str] = frozenset()  # columns that the rows must have
