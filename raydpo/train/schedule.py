"""The learning rate as a pure function of the step, so that resuming needs no scheduler state."""

from __future__ import annotations

import math
from typing import Literal


def learning_rate(
    step: int, *, peak: float, warmup_steps: int, num_steps: int, schedule: Literal["constant", "linear", "cosine"]
) -> float:
    """The rate of step `step` (from 0): linear warm-up over warmup_steps, then the schedule down to 0 at num_steps.

    The first step already moves: with w warm-up steps it uses peak / w.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    if schedule == "linear":
        return peak * (1 - progress)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    return peak
