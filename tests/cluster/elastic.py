"""Runs that change their number of ranks and their ZeRO stage on the way: the routes, and one rank of a leg.

A group of ranks is started once for all routes that need one of its size at that leg.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed
from torch.multiprocessing.spawn import spawn

from raydpo.config.schema import Optimizer, Zero
from raydpo.data.order import split_microbatches
from raydpo.data.tokens import TokenRow
from raydpo.model.reward_model import is_reward_model
from raydpo.objective.contract import AnyObjective
from raydpo.objective.registry import make_objective, resolve
from raydpo.objective.reward_model import reward_objective
from raydpo.train.checkpoint.retention import Retention
from raydpo.train.checkpoint.saver import Saver, resume
from raydpo.train.engine import Policy, init_distributed, make_policy
from raydpo.train.step import RankBatch, train_step
from tests.helpers import tiny_tokenizer
from tests.models import make_batch, random_rows, tiny_llama, tiny_reward_model

STEPS, GLOBAL_BATCH = 6, 8
LR = 1e-4
Stage = Literal[0, 1, 2, 3]


@dataclass(frozen=True)
class Problem:
    """What is trained, by whatever group."""

    optimizer: Literal["rmsprop", "adamw"] = "rmsprop"
    tied: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    heads: int = 0  # of a reward model; without any it is a policy

    def __str__(self) -> str:
        words = [self.optimizer, "tied" if self.tied else "untied", self.dtype]
        return "-".join([*words, *([f"{self.heads}heads"] if self.heads else [])])


@dataclass(frozen=True)
class Route:
    """World size and ZeRO stage of each leg of a run. A leg ends with a commit, the next one resumes from it."""

    legs: tuple[tuple[int, Stage], ...]
    problem: Problem = Problem()
    offload: bool = False

    def __str__(self) -> str:
        legs = [f"{world}xzero{stage}" for world, stage in self.legs]
        return "-".join([*legs, str(self.problem), *(["offload"] if self.offload else [])])

    def steps(self, leg: int) -> range:
        length = STEPS // len(self.legs)
        return range(leg * length, (leg + 1) * length)


def travel(routes: Sequence[Route], out: Path) -> None:
    """Run every leg of every route; <out>/<route>/leg<l>.rank<r>.pt holds what a rank found."""
    for leg in range(max(len(route.legs) for route in routes)):
        under_way = [route for route in routes if leg < len(route.legs)]
        for world in sorted({route.legs[leg][0] for route in under_way}):
            mine = [route for route in under_way if route.legs[leg][0] == world]
            spawn(_run_rank, args=(world, leg, mine, out), nprocs=world)


def join(rank: int, world: int, rendezvous: Path) -> None:
    """Become one rank of a group on this machine."""
    faulthandler.enable()  # of a rank that aborts, the parent knows the signal and nothing else
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=world)
    init_distributed(world)


def make_tiny_policy(problem: Problem, zero: Zero) -> Policy:
    settings = Optimizer(name=problem.optimizer, lr=LR, weight_decay=0.01, warmup_steps=0, max_grad_norm=1.0)
    dtype = getattr(torch, problem.dtype)
    lm = tiny_reward_model(problem.heads, dtype) if problem.heads else tiny_llama(problem.tied, dtype)
    return make_policy(lm, optimizer=settings, zero=zero)


def make_saver(policy: Policy, directory: Path, **retention: Any) -> Saver:
    keep = Retention(**{"last": 1, **retention})
    return Saver(policy, tiny_tokenizer(), directory, identity="run", retention=keep)


def save(saver: Saver, step: int) -> None:
    saver.copy(step)
    saver.commit()


def train_one(policy: Policy, step: int, *, reference: float = -50.0) -> dict[str, Any]:
    """One step over this rank's part of a fixed global batch; its metrics and row ids.

    reference: the log-prob of every completion of this rank under the reference.
    """
    rows = _rows()[step * GLOBAL_BATCH : (step + 1) * GLOBAL_BATCH]
    tokens = np.asarray([len(row.prompt_ids) + sum(map(len, row.completions)) for row in rows])
    mine = split_microbatches(tokens, world_size=policy.world_size, tokens_per_microbatch=160)[policy.rank]
    ref = torch.full((len(rows), 2), reference)
    batches = [make_batch([rows[i] for i in micro], ref[micro]) for micro in mine]
    row_ids = [[rows[i].row_id.hex() for i in micro] for micro in mine]
    rank_batch = RankBatch(step, batches, totals={"pairs": GLOBAL_BATCH}, row_ids=row_ids)
    metrics = train_step(policy, rank_batch, _objective(policy), lr=LR)
    return {**metrics, "rows": sorted(rows[i].row_id for micro in mine for i in micro)}


def _objective(policy: Policy) -> AnyObjective:
    """DPO, or Bradley and Terry's for a reward model."""
    if not is_reward_model(policy.lm):
        return make_objective(resolve(["sigmoid"], beta=0.1))
    heads = policy.lm.score.out_features
    return reward_objective(label_smoothing=0.0, center_rewards_coefficient=0.0, use_margin=False, heads=heads)


@cache
def _rows() -> list[TokenRow]:
    return random_rows(STEPS * GLOBAL_BATCH, seed=0)


def _run_rank(rank: int, world: int, leg: int, routes: Sequence[Route], out: Path) -> None:
    join(rank, world, out / f"rendezvous-{leg}-{world}")
    for route in routes:
        directory, steps = out / str(route), route.steps(leg)
        directory.mkdir(exist_ok=True)
        policy = make_tiny_policy(route.problem, Zero(stage=route.legs[leg][1], offload_optimizer=route.offload))
        found = resume(policy, directory / "checkpoints")
        assert (found.cursor.step if found else 0) == steps.start
        metrics = [train_one(policy, step) for step in steps]
        with make_saver(policy, directory / "checkpoints") as saver:
            save(saver, steps.stop)
        torch.save(metrics, directory / f"leg{leg}.rank{rank}.pt")
    torch.distributed.destroy_process_group()
