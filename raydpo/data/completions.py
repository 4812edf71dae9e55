"""The completions of a token shard one by one, whatever rows they stand in: their names, and some of them alone.

Legend: N rows of a table, C completions of all rows. The tables are those of raydpo.data.shards, of any kind of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raydpo.data.lengths import completions_per_row
from raydpo.data.shards import to_rows
from raydpo.data.tokens import TokenRow, row_digest

Ints = NDArray[np.int64]


def completion_begins(table: pa.Table) -> Ints:
    """Where the completions of each row begin among all of the table, shape [N + 1]; the last is C."""
    return np.concatenate([[0], np.cumsum(completions_per_row(table))])


def completion_ids(table: pa.Table) -> pa.FixedSizeBinaryArray:
    """The completion_id of every completion, shape [C]. Tokens are hashed where they lie: 2 µs a completion."""
    prompts = _Pieces.of(table["prompt_ids"])
    completions = _Pieces.of(pc.list_flatten(table["completions"]))
    row_of = np.repeat(np.arange(table.num_rows), completions_per_row(table))
    digests = bytearray()
    for completion, row in enumerate(row_of.tolist()):
        digests += row_digest(prompts[row], completions[completion])
    return _ids(digests)


def pair_ids(table: pa.Table, rows: Ints) -> tuple[pa.FixedSizeBinaryArray, Ints]:
    """For any two completions of some rows, in either order: the row_id that a pair of them has, and which they are.

    Shapes [Q] and [Q, 2]; completions are counted over the rows of the table.
    """
    prompts = _Pieces.of(table["prompt_ids"])
    completions = _Pieces.of(pc.list_flatten(table["completions"]))
    begins = completion_begins(table).tolist()
    digests = bytearray()
    which: list[tuple[int, int]] = []
    for row in rows.tolist():
        for better, worse in permutations(range(begins[row], begins[row + 1]), 2):
            digests += row_digest(prompts[row], completions[better], completions[worse])
            which.append((better, worse))
    return _ids(digests), np.asarray(which, dtype=np.int64).reshape(-1, 2)


def rows_of(table: pa.Table, completions: NDArray[np.integer[Any]]) -> list[TokenRow]:
    """The rows of some completions, each row with those that are asked for and no others, and without columns.

    completions: in ascending order, counted over the rows of the table. No other row's tokens are read.
    """
    begins = completion_begins(table)
    rows = np.searchsorted(begins, completions, side="right") - 1
    members, firsts = np.unique(rows, return_index=True)
    wanted = np.split(completions - begins[rows], firsts)[1:]
    return [
        TokenRow(row.row_id, row.prompt_ids, tuple(row.completions[j] for j in of_row))
        for row, of_row in zip(to_rows(table.take(pa.array(members))), wanted, strict=True)
    ]


def _ids(digests: bytearray) -> pa.FixedSizeBinaryArray:
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(digests) // 16, [None, pa.py_buffer(bytes(digests))])


@dataclass(frozen=True)
class _Pieces:
    """Lists of ids as bytes, without a copy."""

    content: memoryview
    ends: list[int]  # in bytes

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> _Pieces:
        lists = column.combine_chunks()
        ids = lists.values.to_numpy().astype("<i4", copy=False)
        return cls(memoryview(ids).cast("B"), (4 * lists.offsets.to_numpy().astype(np.int64)).tolist())

    def __getitem__(self, number: int) -> memoryview:
        return self.content[self.ends[number] : self.ends[number + 1]]
