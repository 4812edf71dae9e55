"""Laws of the records: what is written is what is read, complete or not at all."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.config.schema import Decoding
from raydpo.errors import UserError
from raydpo.evaluate.records import (
    Evaluation,
    RankedPair,
    RatedSample,
    Records,
    read_records,
    summarise,
    write_evaluation,
)
from tests.evaluations import origin, rated

pytestmark = pytest.mark.unit

NUMBERS = st.floats(-1e6, 1e6)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SAMPLES = st.lists(
    st.builds(rated, TEXT, TEXT, NUMBERS, NUMBERS, st.integers(0, 4096), st.sampled_from(["stop", "length"])),
    min_size=2,
    max_size=8,
    unique_by=lambda sample: sample.prompt,
)
PAIRS = st.lists(st.builds(RankedPair, st.integers(0, 3), st.booleans()), max_size=9)
ORIGINS = st.builds(
    origin,
    decoding=st.builds(Decoding, temperature=st.floats(0, 2), max_tokens=st.integers(1, 9)),
    date=st.none() | st.dates(),
    held_out=st.none() | TEXT,
)


def sample(reward: float = 0.5, kl: float = 0.0, prompt: str = "The film") -> RatedSample:
    return rated(prompt, " is good.", reward, kl, 4, "stop")


def evaluation(step: int, **parts: Any) -> Evaluation:
    samples = [sample(0.1), sample(0.3, prompt="The plot")]
    return summarise(step, "policy", samples, made_from=origin(**parts), seconds={"sample": 1.5})


def read_evaluations(directory: Path) -> list[Evaluation]:
    return read_records(directory, lambda step: {}).valid


@given(samples=SAMPLES, pairs=PAIRS, step=st.integers(1, 10**7), made_from=ORIGINS)
def test_what_is_written_is_read_back_exactly(
    tmp_path_factory: pytest.TempPathFactory,
    samples: list[RatedSample],
    pairs: list[RankedPair],
    step: int,
    made_from: Any,
) -> None:
    directory = tmp_path_factory.mktemp("evaluations")
    written = summarise(step, "policy", samples, made_from=made_from, seconds={"sample": 1.5}, pairs=pairs)
    write_evaluation(written, directory)
    assert read_evaluations(directory) == [written]


def test_evaluations_come_by_rising_step_whatever_the_order_of_writing(tmp_path: Path) -> None:
    for step in (1_000_000, 0, 120, 20):  # by name, step-1000000 would come before step-000020
        write_evaluation(evaluation(step), tmp_path)
    assert [each.step for each in read_evaluations(tmp_path)] == [0, 20, 120, 1_000_000]


def test_the_file_name_carries_the_step(tmp_path: Path) -> None:
    assert write_evaluation(evaluation(120), tmp_path / "evaluations").name == "step-000120.json"


def test_evaluating_a_step_again_replaces_it(tmp_path: Path) -> None:
    write_evaluation(evaluation(5), tmp_path)
    again = replace(evaluation(5), model="policy again")
    write_evaluation(again, tmp_path)
    assert read_evaluations(tmp_path) == [again]


def test_a_write_that_is_cut_short_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_evaluation(evaluation(5), tmp_path)

    def killed(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_evaluation(replace(evaluation(5), model="half written"), tmp_path)
    assert [each.model for each in read_evaluations(tmp_path)] == ["policy"]


def test_a_directory_that_is_not_there_holds_no_evaluations(tmp_path: Path) -> None:
    assert read_evaluations(tmp_path / "evaluations") == []


@pytest.mark.parametrize(
    ("content", "complaint"),
    [("", "Invalid JSON"), ('{"step": 7', "Invalid JSON"), ('{"step": "x"}', "step: Input should be a valid integer")],
)
def test_a_broken_file_is_named_not_skipped(tmp_path: Path, content: str, complaint: str) -> None:
    write_evaluation(evaluation(1), tmp_path)
    (tmp_path / "step-000007.json").write_text(content)
    with pytest.raises(UserError, match=rf"step-000007\.json is not an evaluation \({complaint}"):
        read_evaluations(tmp_path)


def test_a_file_under_the_name_of_another_step_is_refused(tmp_path: Path) -> None:
    write_evaluation(evaluation(1), tmp_path).rename(tmp_path / "step-000002.json")
    with pytest.raises(UserError, match=r"step-000002\.json holds step 1"):
        read_evaluations(tmp_path)


PARTS = {
    "weights": "others",
    "reference": "others",
    "tokenizer": "another",
    "prompts": "others",
    "decoding": Decoding(temperature=0.5),
    "scorer": "vader",
    "scorer_source": "changed",
    "seed": 1,
    "dtype": "bfloat16",
    "fp32_head": True,
    "device": "cuda",
    "sampler_device": "cuda",
    "scoring_version": 3,
    "date": datetime.date(2026, 11, 27),
    "held_out": "others",
    "training": "another",
    "answers": "others",
}


@pytest.mark.parametrize("part", PARTS)
def test_a_record_of_something_else_than_is_asked_is_left_out_by_the_part_that_differs(
    tmp_path: Path, part: str
) -> None:
    write_evaluation(evaluation(0), tmp_path)
    write_evaluation(evaluation(5, **{part: PARTS[part]}), tmp_path)

    def asked(step: int) -> Mapping[str, Any]:
        return vars(origin())

    records = read_records(tmp_path, asked)
    assert [each.step for each in records.valid] == [0]
    assert records.left_out == {5: [part]}
    assert f"step 5 ({part})" in records.notice()


def test_every_part_is_compared() -> None:
    assert {*vars(origin())} - {*PARTS} == {"record_version"}, "which has a test of its own"


def test_what_cannot_be_told_any_more_is_not_compared(tmp_path: Path) -> None:
    write_evaluation(evaluation(5, weights="gone", prompts="others"), tmp_path)
    assert read_records(tmp_path, lambda step: {"scorer": "length"}).left_out == {}
    assert read_records(tmp_path, lambda step: {"scorer": "vader"}).left_out == {5: ["scorer"]}


def test_records_of_another_version_are_left_out_not_read(tmp_path: Path) -> None:
    path = write_evaluation(evaluation(5), tmp_path)
    content = json.loads(path.read_text())
    for made_from in ({}, {"made_from": content["made_from"] | {"record_version": 99}}):
        path.write_text(json.dumps({"step": 5, "kl": "of another shape"} | made_from))
        assert read_records(tmp_path, lambda step: {}) == Records([], {5: ["another version of raydpo"]})


def test_nothing_left_out_is_nothing_to_say(tmp_path: Path) -> None:
    assert read_records(tmp_path, lambda step: {}).notice() == ""


def test_the_reference_has_not_left_itself() -> None:
    assert evaluation(0).measures["kl"].mean == 0
    with pytest.raises(ValueError, match=r"step 0 is the reference and its KL is 0, but 'The film' has 0\.25"):
        summarise(0, "reference", [sample(kl=0.25), sample(prompt="b")], made_from=origin(), seconds={})


def test_an_evaluation_without_pairs_has_no_pair_accuracy() -> None:
    assert "pair_accuracy" not in evaluation(1).measures
    pairs = [RankedPair("a", True), RankedPair("a", True), RankedPair("b", False), RankedPair("c", True)]
    measured = summarise(1, "policy", evaluation(1).samples, made_from=origin(), seconds={}, pairs=pairs).measures
    found = measured["pair_accuracy"]
    assert (found.mean, found.n, found.groups) == (0.75, 4, 3)


@pytest.mark.parametrize(
    ("decoding", "exact"),
    [
        (Decoding(), True),
        (Decoding(max_tokens=5), True),
        (Decoding(temperature=0.7), False),
        (Decoding(temperature=0), False),
        (Decoding(top_p=0.9), False),
        (Decoding(top_k=50), False),
    ],
)
def test_only_samples_of_the_policy_itself_have_a_sequence_kl(decoding: Decoding, exact: bool) -> None:
    found = evaluation(1, decoding=decoding)
    assert found.sequence_kl == (found.measures["kl"] if exact else None)


def test_a_prompt_that_comes_twice_is_one_group() -> None:
    samples = [sample(0.1), sample(0.2), sample(0.3, prompt="The plot"), sample(0.6, prompt="The plot")]
    found = summarise(1, "policy", samples, made_from=origin(), seconds={})
    assert {(each.n, each.groups) for each in found.measures.values()} == {(4, 2)}


def test_whatever_samples_have_is_measured() -> None:
    samples = [
        replace(each, numbers=each.numbers | {"exact_match": float(i), "mine": i / 10})
        for i, each in enumerate(evaluation(1).samples)
    ]
    found = summarise(1, "policy", samples, made_from=origin(), seconds={})
    assert [*found.measures] == ["reward", "kl", "length", "exact_match", "mine", "cut", "distinct_2", "self_bleu"]
    assert found.column("mine") == [0.0, 0.1]
    assert (found.measures["mine"].mean, found.measures["exact_match"].mean) == (0.05, 0.5)
    assert found.measures["exact_match"].low > 0, "a share stays within 0 and 1"


def test_completions_that_max_tokens_cut_are_counted() -> None:
    samples = [replace(sample(prompt=str(i)), finish_reason="length" if i < 3 else "stop") for i in range(4)]
    assert summarise(1, "policy", samples, made_from=origin(), seconds={}).measures["cut"].mean == 0.75


@pytest.mark.parametrize("prompts", [[], ["a"], ["a", "a"]])
def test_fewer_than_two_prompts_are_the_users_to_mend(prompts: list[str]) -> None:
    with pytest.raises(
        UserError, match=f"{len(prompts)} prompts, of which {len(set(prompts))} differ, give no interval"
    ):
        summarise(3, "policy", [sample(prompt=prompt) for prompt in prompts], made_from=origin(), seconds={})
