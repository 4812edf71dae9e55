"""One of two ranks that train families of every kind, save, export and resume; it leaves what it saw as files.

Layout: <out>/<life>/{model/, checkpoints/, export/, life.rank<r>.pt}
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed
from torch import Tensor

from raydpo.config.schema import Optimizer, Zero
from raydpo.model.batch import Batch
from raydpo.model.load import load_model
from raydpo.model.score import sequence_logps
from raydpo.objective.registry import make_objective, resolve
from raydpo.train.checkpoint.saver import resume
from raydpo.train.checkpoint.untrained import untrained_tensors
from raydpo.train.engine import Policy, make_policy
from raydpo.train.export import export_policy
from raydpo.train.loop import check_step_zero
from raydpo.train.step import RankBatch, train_step
from tests.cluster.elastic import join, make_saver, save
from tests.helpers import tiny_tokenizer
from tests.models import make_batch, random_rows

WORLD, STEPS, ROWS = 2, 2, 3
LR = 1e-3


@dataclass(frozen=True)
class Life:
    """What is trained, and how it is sharded."""

    family: str
    stage: Literal[2, 3]

    def __str__(self) -> str:
        return f"{self.family}-zero{self.stage}"


# Latent attention, buffers, a frozen parameter, experts in padded rows, a recurrence, a factor of the logits.
KINDS = ("deepseek_v3", "gemma4_text", "ernie4_5_moe", "qwen2_moe", "mamba", "granite")
LIVES = [*(Life(family, 2) for family in KINDS), *(Life(family, 3) for family in KINDS)]


def run_rank(rank: int, out: Path) -> None:
    """Entry point of each of the two processes."""
    join(rank, WORLD, out / "rendezvous")
    for life in LIVES:
        torch.save(_live(life, out / str(life)), out / str(life) / f"life.rank{rank}.pt")
    torch.distributed.destroy_process_group()


def _live(life: Life, directory: Path) -> dict[str, Any]:
    """The step-0 law, two steps with changed buffers, commit, export; then a second policy that resumes."""
    policy = _policy(life, directory)
    probe = _batch(policy, 0)
    metrics = [_train_one(policy, step) for step in range(STEPS)]
    _change_buffers(policy)
    with make_saver(policy, directory / "checkpoints") as saver:
        save(saver, STEPS)
    after = policy.engine.module.token_logps(probe)
    export_policy(policy, tiny_tokenizer(), directory / "export", compare_on=probe, identity="run", step=STEPS)
    resumed = _policy(life, directory)
    found = resume(resumed, directory / "checkpoints")
    assert found is not None
    return {
        "metrics": metrics,
        "after": after,
        "resumed": resumed.engine.module.token_logps(probe),
        "next": [_train_one(each, STEPS) for each in (policy, resumed)],
    }


def _policy(life: Life, directory: Path) -> Policy:
    settings = Optimizer(name="adamw", lr=LR, weight_decay=0.01, warmup_steps=0, max_grad_norm=1.0)
    lm = load_model(str(directory / "model"), dtype="float32")
    policy = make_policy(lm, optimizer=settings, zero=Zero(stage=life.stage))
    own = sequence_logps(policy.engine.module.token_logps(_batch(policy, 0)), _batch(policy, 0))
    check_step_zero(policy, [_batch(policy, 0, own)], tolerance=1e-3)
    return policy


def _batch(policy: Policy, step: int, ref: Tensor | None = None) -> Batch:
    """This rank's rows of a step."""
    rows = random_rows(ROWS, seed=WORLD * step + policy.rank)
    return make_batch(rows, torch.full((ROWS, 2), -50.0) if ref is None else ref)


def _train_one(policy: Policy, step: int) -> dict[str, float]:
    rank_batch = RankBatch(step, [_batch(policy, step)], totals={"pairs": WORLD * ROWS})
    return train_step(policy, rank_batch, make_objective(resolve(["sigmoid"], beta=0.1)), lr=LR)


def _change_buffers(policy: Policy) -> None:
    """As a forward pass of some models may."""
    parameters = {name for name, _ in policy.lm.named_parameters(remove_duplicate=False)}
    for name, tensor in untrained_tensors(policy.lm).items():
        if name not in parameters and tensor.is_floating_point():
            tensor.add_(0.125)
