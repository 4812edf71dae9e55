"""The cases of the release gate, their data, and the oracle: what both sides of every comparison share.

Legend: G rows of a global batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from raydpo.config.schema import Optimizer, Zero
from raydpo.data.order import split_microbatches
from raydpo.data.tokens import TokenRow
from raydpo.model.batch import Batch
from raydpo.objective.contract import Objective, Unit
from raydpo.objective.likelihood import fine_tuning
from raydpo.objective.registry import make_objective, resolve
from raydpo.train.step import Share
from tests.models import exact_logps, make_batch, random_rows, tiny_llama

STEPS, GLOBAL_BATCH, WORLD = 3, 16, 2
LR = 1e-4
ObjectiveName = Literal["dpo", "smoothed", "sigmoid_norm", "orpo", "sft"]
OptimizerName = Literal["rmsprop", "adamw"]
OBJECTIVES: dict[ObjectiveName, Objective] = {
    "dpo": make_objective(resolve(["sigmoid"], beta=0.1)),
    "smoothed": make_objective(resolve(["sigmoid"], beta=0.1, label_smoothing=0.1)),
    "sigmoid_norm": make_objective(resolve(["sigmoid_norm"], beta=0.1)),
    "orpo": make_objective(resolve(["orpo"], beta=0.1)),
    "sft": fine_tuning(),
}


@dataclass(frozen=True)
class Problem:
    """What is trained; every way to run it must give the same weights."""

    tied: bool = True
    optimizer: OptimizerName = "rmsprop"
    objective: ObjectiveName = "dpo"

    @property
    def settings(self) -> Optimizer:
        """Clipping bites at every step: gradient norms here are above 1."""
        return Optimizer(name=self.optimizer, lr=LR, weight_decay=0.01, warmup_steps=0, max_grad_norm=1.0)


@dataclass(frozen=True)
class Case:
    """One way to run a problem on so many ranks."""

    stage: Literal[0, 1, 2, 3]
    micro_batches: int  # of each rank, in each step
    problem: Problem = Problem()
    offload: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    by_tokens: bool = False  # through log-probs that can be differentiated, instead of the head's one pass
    world: int = WORLD

    def __str__(self) -> str:
        problem = self.problem
        words = [f"zero{self.stage}", f"{self.micro_batches}micro", problem.objective, problem.optimizer]
        words += ["tied" if problem.tied else "untied", self.dtype]
        words += [word for word, said in (("offload", self.offload), ("by_tokens", self.by_tokens)) if said]
        words += [f"{self.world}ranks"] if self.world != WORLD else []
        return "-".join(words)

    @property
    def zero(self) -> Zero:
        return Zero(stage=self.stage, offload_optimizer=self.offload)


STAGES: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)
MICRO_BATCHES = (1, 4)
OPTIMIZERS: tuple[OptimizerName, ...] = ("rmsprop", "adamw")
OTHER_OBJECTIVES: tuple[ObjectiveName, ...] = ("smoothed", "sigmoid_norm", "orpo", "sft")
FLOAT32 = [
    *(
        Case(stage, micro, Problem(tied=tied, optimizer=optimizer))
        for stage, micro, tied, optimizer in product(STAGES, MICRO_BATCHES, (True, False), OPTIMIZERS)
    ),
    *(Case(stage, micro, Problem(), offload=True) for stage, micro in product(STAGES[1:], MICRO_BATCHES)),
    *(Case(stage, 3) for stage in STAGES),  # micro-batches of unequal numbers of rows
    *(Case(stage, 4, by_tokens=True) for stage in STAGES),
    *(Case(stage, 4, Problem(objective=name)) for stage, name in product(STAGES, OTHER_OBJECTIVES)),
]
BFLOAT16 = [Case(stage, micro, dtype="bfloat16") for stage, micro in product(STAGES[1:], MICRO_BATCHES)]
WORLDS = (1, 2, 4)
DEALT = 4  # micro-batches of a step that every world computes alike


def dealt(stage: Literal[1, 2, 3], world: int) -> Case:
    """The same micro-batches in bfloat16 whatever the number of ranks: only where they are added up differs."""
    return Case(stage, DEALT // world, dtype="bfloat16", world=world)


def cases_of(world: int) -> list[Case]:
    """What a group of so many ranks runs."""
    across = [dealt(stage, world) for stage in STAGES[1:]]
    return FLOAT32 + BFLOAT16 + across if world == WORLD else across


@cache
def rows(problem: Problem) -> list[TokenRow]:
    """All rows of the run, of very different lengths."""
    return random_rows(STEPS * GLOBAL_BATCH, seed=0, completions=1 if problem.objective == "sft" else 2)


def reference_logps(problem: Problem) -> Tensor | None:
    """Made up, so that the slopes of the losses differ from row to row; shape [rows, 2]."""
    if not OBJECTIVES[problem.objective].needs:
        return None
    values = np.random.default_rng(1).uniform(-80, -20, size=(STEPS * GLOBAL_BATCH, 2))
    return torch.from_numpy(values.astype(np.float32))


def global_batch(step: int) -> range:
    return range(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH)


def totals(problem: Problem, step: int) -> dict[Unit, int]:
    """Of a global batch: what loss and metrics are the mean over."""
    completions = [each for i in global_batch(step) for each in rows(problem)[i].completions]
    return {
        "rows": GLOBAL_BATCH,
        "completions": len(completions),
        "pairs": len(completions) - GLOBAL_BATCH,
        "tokens": sum(map(len, completions)),
    }


@cache
def split(case: Case, step: int) -> list[list[list[int]]]:
    """Rows by rank and micro-batch, under the largest token budget that gives this many micro-batches.

    Other worlds than two ranks get the micro-batches of two, dealt out anew.
    """
    if case.world != WORLD:
        of_two = split(replace(case, world=WORLD, micro_batches=DEALT // WORLD), step)
        every = [micro for rank in of_two for micro in rank]
        return [every[first : first + case.micro_batches] for first in range(0, DEALT, case.micro_batches)]
    data = rows(case.problem)
    tokens = np.asarray([len(data[i].prompt_ids) + sum(map(len, data[i].completions)) for i in global_batch(step)])
    for budget in range(int(tokens.sum()), int(tokens.max()) - 1, -1):
        shares = split_microbatches(tokens, world_size=WORLD, budget=budget)
        if len(shares[0]) == case.micro_batches:
            return [[[global_batch(step)[i] for i in micro] for micro in rank] for rank in shares]
    raise AssertionError(f"no budget cuts step {step} into {case.micro_batches} micro-batches")


def share(case: Case, step: int, rank: int) -> Share:
    """What one rank computes of one step."""
    data, ref = rows(case.problem), reference_logps(case.problem)
    batches: list[Batch] = [
        make_batch([data[i] for i in micro], None if ref is None else ref[micro]) for micro in split(case, step)[rank]
    ]
    return Share(step, batches, totals=totals(case.problem, step))


@dataclass(frozen=True)
class Trained:
    """What came of three steps."""

    weights: dict[str, Tensor]
    losses: list[float]
    grad_norms: list[float]


@cache
def oracle(problem: Problem) -> Trained:
    """One process and the full batch, by other means: eager attention, one completion a pass, torch's own optimizer."""
    lm = tiny_llama(problem.tied)
    lm.set_attn_implementation("eager")
    kind = {"rmsprop": torch.optim.RMSprop, "adamw": torch.optim.AdamW}[problem.optimizer]
    optimizer = kind(lm.parameters(), lr=LR, weight_decay=problem.settings.weight_decay)
    losses, grad_norms = [], []
    for step in range(STEPS):
        loss = _loss(lm, problem, step)
        optimizer.zero_grad()
        loss.backward()
        grad_norms.append(float(torch.nn.utils.clip_grad_norm_(lm.parameters(), problem.settings.max_grad_norm)))
        optimizer.step()
        losses.append(float(loss.detach()))
    return Trained({name: p.detach() for name, p in lm.named_parameters()}, losses, grad_norms)


def _loss(lm: LlamaForCausalLM, problem: Problem, step: int) -> Tensor:
    """The mean loss of a global batch, from the formulas of the papers."""
    data, ref = rows(problem), reference_logps(problem)
    losses = []
    for i in global_batch(step):
        tokens = [
            every.gather(1, torch.tensor(ids)[:, None])
            for every, ids in zip(exact_logps(lm, data[i]), data[i].completions, strict=True)
        ]
        losses.append(_row_loss(problem.objective, tokens, None if ref is None else ref[i]))
    return torch.stack(losses).sum() / totals(problem, step)[OBJECTIVES[problem.objective].mean_over]


def _row_loss(objective: ObjectiveName, tokens: list[Tensor], ref: Tensor | None) -> Tensor:
    """Of one row, from the log-probs of the tokens of each completion, and the sums of the reference."""
    if objective == "sft":
        return -tokens[0].sum()
    if objective == "orpo":
        odds = [p / (1 - p) for p in (each.mean().exp() for each in tokens)]
        return -tokens[0].mean() - 0.1 * (odds[0] / odds[1]).log().sigmoid().log()
    assert ref is not None
    ratios = [each.sum() - of_ref for each, of_ref in zip(tokens, ref, strict=True)]
    if objective == "sigmoid_norm":
        ratios = [ratio / len(each) for ratio, each in zip(ratios, tokens, strict=True)]
    margin = 0.1 * (ratios[0] - ratios[1])
    wrong = 0.1 if objective == "smoothed" else 0.0
    return -(1 - wrong) * margin.sigmoid().log() - wrong * (-margin).sigmoid().log()
