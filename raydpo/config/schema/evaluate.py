"""The section `evaluate`."""

from __future__ import annotations

from pydantic import Field

from raydpo.config.schema.rating import Rewarded
from raydpo.config.schema.sampling import Decoding
from raydpo.config.schema.section import Location, PositiveInt


class Evaluate(Rewarded):
    """Sample held-out prompts from reference and policy and compare."""

    prompts: list[Location]
    column: str = "prompt"
    limit: PositiveInt | None = 256
    decoding: Decoding = Decoding()
    gpus: float = Field(0, ge=0)  # of the task that scores samples and held-out pairs by policy and reference
    tokens_per_batch: PositiveInt = 4096
    samples_in_report: PositiveInt = 16
