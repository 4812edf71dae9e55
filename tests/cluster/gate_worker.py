"""One rank of the release gate: runs every case in one process group and leaves what it found as files.

Layout: <out>/{<case>.rank<r>.pt, zero<stage>/{export/, life.rank<r>.pt}}
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed

from raydpo.errors import UserError
from raydpo.model.batch import Batch
from raydpo.model.head import Asked, Scored
from raydpo.model.score import sequence_logps
from raydpo.objective.contract import RowLoss, TokenMetric
from raydpo.train.engine import Policy, init_distributed, make_policy
from raydpo.train.export import export_policy
from raydpo.train.loop import check_step_zero
from raydpo.train.step import train_step
from tests.cluster.gate import HEADS, LR, OBJECTIVES, STAGES, STEPS, WORLD, Case, cases_of, rank_batch
from tests.helpers import tiny_tokenizer
from tests.models import make_batch, random_rows, tiny_llama, tiny_reward_model


def run_rank(rank: int, out: Path, world: int) -> None:
    """Entry point of each process of a group."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    rendezvous = f"file://{out}/rendezvous-{world}"
    torch.distributed.init_process_group("gloo", rendezvous, rank=rank, world_size=world)
    init_distributed(world)
    for case in cases_of(world):
        policy = _policy(case)
        metrics = [_step(policy, case, step) for step in range(STEPS)]
        torch.save({"metrics": metrics, "weights": _weights(policy)}, out / f"{case}.rank{rank}.pt")
    for stage in STAGES if world == WORLD else ():
        directory = out / f"zero{stage}"
        torch.save(_life_of_a_run(Case(stage, 4), directory), directory / f"life.rank{rank}.pt")
    torch.distributed.destroy_process_group()


def _life_of_a_run(case: Case, directory: Path) -> dict[str, Any]:
    """Step-0 law, training, the export."""
    directory.mkdir(exist_ok=True)
    policy = _policy(case)
    law = {"held": _step_zero(policy, off_by=0.0), "broken": _step_zero(policy, off_by=1.0)}
    for step in range(STEPS):
        _step(policy, case, step)
    compare_on = rank_batch(case, 0, policy.rank).micro_batches[0]
    export_policy(policy, tiny_tokenizer(), directory / "export", compare_on=compare_on, identity="gate", step=STEPS)
    return {"weights": _weights(policy), **law}


def _policy(case: Case) -> Policy:
    dtype = getattr(torch, case.dtype)
    heads = HEADS.get(case.problem.objective)
    lm = tiny_reward_model(heads, dtype) if heads else tiny_llama(case.problem.tied, dtype)
    return make_policy(lm, optimizer=case.problem.settings, zero=case.zero)


def _step(policy: Policy, case: Case, step: int) -> dict[str, float]:
    objective = OBJECTIVES[case.problem.objective]
    if case.by_tokens:
        policy = replace(policy, engine=_ByTokens(policy.engine))
    return train_step(policy, rank_batch(case, step, policy.rank), objective, lr=LR)


class _ByTokens:
    """An engine whose losses are made of differentiable per-token log-probs."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def __call__(self, batch: Batch, loss: RowLoss, asked: Asked, observes: Sequence[TokenMetric]) -> Scored:
        assert not asked
        assert not observes
        token_logps = self.engine(batch)
        losses = loss(batch.scored(token_logps))
        return losses.sum(), losses.detach(), token_logps.detach()


def _weights(policy: Policy) -> dict[str, torch.Tensor]:
    parameters = dict(policy.lm.named_parameters())
    with deepspeed.zero.GatheredParameters(
        list(parameters.values()), enabled=policy.engine.zero_optimization_stage() == 3
    ):
        return {name: p.detach().clone() for name, p in parameters.items()}


def _step_zero(policy: Policy, *, off_by: float) -> float | str:
    """The gap against reference values that only rank 1 has wrong, or what the refusal says."""
    batch = make_batch(random_rows(4, seed=policy.rank))
    ref = sequence_logps(policy.engine.module.token_logps(batch), batch)
    wrong = make_batch(random_rows(4, seed=policy.rank), ref + off_by * policy.rank)
    try:
        return check_step_zero(policy, [wrong], tolerance=0.5)
    except UserError as error:
        return str(error)
