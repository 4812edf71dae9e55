"""Packing: rows of one prompt and its completions laid end to end, without padding, each prompt once.

Legend: B rows, n completions per row, T packed tokens, M completion positions.

Layout of one row, with prompt p and completions c, r:

    input_ids     p0 p1 p2 | c0 c1 | r0 r1 r2
    position_ids  0  1  2  | 3  4  | 3  4  5        every completion continues the prompt
    bounds        (0, 3, 5, 8)                      prompt start, completion starts, end

A completion's first token is predicted by the last prompt token, which is therefore a source once per completion:

    target        c0 c1 r0 r1 r2
    source        2  3  2  5  6                     packed position whose hidden state predicts the target
    owner         0  0  1  1  1                     row * n + completion
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raydpo.data.tokens import TokenRow

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Pack:
    """B rows in one flat sequence; see the module's worked example."""

    input_ids: Ints  # [T]
    position_ids: Ints  # [T]
    bounds: tuple[tuple[int, ...], ...]  # B times (prompt start, start of each completion, end)
    source: Ints  # [M]
    target: Ints  # [M]
    owner: Ints  # [M]
    completions_per_row: int  # n

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.bounds)

    @property
    def token_counts(self) -> Ints:
        """Completion tokens, shape [B, n]."""
        counts = np.bincount(self.owner, minlength=self.num_rows * self.completions_per_row)
        return counts.reshape(self.num_rows, self.completions_per_row)


def pack_rows(rows: Sequence[TokenRow]) -> Pack:
    """Lay rows end to end. All rows have the same number of completions; no prompt or completion is empty."""
    per_row = len(rows[0].completions)
    pieces: list[Sequence[int]] = []
    positions, source, target, owner = [], [], [], []
    bounds: list[tuple[int, ...]] = []
    start = 0
    for i, row in enumerate(rows):
        assert row.prompt_ids and len(row.completions) == per_row and all(row.completions), "ingest guarantees this"
        prompt_end = start + len(row.prompt_ids)
        pieces.append(row.prompt_ids)
        positions.append(np.arange(len(row.prompt_ids)))
        marks, cursor = [start], prompt_end
        for j, completion in enumerate(row.completions):
            length = len(completion)
            pieces.append(completion)
            positions.append(np.arange(len(row.prompt_ids), len(row.prompt_ids) + length))
            source.append(np.concatenate(([prompt_end - 1], np.arange(cursor, cursor + length - 1))))
            target.append(np.asarray(completion, dtype=np.int64))
            owner.append(np.full(length, i * per_row + j))
            marks.append(cursor)
            cursor += length
        bounds.append((*marks, cursor))
        start = cursor
    return Pack(
        input_ids=np.concatenate([np.asarray(p, dtype=np.int64) for p in pieces]),
        position_ids=np.concatenate(positions),
        bounds=tuple(bounds),
        source=np.concatenate(source),
        target=np.concatenate(target),
        owner=np.concatenate(owner),
        completions_per_row=per_row,
    )
