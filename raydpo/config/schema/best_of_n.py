"""The section `best_of_n`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from raydpo.config.schema.section import Location, Names, PositiveInt, Section


class BestOfN(Section):
    """Keep the best of N completions of the reference by a reward, and measure what that is worth.

    The true reward is evaluate.reward, the decoding evaluate.decoding; what is None here is evaluate's as well.
    """

    n: list[Annotated[int, Field(ge=2, le=128)]] = Field([4, 16, 64], min_length=1)
    samples: int | None = Field(None, ge=2, le=1024)  # of each prompt; None: the largest n
    rewards: Names | None = None  # that select, each in its turn
    prompts: list[Location] | None = None
    column: str | None = None
    limit: PositiveInt | None = None  # prompts

    @property
    def samples_per_prompt(self) -> int:
        """How many completions of each prompt are drawn and rated."""
        return self.samples or max(self.n)

    @model_validator(mode="after")
    def _there_are_n(self) -> BestOfN:
        if self.samples is not None and self.samples < max(self.n):
            raise ValueError(
                f"best_of_n.samples={self.samples} hold no best of {max(self.n)}; set it to {max(self.n)} or more"
            )
        return self
