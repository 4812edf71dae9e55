"""Packing: rows of one prompt and its completions laid end to end, without padding, each prompt once.

Legend: B rows, C completions of all rows, T packed tokens, M completion positions. Rows may have different numbers of
completions.

Layout of one row, with prompt p and completions c, r:

    input_ids     p0 p1 p2 | c0 c1 | r0 r1 r2
    position_ids  0  1  2  | 3  4  | 3  4  5        every completion continues the prompt
    bounds        (0, 3, 5, 8)                      prompt start, completion starts, end

A completion's first token is predicted by the last prompt token, which is therefore a source once per completion:

    target        c0 c1 r0 r1 r2
    source        2  3  2  5  6                     packed position whose hidden state predicts the target
    owner         0  0  1  1  1                     the completion, counted over all rows
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

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
    completion_row: Ints  # [C], the row of each completion

    @property
    def num_rows(self) -> int:
        """The number of rows, B."""
        return len(self.bounds)

    @property
    def lengths(self) -> Ints:
        """The number of tokens of each completion, [C]."""
        return np.bincount(self.owner, minlength=len(self.completion_row))


def pack_rows(rows: Sequence[TokenRow]) -> Pack:
    """Lay rows end to end. Every row has a completion, and no prompt or completion is empty."""
    completions = [completion for row in rows for completion in row.completions]
    lengths = [len(completion) for completion in completions]
    pieces: list[Sequence[int]] = []
    positions: list[Ints] = []
    source: list[Ints] = []
    bounds: list[tuple[int, ...]] = []
    end = 0
    for row in rows:
        assert row.prompt_ids and row.completions and all(row.completions), "ingest guarantees this"
        parts = [row.prompt_ids, *row.completions]
        marks = list(accumulate(map(len, parts), initial=end))
        prompt_start, prompt_end = marks[:2]
        end = marks[-1]
        pieces += parts
        bounds.append(tuple(marks))
        positions.append(np.arange(prompt_end - prompt_start))
        for start, stop in pairwise(marks[1:]):
            # Positions begin anew behind the prompt: a completion does not know that others stand before it.
            positions.append(np.arange(stop - start) + prompt_end - prompt_start)
            # A token is predicted where the one before it stands; a completion's first, at the end of the prompt.
            source.append(np.concatenate(([prompt_end - 1], np.arange(start, stop - 1))))
    return Pack(
        input_ids=np.concatenate([np.asarray(piece, dtype=np.int64) for piece in pieces]),
        position_ids=np.concatenate(positions),
        bounds=tuple(bounds),
        source=np.concatenate(source),
        target=np.concatenate([np.asarray(completion, dtype=np.int64) for completion in completions]),
        owner=np.repeat(np.arange(len(completions)), lengths),
        completion_row=np.repeat(np.arange(len(rows)), [len(row.completions) for row in rows]),
    )
