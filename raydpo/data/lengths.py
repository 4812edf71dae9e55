"""How long the rows of token shards are. The tables are those of raydpo.data.shards, of any kind of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raydpo.data.limits import Extent
from raydpo.data.rows import Kind

Ints = NDArray[np.int64]
QUANTILES = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


def length_quantiles(tables: Sequence[pa.Table], kind: Kind) -> dict[str, dict[str, int]]:
    """Quantiles of the lengths in tokens over some shards: of prompts and of completions, those of pairs apart.

    Nothing for a data set without rows.
    """
    if not any(table.num_rows for table in tables):
        return {}
    completions = np.concatenate([completion_lengths(table)[is_own(table)] for table in tables])
    lengths = {"prompt": np.concatenate([prompt_lengths(table) for table in tables])}
    if kind == "pair":
        # The completions of a pair stand one behind the other, the chosen one first.
        lengths |= {"chosen": completions[0::2], "rejected": completions[1::2]}
    else:
        lengths["completion"] = completions
    return {name: _quantiles(values) for name, values in lengths.items()}


def _quantiles(lengths: Ints) -> dict[str, int]:
    # A length that occurs, and none between two.
    values = np.quantile(lengths, list(QUANTILES.values()), method="higher")
    return dict(zip(QUANTILES, map(int, values), strict=True))


def extent_of(tables: Sequence[pa.Table]) -> Extent:
    """How far the rows of some shards reach."""
    found = [Extent()]
    for table in filter(len, tables):
        prompts = prompt_lengths(table)
        lengths = completion_lengths(table)
        begins = first_completions(table)  # every row has a completion, or reduceat would borrow the next row's
        largest_ids = [pc.max(pc.list_flatten(table["prompt_ids"])), pc.max(token_ids(table))]
        found.append(
            Extent(
                longest=int((prompts + np.maximum.reduceat(lengths, begins)).max()),
                packed=int((prompts + np.add.reduceat(lengths, begins)).max()),
                largest_id=max(largest.as_py() for largest in largest_ids),
            )
        )
    return Extent(*(max(getattr(each, f.name) for each in found) for f in fields(Extent)))


def is_own(table: pa.Table) -> NDArray[np.bool_]:
    """Of every completion of a shard, whether it belongs to its row's prompt, see raydpo.data.mismatched."""
    if "mismatched" not in table.column_names:
        return np.ones(int(completions_per_row(table).sum()), dtype=bool)
    own: NDArray[np.bool_] = ~pc.list_flatten(table["mismatched"]).to_numpy()
    return own


def own_completions(table: pa.Table) -> Ints:
    """How many completions of every row of a shard belong to its prompt."""
    own: Ints = np.add.reduceat(is_own(table).astype(np.int64), first_completions(table))
    return own


def prompt_lengths(table: pa.Table) -> Ints:
    """Tokens of the prompt of every row of a shard."""
    return _lengths(table["prompt_ids"])


def completions_per_row(table: pa.Table) -> Ints:
    """Completions of every row of a shard, each 1 or more."""
    return _lengths(table["completions"])


def first_completions(table: pa.Table) -> Ints:
    """The number of every row's first completion among all completions of a shard."""
    counts = completions_per_row(table)
    return np.cumsum(counts) - counts


def completion_lengths(table: pa.Table) -> Ints:
    """Tokens of every completion of a shard, row after row."""
    return _lengths(pc.list_flatten(table["completions"]))


def token_ids(table: pa.Table) -> pa.ChunkedArray:
    """The ids of all completions of a shard, one after the other."""
    return pc.list_flatten(pc.list_flatten(table["completions"]))


def _lengths(lists: pa.ChunkedArray) -> Ints:
    lengths: Ints = pc.list_value_length(lists).to_numpy().astype(np.int64)
    return lengths
