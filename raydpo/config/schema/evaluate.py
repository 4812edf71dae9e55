"""The section `evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from raydpo.config.schema.rating import Rewarded
from raydpo.config.schema.reference import Pool
from raydpo.config.schema.sampling import Decoding
from raydpo.config.schema.section import Cpus, Location, PositiveInt, Section


class PromptSet(Section):
    """Held-out prompts of one kind."""

    prompts: list[Location]
    column: str = "prompt"
    limit: PositiveInt | None = 256
    reference_column: str | None = None  # answers beside the prompts, which samples are held against


class PolicyPool(Pool):
    """The pool that scores; it works beside training, so it asks for little unless told otherwise."""

    cpus: Cpus = 0.5


class Evaluate(Rewarded, PromptSet):
    """Sample held-out prompts from reference and policy and compare.

    Its own prompts at decoding.temperature are what training looks at; all sets are sampled at all temperatures.
    """

    sets: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], PromptSet] = {}  # such as other domains
    decoding: Decoding = Decoding()
    temperatures: list[Annotated[float, Field(ge=0)]] = []  # further ones
    pool: PolicyPool = PolicyPool()  # scores samples and held-out pairs by policy and reference
    tokens_per_batch: PositiveInt = 4096
    samples_in_report: PositiveInt = 16

    @property
    def all_sets(self) -> Mapping[str, PromptSet]:
        """The sets of prompts by name; the section's own come first and have an empty name."""
        return {"": self, **self.sets}

    @property
    def all_temperatures(self) -> list[float]:
        """Each once; that of `decoding` comes first."""
        return list(dict.fromkeys([self.decoding.temperature, *self.temperatures]))
