"""The section `reward`: a reward model trained on the run's preference rows."""

from __future__ import annotations

from pydantic import Field, model_validator

from raydpo.config.schema.section import ModelLocation, PositiveInt
from raydpo.config.schema.training import Training


class Reward(Training):
    """A Bradley-Terry reward model; what TRL's RewardTrainer has too goes by its names."""

    model: ModelLocation | None = None  # what it starts from; default: what the policy starts from
    heads: PositiveInt = 1  # more than 1: an ensemble on one trunk, whose mean is the reward
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    center_rewards_coefficient: float = Field(0.0, ge=0)  # TRL's default, None, is 0; Eisenstein et al. 2023 use 0.01
    use_margin: bool = False  # subtract the pair's margin, of the column that data.columns.margin names

    @model_validator(mode="after")
    def _no_logits_are_there(self) -> Reward:
        if self.metrics:
            raise ValueError(f"metrics={self.metrics} are of logits, and a reward model makes none; leave them out")
        return self
