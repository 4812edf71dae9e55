"""One optimizer step over this rank's share of a global batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raydpo.model.batch import Batch
from raydpo.objective.objectives import Objective

if TYPE_CHECKING:
    from raydpo.train.engine import Policy


@dataclass(frozen=True)
class Share:
    """What one rank computes of one step. Every rank has the same number of micro-batches."""

    step: int
    micro_batches: Sequence[Batch]
    normaliser: int  # rows or completion tokens of the whole global batch: what the loss is the mean over
    num_rows: int  # rows of the whole global batch: what metrics are the mean over


def train_step(policy: Policy, share: Share, objective: Objective, *, lr: float) -> dict[str, float]:
    """Forward, backward, step. Returns metrics of the whole global batch, equal on every rank.

    DeepSpeed averages gradients over ranks, so each rank's part is scaled by the world size: the gradient is that of
    sum(losses) / normaliser, whatever the micro-batching and the number of ranks.
    """
    for group in policy.engine.optimizer.param_groups:
        group["lr"] = lr
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))
    last = len(share.micro_batches) - 1
    for i, batch in enumerate(share.micro_batches):
        # Without this flag ZeRO-1 and 2 would take each backward for a whole step and lose the others' gradients.
        policy.engine.set_gradient_accumulation_boundary(i == last)
        total, losses, logps = policy.engine(batch, objective.loss)
        policy.engine.backward(total * (policy.world_size / share.normaliser))
        sums["loss"] += losses.sum().cpu()
        for name, values in objective.metrics(logps, batch.ref_logps).items():
            sums[name] += values.sum().cpu()
    grad_norm = policy.step()
    totals = reduce_sums(sums)
    loss = totals.pop("loss") / share.normaliser
    means = {name: total / share.num_rows for name, total in totals.items()}
    return {"loss": loss, **means, "grad_norm": grad_norm, "learning_rate": lr}


def reduce_sums(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Add named scalars over all ranks; every rank must hold the same names."""
    names = sorted(sums)
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    stacked = torch.stack([sums[name].double() for name in names]).to(device)
    torch.distributed.all_reduce(stacked)
    return dict(zip(names, stacked.tolist(), strict=True))
