"""Evaluations for the tests, made from nothing in particular."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raydpo.config.load import load_run_file
from raydpo.config.schema import Decoding
from raydpo.evaluate.origin import Origin
from raydpo.evaluate.records import RatedSample, summarise, write_evaluation
from raydpo.stages.values import RunValues
from raydpo.workspace.asked import origin_of


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


def rated(prompt: str, completion: str, reward: float, kl: float, length: int, finish_reason: str) -> RatedSample:
    """A sample with the numbers that all have."""
    return RatedSample(prompt, completion, finish_reason, {"reward": reward, "kl": kl, "length": length})


def evaluate_in_words(
    run_file: Path, prompts: Sequence[str], steps: Sequence[int], overrides: Sequence[str] = ()
) -> None:
    """Leave evaluations of a run whose samples are longer the later they were drawn; no model is asked.

    All sets have the same prompts.
    """
    values = RunValues(load_run_file(run_file, overrides))
    for asked in values.evaluations().everywhere():
        made_from = origin_of(asked, values.layout.reference_model)
        for step in steps:
            samples = [rated(prompt, " good" + " very" * step, 1.0, float(step), 3, "stop") for prompt in prompts]
            found = summarise(step, "m", samples, made_from=made_from, seconds={}, prompt_set=asked.prompt_set)
            write_evaluation(found, asked.directory)
