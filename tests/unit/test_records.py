"""Laws of the records: what is written is what is read, complete or not at all."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.config.errors import UserError
from raydpo.evaluate.records import Evaluation, Sample, read_evaluations, summarise, write_evaluation

pytestmark = pytest.mark.unit

NUMBERS = st.floats(-1e6, 1e6)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SAMPLES = st.lists(
    st.builds(Sample, TEXT, TEXT, NUMBERS, NUMBERS, st.integers(0, 4096), st.sampled_from(["stop", "length"])),
    min_size=2,
    max_size=8,
)


def sample(reward: float = 0.5, kl: float = 0.0) -> Sample:
    return Sample("The film", " is good.", reward, kl, 4, "stop")


def evaluation(step: int) -> Evaluation:
    return summarise(step, "policy", [sample(0.1), sample(0.3)], seconds={"sample": 1.5})


@given(samples=SAMPLES, hits=st.lists(st.booleans(), max_size=9), step=st.integers(1, 10**7))
def test_what_is_written_is_read_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, samples: list[Sample], hits: list[bool], step: int
) -> None:
    directory = tmp_path_factory.mktemp("evaluations")
    written = summarise(step, "policy", samples, seconds={"sample": 1.5}, pairs_ranked_right=hits)
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


def test_the_reference_has_not_left_itself() -> None:
    assert summarise(0, "reference", [sample(), sample()], seconds={}).kl.mean == 0
    with pytest.raises(ValueError, match=r"step 0 is the reference and its KL is 0, but 'The film' has 0\.25"):
        summarise(0, "reference", [sample(), sample(kl=0.25)], seconds={})


def test_an_evaluation_without_pairs_has_no_pair_accuracy() -> None:
    assert evaluation(1).pair_accuracy is None
    right = summarise(1, "policy", [sample(), sample()], seconds={}, pairs_ranked_right=[True, True, False, True])
    assert right.pair_accuracy is not None
    assert right.pair_accuracy.mean == 0.75


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_samples_are_the_users_to_mend(count: int) -> None:
    with pytest.raises(UserError, match=f"{count} samples at step 3 give no interval"):
        summarise(3, "policy", [sample()] * count, seconds={})
