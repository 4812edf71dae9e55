"""What an objective sees and what it declares.

Legend: B rows, C completions of all rows, P pairs, M completion tokens. A row is a prompt and n >= 1 completions; n may
differ from row to row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

REF_LOGPS = "ref_logps"
"""The column of the reference's log π(y|x): sums over tokens, in nats."""

RANK = "rank"
"""The column of a completion's place in its row: 0 is the best, and equal ranks are ties."""

MARGIN = "margin"
"""The column of which a pair's difference is how much better one completion is, in the units of rewards."""
LABEL = "label"
"""The column of what an unpaired completion is: wanted or not."""

MISMATCHED = "mismatched"
"""The column of what a completion is there for: true for one that belongs to another prompt.

KTO estimates the KL from such completions. They are scored as all others are, and are in no pair and no loss.
"""

COLUMNS: Mapping[str, torch.dtype] = MappingProxyType(
    {
        REF_LOGPS: torch.float32,
        RANK: torch.int64,
        LABEL: torch.bool,
        MISMATCHED: torch.bool,
        "score": torch.float32,
        MARGIN: torch.float32,
    }
)
"""What may be known of every completion beside its tokens, and the dtype in which it is kept."""

REF_TOKEN_LOGPS = "ref_token_logps"
"""The column of the reference's log-prob of every completion token, in nats."""

LOG_SUM_SQ_PROBS = "log_sum_sq_probs"
"""The column of log Σ π(v|x, y<t)² over the vocabulary at every completion token: what a draw's log-prob is at most on
average. The head finds it on its way over the logits, where an objective asks for it."""

TOKEN_COLUMNS: Mapping[str, torch.dtype] = MappingProxyType({REF_TOKEN_LOGPS: torch.float32})
"""What the data may bring of every completion token, and the dtype in which it is kept."""

TokenMetric = Literal["entropy", "mean_token_accuracy", "logits"]
"""What costs a look at every logit, and is told on request; see raydpo.objective.token_metrics."""

Unit = Literal["pairs", "completions", "rows", "tokens"]
"""What a mean over a global batch is taken over. Completions of other prompts do not count."""


class Pairs(NamedTuple):
    """Every two completions of a row of which one is better, in the order of the rows."""

    better: Tensor  # [P], int64, index into completions
    worse: Tensor  # [P], int64, index into completions
    row: Tensor  # [P], int64, ascending


class Rows:
    """B whole rows and what is known of their completions, whatever a model says of them."""

    row: Tensor  # [C], int64, ascending from 0 to B - 1
    num_rows: int  # B
    columns: Mapping[str, Tensor]  # by name, [C] each, see COLUMNS

    def pairs(self) -> Pairs:
        """All pairs of the rows: the better completion has the smaller rank, and a tie is no pair.

        Without a column of ranks the completions of a row stand best first. Completions of other prompts are left out.
        """
        first, second = _every_two_of_a_row(self.row, self.num_rows)
        if MISMATCHED in self.columns:
            own = ~self.columns[MISMATCHED]
            both = own[first] & own[second]
            first = first[both]
            second = second[both]
        if RANK not in self.columns:
            return Pairs(first, second, self.row[first])
        rank = self.columns[RANK]
        better = torch.where(rank[first] < rank[second], first, second)
        worse = first + second - better
        differ = rank[first] != rank[second]
        return Pairs(better[differ], worse[differ], self.row[first][differ])

    def of_pairs(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Of values by completion, [C, ...]: those of the better and of the worse one of every pair, [P, ...] each."""
        pairs = self.pairs()
        return values[pairs.better], values[pairs.worse]

    def sum_by_row(self, values: Tensor, row: Tensor) -> Tensor:
        """Sums of `values` [K] over each row, [B]; `row` [K] is the row of each value."""
        return values.new_zeros(self.num_rows).index_add(0, row, values)

    def mean(self, values: Tensor, row: Tensor) -> Mean:
        """What the mean of `values` [K] over a global batch is made of; `row` [K] is the row of each value."""
        return Mean(self.sum_by_row(values, row), self.sum_by_row(torch.ones_like(values), row))


@dataclass(frozen=True)
class ScoredRows(Rows):
    """B whole rows with the policy's log-prob of each of their completion tokens, in nats.

    A row of two completions with 1 and 2 tokens, and a row of one completion with 3:

        token_logps   -1 -2 -3 -4 -5 -6
        owner          0  1  1  2  2  2        completion of each token
        row            0  0  1                 row of each completion
        logps         -1 -5 -15
        lengths        1  2  3
    """

    token_logps: Tensor  # [M]
    owner: Tensor  # [M], int64, ascending from 0 to C - 1
    row: Tensor  # [C], int64, ascending from 0 to B - 1
    num_rows: int  # B
    columns: Mapping[str, Tensor]  # by name, [C] each, see COLUMNS
    token_columns: Mapping[str, Tensor] = field(default_factory=dict)  # by name, [M] each

    def logps(self) -> Tensor:
        """log π(y|x) of every completion, [C]: the sums over its tokens."""
        return self.sum_by_completion(self.token_logps)

    def sum_by_completion(self, values: Tensor) -> Tensor:
        """Sums of one value a token, [M], over each completion, [C]."""
        return values.new_zeros(len(self.row)).index_add(0, self.owner, values)

    def table(self, values: Tensor) -> Tensor:
        """One value a token, [M], laid out by completion and place, [C, longest completion]; 0 where no token is."""
        counts = torch.bincount(self.owner, minlength=len(self.row))
        begins = counts.cumsum(0) - counts
        place = torch.arange(len(self.owner), device=self.owner.device) - begins[self.owner]
        empty = values.new_zeros(len(self.row), int(counts.max()))
        return empty.index_put((self.owner, place), values)

    def lengths(self) -> Tensor:
        """Tokens of every completion, [C], in the dtype of the log-probs."""
        return torch.bincount(self.owner, minlength=len(self.row)).to(self.token_logps.dtype)

    def average_logps(self) -> Tensor:
        """Mean log-prob of a completion's tokens, [C]."""
        return self.logps() / self.lengths()

    def log_ratios(self) -> Tensor:
        """log π(y|x) / π_ref(y|x) of every completion, [C]."""
        return self.logps() - self.columns[REF_LOGPS]

    def average_log_ratios(self) -> Tensor:
        """Mean log-ratio of a completion's tokens, [C]."""
        return self.log_ratios() / self.lengths()


@dataclass(frozen=True)
class RatedRows(Rows):
    """B whole rows with the rewards of their completions, one from each of K heads."""

    rewards: Tensor  # [C, K]
    row: Tensor  # [C], int64, ascending from 0 to B - 1
    num_rows: int  # B
    columns: Mapping[str, Tensor]  # by name, [C] each, see COLUMNS

    def mean_rewards(self) -> Tensor:
        """The mean over the heads, [C]: the reward of the model."""
        return self.rewards.mean(dim=1)


@dataclass(frozen=True)
class Mean:
    """What a mean over a global batch is made of: the sums over each row, and how many values they add up."""

    total: Tensor  # [B]
    count: Tensor  # [B]


def _every_two_of_a_row(row: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Of every two completions of a row the first and the second, [P] each.

    Rows of 3 and 2 completions:

        row       0 0 0 1 1
        behind    2 1 0 1 0      completions of the row that stand behind this one
        first     0 0 1 3
        second    1 2 2 4
    """
    number = torch.arange(len(row), device=row.device)
    ends = torch.bincount(row, minlength=num_rows).cumsum(0)
    behind = ends[row] - number - 1
    first = number.repeat_interleave(behind)
    # The place of a pair among those with the same first completion.
    begins = behind.cumsum(0) - behind
    place = torch.arange(len(first), device=row.device) - begins[first]
    return first, first + 1 + place


RowLoss = Callable[[ScoredRows], Tensor]
"""One value a row, [B], differentiable in token_logps: the sum over the row's pairs, completions or tokens."""

RowMetrics = Callable[[ScoredRows], dict[str, Mean]]
"""Means by name, over pairs, completions or whatever a metric is of."""

Values = Callable[[ScoredRows], Tensor]
"""One value a completion, [C]."""

RewardLoss = Callable[[RatedRows], Tensor]
"""One value a row, [B], differentiable in the rewards: the sum over the row's pairs."""

Seen = TypeVar("Seen", bound=Rows)


@dataclass(frozen=True)
class Minimised(Generic[Seen]):
    """What is minimised, what to report beside it, and what it asks of the rows; Seen is what it is given of them.

    Rows give sums, and the mean is taken over the units of the whole global batch: so a ranked row of four completions
    counts as its six pairs do.

    A loss is local where the value of a row rests on that row alone: the head makes the gradient while it has the
    logits of the row at hand. A coupled one is given all rows of the global batch at once, as its metrics are, and
    takes a second pass over the model (raydpo.objective.coupling).
    """

    loss: Callable[[Seen], Tensor]
    metrics: Callable[[Seen], dict[str, Mean]]
    mean_over: Unit  # what the loss of the global batch is the mean over
    compares: Callable[[Seen], Tensor]  # the larger, the more the model prefers a completion to the others of its row
    needs: frozenset[str] = frozenset()  # columns that the data must have
    statistics: frozenset[str] = frozenset()  # columns of tokens that the head must find: LOG_SUM_SQ_PROBS or none
    coupled: bool = False  # whether the value of a row rests on the other rows of the global batch
    observes: tuple[TokenMetric, ...] = ()  # to be told beside the log-probs


Objective = Minimised[ScoredRows]
"""Of a policy, which gives log-probs."""

RewardObjective = Minimised[RatedRows]
"""Of a reward model, which gives rewards."""

AnyObjective = Objective | RewardObjective
"""Of whatever is trained: the model under training and its objective fit each other."""
