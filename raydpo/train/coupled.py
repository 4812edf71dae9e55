"""A step of a loss that couples the rows of the global batch: scored without gradient first, then a second pass.

Both passes go through the same engine and the same head, and dropout is off (raydpo.model.load), so the log-probs that
the slopes were made from are those of the second pass. The first costs a forward pass; nothing else is exchanged than
log-probs and columns, some bytes a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raydpo.model.batch import Batch
from raydpo.model.head import NOTHING
from raydpo.objective.contract import Mean, Objective, ScoredRows
from raydpo.objective.coupling import SLOPE, Coupled, Part, couple, linear
from raydpo.objective.token_metrics import token_means

if TYPE_CHECKING:
    from raydpo.train.engine import Policy


def score_together(
    policy: Policy, batches: Sequence[Batch], row_ids: Sequence[Sequence[str]], objective: Objective
) -> list[Coupled]:
    """What the global batch makes of each of this rank's micro-batches. All ranks call it together."""
    mine = []
    for batch, names in zip(batches, row_ids, strict=True):
        with torch.no_grad():
            token_logps = policy.engine(batch)
        mine.append(Part(_in_host_memory(batch.scored(token_logps)), names))
    by_rank: list[list[Part]] = [[] for _ in range(policy.world_size)]
    torch.distributed.all_gather_object(by_rank, mine)
    # The batch of all ranks stands in rank order, so this rank's part begins behind that of the lower ranks.
    before = sum(len(parts) for parts in by_rank[: policy.rank])
    everything = couple(objective, [part for parts in by_rank for part in parts])
    return everything[before : before + len(mine)]


def backward_coupled(
    policy: Policy, batch: Batch, coupled: Coupled, objective: Objective, scale: float
) -> tuple[Tensor, dict[str, Mean]]:
    """The second pass over one micro-batch: adds its part of the gradient, times scale. Returns losses and metrics."""
    slopes = coupled.slopes.to(batch.owner.device, torch.float32)
    total, _, token_logps, *figures = policy.engine(
        replace(batch, token_columns={SLOPE: slopes}), linear, NOTHING, objective.observes
    )
    policy.engine.backward(total * scale)
    return coupled.losses, coupled.metrics | token_means(batch.scored(token_logps), objective, figures)


def _in_host_memory(rows: ScoredRows) -> ScoredRows:
    """The rows with all tensors on the CPU, so that every rank computes the same from them, whatever its device."""
    return replace(
        rows,
        token_logps=rows.token_logps.cpu(),
        owner=rows.owner.cpu(),
        row=rows.row.cpu(),
        columns={name: values.cpu() for name, values in rows.columns.items()},
        token_columns={name: values.cpu() for name, values in rows.token_columns.items()},
    )
