"""The error for training whose numbers are no longer finite, and what a user can do about it."""

from __future__ import annotations

from raydpo.errors import UserError

REMEDY = (
    "Nothing of this step is saved; the last commit stands. Most often the learning rate or beta is too large: lower "
    "train.optimizer.lr or raise warmup_steps, in another output_dir."
)


def diverged(step: int, tensor: str) -> UserError:
    """The error for a state after `step` steps in which a tensor holds a NaN or an infinity."""
    return UserError(f"step {step} has left numbers that are not finite in {tensor}. {REMEDY}")
