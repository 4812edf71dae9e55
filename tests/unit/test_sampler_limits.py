"""Laws of the sampler's limits: what no engine takes is refused before one starts, with what to set instead."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from raydpo.config.schema import Decoding, RunFile, Sampler
from raydpo.data.prompts import Prompt
from raydpo.errors import UserError
from raydpo.rollout.limits import check_positions, check_prompts

pytestmark = pytest.mark.unit

NAME = {"name": "x", "output_dir": "/tmp/x", "model": {"path": "/m"}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sample": {"prompts": ["/p"], "decoding": {"temperature": 0}}}, "temperature=0 gives the same completion 4"),
        ({"data": {"train": ["/p"]}, "seed": 2**62}, "seed"),
        (
            {"sample": {"prompts": ["/p"], "decoding": {"max_tokens": 64}}, "sampler": {"max_model_len": 64}},
            "sample.decoding.max_tokens=64 leaves no room for a prompt",
        ),
        (
            {
                "data": {"train": ["/p"]},
                "evaluate": {"prompts": ["/p"], "decoding": {"max_tokens": 600}},
            },
            "evaluate.decoding.max_tokens=600 leaves no room for a prompt within sampler.max_model_len=512",
        ),
    ],
)
def test_what_the_run_file_alone_shows_is_refused_when_it_is_read(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        RunFile.model_validate(NAME | change)


def test_an_evaluation_may_be_greedy() -> None:
    evaluate = {"prompts": ["/p"], "decoding": {"temperature": 0}}
    RunFile.model_validate(NAME | {"data": {"train": ["/p"]}, "evaluate": evaluate})


@pytest.mark.parametrize(
    "config",
    [
        {"max_position_embeddings": 128},
        {"n_positions": 128},
        {"text_config": {"max_position_embeddings": 128}, "max_position_embeddings": 512},
        {"max_position_embeddings": 128, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        {"max_position_embeddings": 128, "rope_scaling": None},
    ],
)
def test_more_tokens_than_positions_are_refused_and_as_many_are_not(config: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match=r"max_model_len=129 is more than the 128 positions of model '/m'; set it to 128"
    ):
        check_positions("/m", config, Sampler(max_model_len=129))
    check_positions("/m", config, Sampler(max_model_len=128))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"max_position_embeddings": 128, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"max_position_embeddings": 128, "rope_parameters": {"rope_type": "linear", "factor": 4.0}},
    ],
)
def test_positions_that_are_unknown_or_stretched_are_left_to_vllm(config: dict[str, Any]) -> None:
    check_positions("/m", config, Sampler(max_model_len=512))


def test_a_prompt_without_room_for_its_completion_is_named_with_file_and_row() -> None:
    prompts = [Prompt("a", [0] * size, f"p.jsonl row {size}") for size in (3, 9, 5)]
    sampler = Sampler(max_model_len=16)
    check_prompts(prompts, Decoding(max_tokens=7), sampler)
    with pytest.raises(UserError, match=r"p.jsonl row 9 has a prompt of 9 tokens; .*needs 17.*Set max_model_len to 17"):
        check_prompts(prompts, Decoding(max_tokens=8), sampler)
