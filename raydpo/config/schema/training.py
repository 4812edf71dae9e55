"""The sections `train` and `sft`, and what both kinds of training share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from raydpo.config.schema.objective import ObjectiveSettings
from raydpo.config.schema.section import Cpus, Location, NonNegativeInt, PositiveInt, Section


class Workers(Section):
    """The Ray Train worker group."""

    count: PositiveInt = 1
    min_count: PositiveInt | None = None  # go on with so few where the cluster has no room for `count`
    cpus: Cpus = 1
    gpus: float = Field(0, ge=0)

    @property
    def least(self) -> int:
        """Workers that training must have."""
        return self.min_count or self.count

    @model_validator(mode="after")
    def _least_is_not_most(self) -> Workers:
        if self.least > self.count:
            raise ValueError(f"workers.min_count={self.min_count} is more than workers.count={self.count}; lower it")
        return self


class Optimizer(Section):
    """The optimizer and the shape of its learning rate; lr is the peak."""

    name: Literal["rmsprop", "adamw"] = "rmsprop"
    lr: float = Field(1e-6, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: NonNegativeInt = 150
    max_grad_norm: float = Field(10.0, ge=0)  # 0 switches clipping off


class Zero(Section):
    """DeepSpeed's sharding."""

    stage: Literal[0, 1, 2, 3] = 2
    offload_optimizer: bool = False


class Training(Section):
    """What every kind of training shares."""

    workers: Workers = Workers()
    epochs: PositiveInt = 1
    max_steps: PositiveInt | None = None
    global_batch_size: PositiveInt = 64  # rows: pairs, ranked groups or single completions
    tokens_per_microbatch: PositiveInt = 4096  # packed tokens that one forward pass may hold
    tail: Literal["carry", "drop"] = "carry"  # the epoch's last partial batch: into the next epoch, or dropped
    optimizer: Optimizer = Optimizer()
    zero: Zero = Zero()
    activation_checkpointing: bool = False
    checkpoint_every: PositiveInt = 100  # steps
    keep_last: PositiveInt = 2  # checkpoints
    keep_every: PositiveInt | None = None  # steps: checkpoints at multiples of it stay for good
    max_failures: NonNegativeInt = 3  # restarts of the worker group before the run gives up
    metrics: list[Literal["entropy", "mean_token_accuracy", "logits"]] = []  # of every token, from all logits

    @model_validator(mode="after")
    def _batch_divides_by_workers(self) -> Training:
        size = self.global_batch_size
        count = self.workers.count
        if self.workers.min_count:
            if size < count:
                raise ValueError(f"global_batch_size={size} is less than workers.count={count}; lower workers.count")
        elif size % count:
            below = size - size % count
            above = below + count
            nearest = f"{below} or {above}" if below else f"{above}"
            fitting = ", ".join(str(workers) for workers in range(1, size + 1) if size % workers == 0)
            raise ValueError(
                f"global_batch_size={size} does not divide by workers.count={count}; set it to {nearest}, or keep it, "
                f"as a run that resumes must, with {fitting} workers"
            )
        return self


class Train(Training):
    """Preference training."""

    objective: ObjectiveSettings = ObjectiveSettings()
    reference: Literal["precompute", "overlap"] = "precompute"  # overlap: scored ahead of the steps, while they train
    evaluate_every: PositiveInt | None = None  # steps; the last step is evaluated in any case
    keep_best: Literal["reward", "pair_accuracy"] | None = None  # the checkpoint that evaluated best stays too
    step0_tolerance: float = Field(0.5, gt=0)  # largest |Δ logp| per sequence, in nats, that the first batch may show


class Sft(Training):
    """Supervised fine-tuning before preference training; its export becomes model and reference."""

    train: list[Location]  # rows with a completion and, optionally, a prompt
    prompt: str = "prompt"
    completion: str = "completion"
