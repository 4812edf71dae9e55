"""A training job as the driver writes it and the workers get it. Ray's own processes pass it on: nothing heavy here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raydpo.config.schema import Timeouts, Training
from raydpo.train.checkpoint.retention import Retention
from raydpo.workspace.lock import Claim

if TYPE_CHECKING:
    from raydpo.objective.contract import AnyObjective


@dataclass(frozen=True)
class NewHeads:
    """The heads that make a reward model of a language model."""

    count: int
    seed: int  # of their weights


@dataclass(frozen=True)
class Job:
    """One training job, preference, sft or reward, as its workers need it."""

    model: str
    dtype: str
    fp32_head: bool
    training: Training
    objective: AnyObjective
    num_steps: int
    identity: str  # hash of what makes this run this run
    directory: Path  # checkpoints, metrics
    claim: Claim  # on output_dir
    timeouts: Timeouts
    retention: Retention  # of checkpoints
    export: Callable[[int], Path]  # where the export of a step goes
    evaluated: bool  # exports are evaluated beside training
    evaluate_every: int | None  # steps between exports; the last step is exported in any case
    step0_tolerance: float | None  # None: no reference to compare with
    confirm_imported: Callable[[], None] | None  # marks imported reference values as verified; None: there are none
    chat_template: str | None = None  # a file: what exports render messages with, instead of the model's own
    heads: NewHeads | None = None  # None: a language model is trained
    reached: Callable[[int], None] | None = None  # told how many steps are done, by those who work ahead of them

    def exports_at(self, step: int) -> bool:
        """Whether the policy is exported when so many steps are done."""
        return step == self.num_steps or (self.evaluate_every is not None and step % self.evaluate_every == 0)
