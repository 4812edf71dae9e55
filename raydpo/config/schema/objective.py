"""The section `train.objective`: the preference loss and its arguments."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raydpo.config.schema.section import Names, Section


class ObjectiveSettings(Section):
    """The preference loss, in TRL's words; docs/objectives.md has all of them.

    Beside the names and weights, every key is an argument of a loss. One that is left out is the loss's own default;
    one that is set for a loss without it is an error.
    """

    loss_type: Names = ["sigmoid"]  # a name, or the names of a weighted sum
    loss_weights: list[Annotated[float, Field(ge=0)]] | None = None  # one a name; by default 1
    name: Literal["dpo"] | None = None  # what run files said before there were other losses: dpo is sigmoid
    beta: float | None = Field(None, gt=0)
    label_smoothing: float | None = Field(None, ge=0, lt=0.5)
    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] | None = None
    f_alpha_divergence_coef: float | None = None
    ld_alpha: float | None = Field(None, ge=0, le=1)
    use_margin: bool | None = None
    use_weighting: bool | None = None
    discopop_tau: float | None = Field(None, gt=0)
    simpo_gamma: float | None = Field(None, ge=0)
    cpo_alpha: float | None = Field(None, ge=0)
    desirable_weight: float | None = Field(None, ge=0)
    undesirable_weight: float | None = Field(None, ge=0)
    unlikelihood_alpha: float | None = Field(None, ge=0, le=1)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that are set."""
        return self.model_dump(exclude={"loss_type", "loss_weights", "name"}, exclude_none=True)

    @model_validator(mode="after")
    def _one_name(self) -> ObjectiveSettings:
        if self.name and self.loss_type not in (["sigmoid"], ["dpo"]):
            asked = ", ".join(self.loss_type)
            raise ValueError(f"name={self.name} and loss_type={asked} are not the same; remove name")
        return self
