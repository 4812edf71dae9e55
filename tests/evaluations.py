"""Evaluations for the tests, made from nothing in particular."""

from __future__ import annotations

from typing import Any

from raydpo.config.schema import Decoding
from raydpo.evaluate.origin import Origin


def origin(**parts: Any) -> Origin:
    """One and the same origin, but for the parts that are given."""
    usual: dict[str, Any] = {
        "weights": "w",
        "reference": "r",
        "tokenizer": "t",
        "prompts": "p",
        "decoding": Decoding(),
        "scorer": "length",
        "scorer_source": "s",
        "seed": 0,
        "dtype": "float32",
        "fp32_head": False,
        "device": "cpu",
        "sampler_device": "cpu",
        "scoring_version": 2,
    }
    return Origin(**usual | parts)
