"""One optimizer step over this rank's part of a global batch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from raydpo.errors import UserError
from raydpo.model.batch import Batch
from raydpo.objective.contract import AnyObjective, Mean, Objective, Unit
from raydpo.objective.token_metrics import token_means
from raydpo.train.coupled import backward_coupled, score_together
from raydpo.train.diverged import REMEDY

if TYPE_CHECKING:
    from raydpo.train.engine import Policy


@dataclass(frozen=True)
class RankBatch:
    """What one rank computes of one step. Every rank has the same number of micro-batches."""

    step: int
    micro_batches: Sequence[Batch]
    totals: Mapping[Unit, int]  # of the whole global batch: what loss and metrics are the mean over
    row_ids: Sequence[Sequence[str]] = ()  # hexadecimal, by micro-batch and row; for messages and the order of rows
    epoch: float = 0.0  # epochs walked with this step, as a fraction; for the record only
    num_tokens: int = 0  # trained on with this step, since the run's first; for the record only


def train_step(policy: Policy, rank_batch: RankBatch, objective: AnyObjective, *, lr: float) -> dict[str, float]:
    """Forward, backward, step. Returns metrics of the whole global batch, equal on every rank.

    A metric of which the global batch has no instance, such as the reward of wanted completions, is left out.

    DeepSpeed averages gradients over ranks, so each rank's part is scaled by the world size: the gradient is that of
    sum(losses) over the units of the global batch, whatever the micro-batching and the number of ranks.

    Raises UserError, on every rank alike, when the loss, the gradient norm or any other metric is not finite.
    """
    # The rate is a function of the step, so it is set anew at each: there is no scheduler whose state could be lost.
    for group in policy.engine.optimizer.param_groups:
        group["lr"] = lr
    normaliser = rank_batch.totals[objective.mean_over]
    sums = _backward_all(policy, rank_batch, objective, policy.world_size / normaliser)
    grad_norm = policy.step()
    loss, means = sums.over_all_ranks()
    metrics = {"loss": loss / normaliser, **means, "grad_norm": grad_norm, "learning_rate": lr}
    wrong = {name: value for name, value in metrics.items() if not math.isfinite(value)}
    if wrong:
        raise _not_finite(rank_batch, sums.row_losses, wrong)
    return metrics


_COUNT_OF = "count of "  # before the name of a metric, where its count travels beside its total


def _zeros() -> defaultdict[str, Tensor]:
    # Float64, because float32 would lose the last digits of a sum over all tokens of a large batch.
    return defaultdict(lambda: torch.zeros((), dtype=torch.float64))


@dataclass(frozen=True)
class _Sums:
    """What the micro-batches of one rank add up to, on the CPU."""

    totals: defaultdict[str, Tensor] = field(default_factory=_zeros)  # of the loss and of every metric
    counts: defaultdict[str, Tensor] = field(default_factory=_zeros)  # of the values that a metric is the mean of
    row_losses: list[Tensor] = field(default_factory=list)  # [B] for each micro-batch

    def add(self, losses: Tensor, metrics: Mapping[str, Mean]) -> None:
        """Add a micro-batch: the losses of its rows, [B], and its metrics."""
        self.row_losses.append(losses)
        self.totals["loss"] += losses.sum().cpu()
        for name, mean in metrics.items():
            self.totals[name] += mean.total.sum().cpu()
            self.counts[name] += mean.count.sum().cpu()

    def over_all_ranks(self) -> tuple[float, dict[str, float]]:
        """The sum of all losses, and the mean of every metric that was measured, from one exchange of the ranks."""
        names = sorted(self.counts)
        counts = {_COUNT_OF + name: self.counts[name] for name in names}
        reduced = reduce_sums({**self.totals, **counts})
        measured = [name for name in names if reduced[_COUNT_OF + name]]
        return reduced["loss"], {name: reduced[name] / reduced[_COUNT_OF + name] for name in measured}


def _backward_all(policy: Policy, rank_batch: RankBatch, objective: AnyObjective, scale: float) -> _Sums:
    """Forward and backward of every micro-batch. The engine adds their gradients up, each times scale."""
    coupled = None
    of_policy = cast(Objective, objective)  # only losses of log-probs couple rows
    if objective.coupled:
        coupled = score_together(policy, rank_batch.micro_batches, rank_batch.row_ids, of_policy)
    sums = _Sums()
    last = len(rank_batch.micro_batches) - 1
    for i, batch in enumerate(rank_batch.micro_batches):
        # Without this flag ZeRO-1 and 2 would take each backward for a whole step and lose the others' gradients.
        policy.engine.set_gradient_accumulation_boundary(i == last)
        if coupled is None:
            losses, metrics = _backward(policy, batch, objective, scale)
        else:
            losses, metrics = backward_coupled(policy, batch, coupled[i], of_policy, scale)
        sums.add(losses, metrics)
    return sums


def _backward(policy: Policy, batch: Batch, objective: AnyObjective, scale: float) -> tuple[Tensor, dict[str, Mean]]:
    """Add one micro-batch's part of the gradient of a local loss, times scale. Returns its losses and metrics."""
    total, losses, scores, *figures = policy.engine(batch, objective.loss, objective.statistics, objective.observes)
    policy.engine.backward(total * scale)
    rows = policy.engine.module.seen(batch, scores)
    means = objective.metrics(rows)
    if figures:  # of logits, which a reward model has none of
        means |= token_means(rows, cast(Objective, objective), figures)
    return losses, means


def _not_finite(rank_batch: RankBatch, row_losses: Sequence[Tensor], wrong: Mapping[str, float]) -> UserError:
    """The error that ends training, with the rows whose loss is not finite.

    All ranks have the same sums, so all of them come here and can exchange their rows.
    """
    mine = []
    for row_ids, losses in zip(rank_batch.row_ids, row_losses, strict=False):
        mine += [row_id for row_id, value in zip(row_ids, losses.tolist(), strict=True) if not math.isfinite(value)]
    by_rank: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(by_rank, mine)
    rows = [f"rank {rank}: {', '.join(found[:8])}" for rank, found in enumerate(by_rank) if found]
    where = f"rows whose loss is not finite: {'; '.join(rows)}" if rows else "the loss of every row is finite"
    figures = ", ".join(f"{name} {value:g}" for name, value in wrong.items())
    return UserError(
        f"step {rank_batch.step + 1} has figures that are not finite: {figures}; {where}. {REMEDY} If it is the first "
        "step, look at its rows and their reference values."
    )


def reduce_sums(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Add named scalars over all ranks; every rank must hold the same names."""
    names = sorted(sums)  # ranks may have met the names in another order, and are added up by place
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    stacked = torch.stack([sums[name].double() for name in names]).to(device)
    torch.distributed.all_reduce(stacked)
    return dict(zip(names, stacked.tolist(), strict=True))
