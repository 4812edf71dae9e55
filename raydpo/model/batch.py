"""A pack on a device.

Legend: B rows, n completions per row, T packed tokens, M completion positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydpo.data.pack import Pack
from raydpo.objective.contract import REF_LOGPS, ScoredRows

ALL = slice(0, None)


@dataclass(frozen=True)
class Batch:
    """One packed forward pass. Index tensors are int64; see raydpo.data.pack for the layout."""

    input_ids: Tensor  # [1, T]
    position_ids: Tensor  # [1, T]
    bounds: tuple[tuple[int, ...], ...]
    source: Tensor  # [M]
    target: Tensor  # [M]
    owner: Tensor  # [M]
    completions_per_row: int
    token_counts: tuple[int, ...]  # completion tokens of each row, all completions together
    ref_logps: Tensor | None = None  # [B, n], float32, sums over tokens in nats

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.bounds)

    def scored(self, token_logps: Tensor, rows: slice = ALL, positions: slice = ALL) -> ScoredRows:
        """What an objective sees, from log-probs of completion tokens: of all rows, or of `rows` at `positions`."""
        return ScoredRows(
            token_logps,
            owner=self.owner[positions] - rows.start * self.completions_per_row,
            num_rows=len(self.bounds[rows]),
            completions_per_row=self.completions_per_row,
            columns={} if self.ref_logps is None else {REF_LOGPS: self.ref_logps[rows]},
        )

    @classmethod
    def from_pack(
        cls, pack: Pack, ref_logps: NDArray[np.float32] | None = None, *, device: torch.device | str = "cpu"
    ) -> Batch:
        """Move a pack, and the reference log-probs of its rows, to a device."""

        def move(array: NDArray[np.int64]) -> Tensor:
            return torch.from_numpy(array).to(device, non_blocking=True)

        return cls(
            input_ids=move(pack.input_ids)[None],
            position_ids=move(pack.position_ids)[None],
            bounds=pack.bounds,
            source=move(pack.source),
            target=move(pack.target),
            owner=move(pack.owner),
            completions_per_row=pack.completions_per_row,
            token_counts=tuple(pack.token_counts.sum(axis=1).tolist()),
            ref_logps=None if ref_logps is None else torch.from_numpy(ref_logps).to(device),
        )
