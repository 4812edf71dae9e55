"""Row ids as arrays: 16 bytes a row, found by binary search.

A store may hold many times the rows of one dataset, so it is the question that is sorted and held in memory, once;
the shards pass by one after another. That is 40 bytes a row asked, and about 100 while they are sorted, as measured
with two million rows, whatever the size of the store. Python's dicts of bytes take 300 bytes a row, and would have to
hold the rows of the store.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Ids = NDArray[np.bytes_]  # dtype S16: compares as unsigned bytes, and all are as long, so padding never matters
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


def as_numpy(row_ids: pa.Array | pa.ChunkedArray) -> Ids:
    """Row ids, shape [N], without a copy where they lie in one piece."""
    if isinstance(row_ids, pa.ChunkedArray):
        row_ids = row_ids.combine_chunks()
    assert row_ids.type == pa.binary(16) and not row_ids.null_count
    buffer = row_ids.buffers()[1] or b""
    return np.frombuffer(buffer, dtype="S16")[row_ids.offset : row_ids.offset + len(row_ids)]


class Asked:
    """The rows of a question, each once and sorted."""

    def __init__(self, row_ids: pa.Array | pa.ChunkedArray) -> None:
        self.ids: Ids  # [U], sorted
        self.first: Ints  # [U], where each occurs first in the question
        self.place: Ints  # [N], where each row of the question stands in ids
        self.ids, self.first, self.place = np.unique(as_numpy(row_ids), return_index=True, return_inverse=True)

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, ids: Ids) -> tuple[Ints, Bools]:
        """For each of the ids its position in self.ids, and whether it is there at all; else the position is void."""
        if not len(self):
            return np.zeros(len(ids), np.int64), np.zeros(len(ids), np.bool_)
        at = np.minimum(np.searchsorted(self.ids, ids), len(self) - 1)
        return at, self.ids[at] == ids


def first_occurrences(parts: Sequence[Ids]) -> list[Bools]:
    """For each part, which of its ids occur neither earlier in it nor in a part before it."""
    new = np.zeros(sum(map(len, parts)), np.bool_)
    if len(new):
        new[np.unique(np.concatenate(parts), return_index=True)[1]] = True
    return np.split(new, np.cumsum([len(part) for part in parts])[:-1]) if parts else []
