"""The cases of the release gate, their data, and the oracle: what both sides of every comparison share.

Legend: G rows of a global batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, product
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from raydpo.config.schema import Optimizer, Zero
from raydpo.data.order import split_microbatches
from raydpo.data.tokens import TokenRow
from raydpo.objective.contract import LABEL, MARGIN, MISMATCHED, REF_LOGPS, AnyObjective, Unit
from raydpo.objective.likelihood import fine_tuning
from raydpo.objective.registry import make_objective, resolve
from raydpo.objective.reward_model import reward_objective
from raydpo.train.step import RankBatch
from tests.models import exact_logps, make_batch, random_rows, tiny_classifier, tiny_llama

STEPS, GLOBAL_BATCH, WORLD = 3, 16, 2
LR = 1e-4
ObjectiveName = Literal[
    "dpo", "smoothed", "sigmoid_norm", "orpo", "sft", "group", "aot", "kto", "wpo", "reward", "reward_group"
]
OptimizerName = Literal["rmsprop", "adamw"]
HEADS: dict[ObjectiveName, int] = {"reward": 1, "reward_group": 3}  # of the reward models
OBJECTIVES: dict[ObjectiveName, AnyObjective] = {
    "dpo": make_objective(resolve(["sigmoid"], beta=0.1)),
    "smoothed": make_objective(resolve(["sigmoid"], beta=0.1, label_smoothing=0.1)),
    "sigmoid_norm": make_objective(resolve(["sigmoid_norm"], beta=0.1)),
    "orpo": make_objective(resolve(["orpo"], beta=0.1)),
    "sft": fine_tuning(),
    "group": make_objective(resolve(["sigmoid"], beta=0.1)),
    "aot": make_objective(resolve(["aot"], beta=0.1)),
    "kto": make_objective(resolve(["kto"], beta=0.1, undesirable_weight=1.5)),
    "wpo": make_objective(resolve(["sigmoid"], beta=0.1, use_weighting=True)),
    **{
        name: reward_objective(label_smoothing=0.0, center_rewards_coefficient=0.0, use_margin=True, heads=heads)
        for name, heads in HEADS.items()
    },
}
# Completions of a row; of the others 2, one of kto's not its own.
COMPLETIONS: dict[ObjectiveName, int] = {"sft": 1, "group": 4, "reward_group": 4}


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
OTHER_OBJECTIVES: tuple[ObjectiveName, ...] = ("smoothed", "sigmoid_norm", "orpo", "sft", "group", "kto", "wpo")
FLOAT32 = [
    *(
        Case(stage, micro, Problem(tied=tied, optimizer=optimizer))
        for stage, micro, tied, optimizer in product(STAGES, MICRO_BATCHES, (True, False), OPTIMIZERS)
    ),
    *(Case(stage, micro, Problem(), offload=True) for stage, micro in product(STAGES[1:], MICRO_BATCHES)),
    *(Case(stage, 3) for stage in STAGES),  # micro-batches of unequal numbers of rows
    *(Case(stage, 4, by_tokens=True) for stage in STAGES),
    *(Case(stage, 4, Problem(objective=name)) for stage, name in product(STAGES, OTHER_OBJECTIVES)),
    *(Case(stage, micro, Problem(objective="aot")) for stage, micro in product(STAGES, MICRO_BATCHES)),
    *(Case(stage, micro, Problem(objective=name)) for stage, micro, name in product(STAGES, MICRO_BATCHES, HEADS)),
]
ALONE = [Case(stage, micro, Problem(objective="aot"), world=1) for stage, micro in product(STAGES, MICRO_BATCHES)]
BFLOAT16 = [
    *(Case(stage, micro, dtype="bfloat16") for stage, micro in product(STAGES[1:], MICRO_BATCHES)),
    *(Case(stage, 4, Problem(objective="reward"), dtype="bfloat16") for stage in STAGES[1:]),
]
WORLDS = (1, 2, 4)
DEALT = 4  # micro-batches of a step that every world computes alike


def dealt(stage: Literal[1, 2, 3], world: int) -> Case:
    """The same micro-batches in bfloat16 whatever the number of ranks: only where they are added up differs."""
    return Case(stage, DEALT // world, dtype="bfloat16", world=world)


def cases_of(world: int) -> list[Case]:
    """What a group of so many ranks runs."""
    across = [dealt(stage, world) for stage in STAGES[1:]]
    if world == WORLD:
        return FLOAT32 + BFLOAT16 + across
    return across + ALONE if world == 1 else across


@cache
def rows(problem: Problem) -> list[TokenRow]:
    """All rows of the run, of very different lengths."""
    return random_rows(STEPS * GLOBAL_BATCH, seed=0, completions=COMPLETIONS.get(problem.objective, 2))


def reference_logps(problem: Problem) -> Tensor | None:
    """Made up, so that the slopes of the losses differ from row to row; shape [rows, n]."""
    if REF_LOGPS not in OBJECTIVES[problem.objective].needs:
        return None
    per_row = COMPLETIONS.get(problem.objective, 2)
    # KTO's baseline has a bound, which it must not lie on.
    highest = -60 if problem.objective == "kto" else -20
    values = np.random.default_rng(1).uniform(highest - 60, highest, size=(STEPS * GLOBAL_BATCH, per_row))
    return torch.from_numpy(values.astype(np.float32))


def margin_values(problem: Problem) -> Tensor:
    """How good the completions are beside the reward, shape [rows, n]: a pair's margin is a difference of two."""
    per_row = COMPLETIONS.get(problem.objective, 2)
    values = np.random.default_rng(2).uniform(0, 2, size=(STEPS * GLOBAL_BATCH, per_row))
    return torch.from_numpy(values.astype(np.float32))


def is_wanted(i: int) -> bool:
    """The label of kto's row number i."""
    return i % 3 == 0


def columns(problem: Problem, members: list[int]) -> dict[str, Tensor]:
    """Of the completions of some rows."""
    found: dict[str, Tensor] = {}
    if (ref := reference_logps(problem)) is not None:
        found[REF_LOGPS] = ref[members]
    if problem.objective in HEADS:
        found[MARGIN] = margin_values(problem)[members]
    if problem.objective == "kto":
        found[LABEL] = torch.tensor([[is_wanted(i), False] for i in members])
        found[MISMATCHED] = torch.tensor([False, True]).repeat(len(members))
    return found


def global_batch(step: int) -> range:
    return range(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH)


def totals(problem: Problem, step: int) -> dict[Unit, int]:
    """Of a global batch: what the loss is the mean over."""
    completions = [each for i in global_batch(step) for each in rows(problem)[i].completions]
    per_row = COMPLETIONS.get(problem.objective, 2)
    own = len(completions) // per_row if problem.objective == "kto" else len(completions)
    return {
        "rows": GLOBAL_BATCH,
        "completions": own,
        "pairs": GLOBAL_BATCH * per_row * (per_row - 1) // 2,
        "tokens": sum(map(len, completions)),
    }


@cache
def split(case: Case, step: int) -> list[list[list[int]]]:
    """Rows by rank and micro-batch, under the largest token budget that gives this many micro-batches.

    Where bits are compared, other worlds than two ranks get the micro-batches of two, dealt out anew.
    """
    if case.dtype == "bfloat16" and case.world != WORLD:
        of_two = split(replace(case, world=WORLD, micro_batches=DEALT // WORLD), step)
        every = [micro for rank in of_two for micro in rank]
        return [every[first : first + case.micro_batches] for first in range(0, DEALT, case.micro_batches)]
    data = rows(case.problem)
    tokens = np.asarray([len(data[i].prompt_ids) + sum(map(len, data[i].completions)) for i in global_batch(step)])
    for budget in range(int(tokens.sum()), int(tokens.max()) - 1, -1):
        by_rank = split_microbatches(tokens, world_size=case.world, tokens_per_microbatch=budget)
        if len(by_rank[0]) == case.micro_batches:
            return [[[global_batch(step)[i] for i in micro] for micro in rank] for rank in by_rank]
    raise AssertionError(f"no budget cuts step {step} into {case.micro_batches} micro-batches")


def rank_batch(case: Case, step: int, rank: int) -> RankBatch:
    """What one rank computes of one step."""
    data = rows(case.problem)
    mine = split(case, step)[rank]
    batches = [make_batch([data[i] for i in micro], **columns(case.problem, micro)) for micro in mine]
    names = [[data[i].row_id.hex() for i in micro] for micro in mine]
    return RankBatch(step, batches, totals=totals(case.problem, step), row_ids=names)


@dataclass(frozen=True)
class Trained:
    """What came of three steps."""

    weights: dict[str, Tensor]
    losses: list[float]
    grad_norms: list[float]


@cache
def oracle(problem: Problem) -> Trained:
    """One process and the full batch, by other means: eager attention, one completion a pass, torch's own optimizer."""
    heads = HEADS.get(problem.objective)
    lm: PreTrainedModel = tiny_classifier(heads) if heads else tiny_llama(problem.tied)
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


def _loss(lm: PreTrainedModel, problem: Problem, step: int) -> Tensor:
    """The mean loss of a global batch, from the formulas of the papers."""
    data, ref = rows(problem), reference_logps(problem)
    if problem.objective in HEADS:
        margins = margin_values(problem)
        ranked = [_ranked(lm, data[i], margins[i]) for i in global_batch(step)]
        return torch.stack(ranked).sum() / totals(problem, step)["pairs"]
    tokens = [_token_logps(lm, data[i]) for i in global_batch(step)]
    refs = [None if ref is None else ref[i] for i in global_batch(step)]
    if problem.objective == "aot":
        losses = _transported([_ratios(*row) for row in zip(tokens, refs, strict=True)], refs)
    elif problem.objective == "kto":
        losses = _prospects([_ratios(*row) for row in zip(tokens, refs, strict=True)], step)
    elif problem.objective == "wpo":
        plain = [_row_loss("dpo", *row) for row in zip(tokens, refs, strict=True)]
        losses = torch.stack(plain) * torch.stack([_likeness(lm, data[i]) for i in global_batch(step)])
    else:
        losses = torch.stack([_row_loss(problem.objective, *row) for row in zip(tokens, refs, strict=True)])
    return losses.sum() / totals(problem, step)[OBJECTIVES[problem.objective].mean_over]


def _ranked(lm: PreTrainedModel, row: TokenRow, above: Tensor) -> Tensor:
    """Of one row, from the classifier's logits of each completion, [1, K]: the mean over the heads."""
    texts = [torch.tensor([row.prompt_ids + list(ids)]) for ids in row.completions]
    rewards = [lm(input_ids=text, use_cache=False).logits for text in texts]
    return sum(
        (
            -(better - worse - (high - low)).sigmoid().log().mean()
            for (better, high), (worse, low) in combinations(zip(rewards, above, strict=True), 2)
        ),
        start=torch.zeros(()),
    )


def _token_logps(lm: PreTrainedModel, row: TokenRow) -> list[Tensor]:
    """Of each completion."""
    return [
        every.gather(1, torch.tensor(ids)[:, None])
        for every, ids in zip(exact_logps(lm, row), row.completions, strict=True)
    ]


@torch.no_grad()
def _likeness(lm: PreTrainedModel, row: TokenRow) -> Tensor:
    """WPO's weight of a pair: how far the policy itself might have drawn both completions."""
    means = []
    for every, ids in zip(exact_logps(lm, row), row.completions, strict=True):
        collision = every.exp().square().sum(dim=1).log()
        means.append((every.gather(1, torch.tensor(ids)[:, None])[:, 0] - collision).mean())
    return torch.stack(means).sum().exp()


def _ratios(tokens: list[Tensor], ref: Tensor | None) -> list[Tensor]:
    assert ref is not None
    return [each.sum() - of_ref for each, of_ref in zip(tokens, ref, strict=True)]


def _transported(ratios: list[list[Tensor]], refs: list[Tensor | None]) -> Tensor:
    """AOT, [G] in the order of the margins: the k-th smallest of the policy's against that of the reference's."""
    theirs = torch.stack([ref[0] - ref[1] for ref in refs if ref is not None])
    ours = torch.stack([chosen - rejected for chosen, rejected in ratios]) + theirs
    return -(0.1 * (ours.sort().values - theirs.sort().values)).sigmoid().log()


def _prospects(ratios: list[list[Tensor]], step: int) -> Tensor:
    """KTO, [G]: the first completion of each row about the mean of all second ones."""
    z0 = torch.stack([other for _, other in ratios]).mean().detach()
    assert z0 > 0, "the baseline lies on its bound: no test"
    gains = [0.1 * (own - z0) for own, _ in ratios]
    wanted = [is_wanted(i) for i in global_batch(step)]
    return torch.stack(
        [
            1 - gain.sigmoid() if label else 1.5 * (1 - (-gain).sigmoid())
            for gain, label in zip(gains, wanted, strict=True)
        ]
    )


def _row_loss(objective: ObjectiveName, tokens: list[Tensor], ref: Tensor | None) -> Tensor:
    """Of one row, from the log-probs of the tokens of each completion, and the sums of the reference."""
    if objective == "sft":
        return -tokens[0].sum()
    if objective == "orpo":
        odds = [p / (1 - p) for p in (each.mean().exp() for each in tokens)]
        return -tokens[0].mean() - 0.1 * (odds[0] / odds[1]).log().sigmoid().log()
    ratios = _ratios(tokens, ref)
    if objective == "sigmoid_norm":
        ratios = [ratio / len(each) for ratio, each in zip(ratios, tokens, strict=True)]
    wrong = 0.1 if objective == "smoothed" else 0.0
    margins = [0.1 * (better - worse) for better, worse in combinations(ratios, 2)]
    return sum(
        (-(1 - wrong) * margin.sigmoid().log() - wrong * (-margin).sigmoid().log() for margin in margins),
        start=torch.zeros(()),
    )
