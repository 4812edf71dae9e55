"""The training loop and the law that must hold before it starts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import torch

from raydpo.errors import UserError
from raydpo.model.batch import Batch
from raydpo.model.score import sequence_logps
from raydpo.objective.contract import REF_LOGPS, AnyObjective
from raydpo.train.engine import Policy
from raydpo.train.step import RankBatch, train_step

Metrics = dict[str, float]

_IMPORTED = (
    "the reference values were imported, and come from another model or are sums of another kind (`raydpo reference gc "
    "STORE --unverified --yes` removes them), "
)


def train_loop(
    policy: Policy,
    batches: Iterable[RankBatch],
    objective: AnyObjective,
    *,
    lr: Callable[[int], float],
    after_step: Callable[[RankBatch, Metrics], None],
) -> None:
    """Train on the batches in the order they come. after_step(rank_batch, metrics) saves and reports.

    Metrics carry `seconds` of the step, `cpu_seconds` of this rank's threads in it, and `data_seconds` spent waiting
    for its rows.
    """
    mark = time.perf_counter()
    for rank_batch in batches:
        arrived = time.perf_counter()
        cpu = time.process_time()
        metrics = train_step(policy, rank_batch, objective, lr=lr(rank_batch.step))
        spent = {
            "seconds": time.perf_counter() - arrived,
            "cpu_seconds": time.process_time() - cpu,
            "data_seconds": arrived - mark,
        }
        after_step(rank_batch, {**metrics, **spent})
        mark = time.perf_counter()


def check_step_zero(policy: Policy, batches: Sequence[Batch], *, tolerance: float, imported: bool = False) -> float:
    """The step-0 law: scored through the training engine, a batch matches the reference store.

    Returns max |Δ logp| per sequence over all ranks, in nats. Raises UserError above the tolerance, on every rank
    alike; `imported` says that another program computed the reference. Every rank must bring the same number of
    batches, with the column of reference log-probs.
    """
    worst = torch.zeros(())
    for batch in batches:
        logps = sequence_logps(policy.engine.module.token_logps(batch), batch)
        worst = torch.maximum(worst, (logps - batch.columns[REF_LOGPS]).abs().max().cpu())
    worst = worst.to(policy.device)
    torch.distributed.all_reduce(worst, op=torch.distributed.ReduceOp.MAX)
    gap = float(worst)
    if not gap <= tolerance:  # NaN must fail too
        raise UserError(
            f"step-0 law broken: policy and reference store differ by {gap:.4g} nats on the first batch (tolerance "
            f"{tolerance}). Likely causes: {_IMPORTED if imported else ''}the policy's weights are not the reference's "
            "(set reference.model to what training starts from), the tokenizer or chat template changed after prepare, "
            "or the weights did not load. Run precompute again; if the reference is meant to differ, raise "
            "train.step0_tolerance."
        )
    return gap
