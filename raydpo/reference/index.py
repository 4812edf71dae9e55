"""Ids as arrays: 16 bytes each, found by binary search.

A store may hold many times the completions of one dataset, so it is the question that is sorted and held in memory,
once; the shards pass by one after another. That is 40 bytes an id asked, and about 100 while they are sorted, as
measured with two million ids, whatever the size of the store. Python's dicts of bytes take 300 bytes an id, and would
have to hold those of the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Ids = NDArray[np.bytes_]  # dtype S16: compares as unsigned bytes, and all are as long, so padding never matters
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


def as_numpy(ids: pa.Array | pa.ChunkedArray) -> Ids:
    """Ids, shape [N], without a copy where they lie in one piece."""
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    assert ids.type == pa.binary(16) and not ids.null_count
    buffer = ids.buffers()[1] or b""
    return np.frombuffer(buffer, dtype="S16")[ids.offset : ids.offset + len(ids)]


def as_arrow(ids: Ids) -> pa.FixedSizeBinaryArray:
    """Undoes as_numpy."""
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(ids), [None, pa.py_buffer(ids.tobytes())])


class Asked:
    """The ids of a question, each once and sorted."""

    def __init__(self, ids: pa.Array | pa.ChunkedArray) -> None:
        self.ids: Ids  # [U], sorted
        self.first: Ints  # [U], where each occurs first in the question
        self.place: Ints  # [N], where each id of the question stands in self.ids
        self.ids, self.first, self.place = np.unique(as_numpy(ids), return_index=True, return_inverse=True)

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, ids: Ids) -> tuple[Ints, Bools]:
        """For each of the ids its position in self.ids, and whether it is there at all; else the position is void."""
        if not len(self):
            return np.zeros(len(ids), np.int64), np.zeros(len(ids), np.bool_)
        at = np.minimum(np.searchsorted(self.ids, ids), len(self) - 1)
        return at, self.ids[at] == ids

    def seen_in(self, parts: Iterable[Ids]) -> Bools:
        """Which of self.ids occur in any of the parts, shape [U]."""
        seen = np.zeros(len(self), np.bool_)
        for ids in parts:
            at, found = self.find(ids)
            seen[at[found]] = True
        return seen


def first_occurrences(parts: Sequence[Ids]) -> list[Bools]:
    """For each part, which of its ids occur neither earlier in it nor in a part before it."""
    new = np.zeros(sum(map(len, parts)), np.bool_)
    if len(new):
        new[np.unique(np.concatenate(parts), return_index=True)[1]] = True
    return np.split(new, np.cumsum([len(part) for part in parts])[:-1]) if parts else []
