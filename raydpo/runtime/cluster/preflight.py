"""What a stage asks of the cluster, held against what the cluster has, before anything expensive starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import ray

from raydpo.config.schema import Evaluate, Judge, Pool, Reward, Sampler, Sft, Train, Workers
from raydpo.errors import UserError
from raydpo.workspace.objective import needs_reference

READER_CPUS = 0.25  # of one Ray Data task that reads rows for training


@dataclass(frozen=True)
class Demand:
    """`count` processes that each need this much, at the same time."""

    what: str  # the run file's key to lower
    count: int
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Processes:
    """What a run file says of the processes of its stages; None for a stage that it has not."""

    sft: Sft | None
    reward: Reward | None
    samples: bool  # whether it has a sample stage
    scorers: Pool
    train: Train
    sampler: Sampler
    evaluate: Evaluate | None
    raters: Mapping[str, Pool] = field(default_factory=dict)  # by stage, where a model rates: sample, evaluate, bestofn
    judge: Judge | None = None
    best_of_n: bool = False  # whether it has this stage


def bills(asked: Processes, stage: str) -> dict[str, list[Demand]]:
    """What runs at once, at its minimum, in each phase of a stage; "run" has the phases of all."""
    pool = asked.scorers
    sampler = asked.sampler
    train = asked.train
    samplers = [Demand("sampler", sampler.actors, sampler.cpus, sampler.gpus)]
    scorers = [Demand("reference.pool", pool.min_actors, pool.cpus, pool.gpus)]
    raters = {stage: [Demand("rating.pool", p.min_actors, p.cpus, p.gpus)] for stage, p in asked.raters.items()}
    evaluation: list[Demand] = []
    if asked.evaluate:
        own = asked.evaluate.pool
        policies = Demand("evaluate.pool", own.min_actors, own.cpus, own.gpus)
        evaluation = [*samplers, policies, *raters.get("evaluate", [])]
    engines_stay = stage == "run" and (asked.samples or asked.evaluate)  # from the first sample to the last
    beside = evaluation or (samplers if engines_stay else [])
    scored = stage == "precompute" or (stage in ("train", "run") and needs_reference(train))
    phases = {
        "sft": _workers("sft", asked.sft.workers) if asked.sft else [],
        "sample": [*samplers, *raters.get("sample", [])] if asked.samples else [],
        "reward": [*_workers("reward", asked.reward.workers), *(samplers if engines_stay else [])]
        if asked.reward
        else [],
        "precompute": [*scorers, *(samplers if engines_stay else [])] if scored else [],
        "train": [
            *_workers("train", train.workers),
            *beside,
            *(scorers if train.reference == "overlap" and scored else []),
        ],
        "evaluate": evaluation,
        "judge": _served_judges(asked.judge) if asked.judge else [],
        "bestofn": [*samplers, *raters.get("bestofn", [])] if asked.best_of_n else [],
    }
    return {name: demands for name, demands in phases.items() if demands and stage in (name, "run")}


def _served_judges(judge: Judge) -> list[Demand]:
    """Judges are heard one after the other, so that the largest server is what must fit."""
    served = [(name, one) for name, one in judge.judges.items() if one.serve]
    if not served:
        return []
    name, largest = max(served, key=lambda item: (item[1].gpus, item[1].cpus))
    return [Demand(f"judge.judges.{name}", 1, largest.cpus, largest.gpus)]


def _workers(section: str, workers: Workers) -> list[Demand]:
    return [
        Demand(f"{section}.workers", workers.least, workers.cpus, workers.gpus),
        Demand("readers", workers.least, READER_CPUS, 0),
    ]


def beside_scorers(asked: Processes) -> list[Demand]:
    """What training and evaluation take while scorers work ahead of them."""
    return [demand for demand in bills(asked, "run")["train"] if demand.what != "reference.pool"]


def room_for_scorers(pool: Pool, beside: Sequence[Demand]) -> int:
    """Scorers that fit beside training as the cluster is now, and leave its workers and readers what they need.

    A pool that took all that is free would keep readers from running, and the readers' rows are what it waits for.
    """
    have = ray.cluster_resources()
    room = [
        (have.get(resource, 0) - sum(d.count * getattr(d, amount) for d in beside)) // getattr(pool, amount)
        for resource, amount in (("CPU", "cpus"), ("GPU", "gpus"))
        if getattr(pool, amount)
    ]
    return int(min(room, default=pool.max_actors))


def check_fits(asked: Sequence[Demand]) -> None:
    """Raise UserError with the whole bill when the cluster cannot hold the demands at once, or one fits no node."""
    have = ray.cluster_resources()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for resource, amount in (("CPU", "cpus"), ("GPU", "gpus")):
        need = sum(d.count * getattr(d, amount) for d in asked)
        if need > have.get(resource, 0) + 1e-9:
            bill = ", ".join(f"{d.what} {d.count} x {getattr(d, amount):g}" for d in asked if getattr(d, amount))
            raise UserError(
                f"the run needs {need:g} {resource}s at once ({bill}); the cluster has {have.get(resource, 0):g}. "
                f"Lower the counts or {amount} of these sections, or give the cluster more (cluster.num_cpus for a "
                "local one: the number is for scheduling and may exceed the cores)."
            )
        for demand in asked:
            each = getattr(demand, amount)
            if each > max(node.get(resource, 0) for node in nodes) + 1e-9:
                raise UserError(f"{demand.what} asks {each:g} {resource}s for one process; no node has as many.")
