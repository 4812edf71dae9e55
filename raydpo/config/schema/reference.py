"""The section `reference`: the reference model and the pool that scores with it."""

from __future__ import annotations

from pydantic import Field, model_validator

from raydpo.config.schema.section import Cpus, Location, ModelLocation, PositiveInt, Section


class Pool(Section):
    """An elastic pool of actors and what each of them asks of the cluster."""

    min_actors: PositiveInt = 1
    max_actors: PositiveInt = 1
    cpus: Cpus = 1
    gpus: float = Field(0, ge=0)

    @model_validator(mode="after")
    def _floor_below_ceiling(self) -> Pool:
        if self.min_actors > self.max_actors:
            raise ValueError(f"min_actors={self.min_actors} is above max_actors={self.max_actors}")
        return self


class Reference(Section):
    """The reference model and the pool that scores with it."""

    model: ModelLocation | None = None  # default: the export of the sft stage where there is one, else model.path
    store: Location | None = None  # default: <output_dir>/reference; a sweep shares one, in a directory or at s3://...
    pool: Pool = Pool()
    tokens_per_batch: PositiveInt = 4096
    keep_token_logps: bool = True
