"""What an evaluation was made from: everything that decides one of its numbers, part by part."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raydpo.config.schema import Decoding

VERSION = 3  # of the records and of how their numbers come about; 2 had a fixed list of measures


@dataclass(frozen=True)
class Origin:
    """The parts by name; messages call them so. A digest stands for what is too long to keep."""

    weights: str  # digest, of the model
    reference: str  # the same of the reference model
    tokenizer: str  # digest of its files and of the stop tokens
    prompts: str  # digest of their contents
    decoding: Decoding
    scorer: str
    scorer_source: str  # digest of the file that defines it
    seed: int
    dtype: str
    fp32_head: bool
    device: str  # that scores
    sampler_device: str
    scoring_version: int  # version of our own arithmetic
    date: datetime.date | None = None  # that chat templates print
    training: str | None = None  # digest of the identity that the model's mark names; None of a model without one
    held_out: str | None = None  # digest of the tokens; None without held-out pairs
    answers: str | None = None  # digest of the reference answers; None where samples are held against none
    record_version: int = VERSION

    @property
    def draws_policy(self) -> bool:
        """Whether completions come from π itself: at temperature 1 and from the whole vocabulary."""
        return self.decoding.model_copy(update={"max_tokens": Decoding().max_tokens}) == Decoding()

    def differences(self, asked: Mapping[str, Any]) -> list[str]:
        """Names of the parts that are not as asked; those that `asked` does not hold are not compared."""
        return [name for name, value in vars(self).items() if name in asked and asked[name] != value]
