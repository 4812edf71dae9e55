"""The pairs of a row: two of its completions of which one is better."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raydpo.data.lengths import completions_per_row, own_completions
from raydpo.data.rows import Kind

Ints = NDArray[np.int64]


def count_pairs(table: pa.Table, kind: Kind) -> Ints:
    """Pairs of every row of a token shard; rows that nothing compares have none.

    A ranked row with the ranks 0, 1, 1, 2 has five: two completions of equal rank are no pair.
    """
    own = own_completions(table)
    if kind in ("sft", "unpaired"):
        return np.zeros_like(own)
    every_two = own * (own - 1) // 2
    if "rank" not in table.column_names:
        return every_two
    # A completion of another prompt has a rank of its own, so it is in no tie.
    return every_two - _ties(pc.list_flatten(table["rank"]).to_numpy(), completions_per_row(table))


def _ties(ranks: NDArray[np.int32], counts: Ints) -> Ints:
    """Every row's unordered pairs of completions with equal ranks."""
    row = np.repeat(np.arange(len(counts)), counts)
    number_of_ranks = int(counts.max())  # ranks are dense: below the number of a row's completions
    groups, sizes = np.unique(row * number_of_ranks + ranks, return_counts=True)
    ties = np.bincount(groups // number_of_ranks, weights=sizes * (sizes - 1) // 2, minlength=len(counts))
    return ties.astype(np.int64)
