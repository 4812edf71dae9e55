"""The sections `sampler` and `sample`: the engines that draw completions, and the rows made from what they draw."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from raydpo.config.schema.rating import Rewarded
from raydpo.config.schema.section import Cpus, Location, PositiveInt, Section


class Decoding(Section):
    """How completions are sampled."""

    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: PositiveInt | None = None  # how many of the likeliest tokens are drawn from; None: all
    max_tokens: PositiveInt = 64

    def named(self) -> dict[str, Any]:
        """The values as names of samples have them: top_k, which came later, only where it is set."""
        return self.model_dump(exclude={"top_k"} if self.top_k is None else None)

    def __str__(self) -> str:
        """The values as a report shows them: `temperature=1.0 top_p=1.0 max_tokens=64`."""
        return " ".join(f"{name}={value}" for name, value in self.named().items())


class Sampler(Section):
    """The vLLM engines that sample; they stay up and swap weights."""

    actors: PositiveInt = 1
    cpus: Cpus = 1  # per actor
    gpus: float = Field(0, ge=0)
    max_model_len: PositiveInt = 512
    max_num_seqs: PositiveInt = 128
    kv_cache_gib: float = Field(1.0, gt=0)  # CPU only
    gpu_memory_utilization: float = Field(0.4, gt=0, lt=1)  # GPU only


class Sample(Rewarded):
    """Sample completions from the reference, score them and compare them."""

    prompts: list[Location]
    column: str = "prompt"
    limit: PositiveInt | None = None  # prompts
    completions_per_prompt: int = Field(4, ge=2)
    pairs: Literal["all", "best_worst"] = "all"  # every two of a prompt, as one ranked row; or one pair a prompt
    decoding: Decoding = Decoding()

    @model_validator(mode="after")
    def _completions_differ(self) -> Sample:
        if self.decoding.temperature == 0:
            raise ValueError(
                f"sample.decoding.temperature=0 gives the same completion {self.completions_per_prompt} times; set a "
                "temperature above 0"
            )
        return self
