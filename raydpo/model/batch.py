"""A pack on a device.

Legend: B rows, C completions of all rows, T packed tokens, M completion positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydpo.data.pack import Pack
from raydpo.objective.contract import RatedRows, ScoredRows

ALL = slice(0, None)
NO_COLUMNS: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True)
class Batch:
    """One packed forward pass. Index tensors are int64; see raydpo.data.pack for the layout."""

    input_ids: Tensor  # [1, T]
    position_ids: Tensor  # [1, T]
    bounds: tuple[tuple[int, ...], ...]
    source: Tensor  # [M]
    target: Tensor  # [M]
    owner: Tensor  # [M], the completion of each position
    completion_row: Tensor  # [C], the row of each completion
    token_counts: tuple[int, ...]  # completion tokens of each row, all its completions together
    columns: Mapping[str, Tensor] = field(default_factory=dict)  # [C] each, see raydpo.objective.contract
    token_columns: Mapping[str, Tensor] = field(default_factory=dict)  # [M] each

    @property
    def num_rows(self) -> int:
        """The number of rows, B."""
        return len(self.bounds)

    def scored(self, token_logps: Tensor, rows: slice = ALL, positions: slice = ALL) -> ScoredRows:
        """What an objective sees, from log-probs of completion tokens: of all rows, or of `rows` at `positions`."""
        completions = self._completions(rows)
        return ScoredRows(
            token_logps,
            owner=self.owner[positions] - completions.start,
            row=self.completion_row[completions] - rows.start,
            num_rows=len(self.bounds[rows]),
            columns={name: values[completions] for name, values in self.columns.items()},
            token_columns={name: values[positions] for name, values in self.token_columns.items()},
        )

    def rated(self, rewards: Tensor) -> RatedRows:
        """What the objective of a reward model sees, from the rewards [C, K] of all completions."""
        return RatedRows(rewards, row=self.completion_row, num_rows=self.num_rows, columns=self.columns)

    def last(self) -> Tensor:
        """The packed position of each completion's last token, [C]: the state there has read all of it."""
        ends = [end - 1 for _, _, *ends in self.bounds for end in ends]
        return torch.tensor(ends, device=self.input_ids.device)

    def _completions(self, rows: slice) -> slice:
        """The places of the completions of some rows among those of all rows."""
        counts = [len(bounds) - 2 for bounds in self.bounds]  # but the prompt's start and the end, bounds are starts
        first = list(accumulate(counts, initial=0))
        last_row = len(counts) if rows.stop is None else rows.stop
        return slice(first[rows.start], first[last_row])

    @classmethod
    def from_pack(
        cls,
        pack: Pack,
        columns: Mapping[str, Tensor] = NO_COLUMNS,
        token_columns: Mapping[str, Tensor] = NO_COLUMNS,
        *,
        device: torch.device | str = "cpu",
    ) -> Batch:
        """Move a pack, and what is known of its completions and of their tokens, to a device."""

        def move(array: NDArray[np.int64]) -> Tensor:
            return torch.from_numpy(array).to(device, non_blocking=True)

        tokens_by_row = np.bincount(pack.completion_row, weights=pack.lengths).astype(np.int64)
        return cls(
            input_ids=move(pack.input_ids)[None],
            position_ids=move(pack.position_ids)[None],
            bounds=pack.bounds,
            source=move(pack.source),
            target=move(pack.target),
            owner=move(pack.owner),
            completion_row=move(pack.completion_row),
            token_counts=tuple(tokens_by_row.tolist()),
            columns={name: values.to(device) for name, values in columns.items()},
            token_columns={name: values.to(device) for name, values in token_columns.items()},
        )
