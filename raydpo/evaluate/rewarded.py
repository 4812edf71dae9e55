"""Held-out rows and their rewards, as the pairs that a reward model is measured on.

Legend: C completions of all rows, K heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from raydpo.data.tokens import TokenRow
from raydpo.evaluate.reward_model import RewardedPairs
from raydpo.objective.contract import COLUMNS, RatedRows


def rewarded_pairs(rows: Sequence[TokenRow], rewards: Tensor, sources: Sequence[str]) -> RewardedPairs:
    """All pairs of the rows, given the rewards of their completions by every head, [C, K], and every row's source."""
    columns = {
        name: torch.tensor(list(chain.from_iterable(row.columns[name] for row in rows)), dtype=COLUMNS[name])
        for name in rows[0].columns
    }
    counts = torch.tensor([len(row.completions) for row in rows])
    rated = RatedRows(rewards.double(), torch.arange(len(rows)).repeat_interleave(counts), len(rows), columns)
    lengths = torch.tensor([float(len(completion)) for row in rows for completion in row.completions])
    better, worse = (each.numpy() for each in rated.of_pairs(rated.rewards))
    better_tokens, worse_tokens = (each.double().numpy() for each in rated.of_pairs(lengths))
    row_of_pair = rated.pairs().row.tolist()
    return RewardedPairs(
        prompts=[tuple(rows[row].prompt_ids) for row in row_of_pair],
        better=better,
        worse=worse,
        better_tokens=better_tokens,
        worse_tokens=worse_tokens,
        sources=[sources[row] for row in row_of_pair],
    )
