"""What the rooms below the stages are given of a run file."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.schema import RunFile
from raydpo.stages.values import RunValues

pytestmark = pytest.mark.unit

GIVEN: list[Callable[[RunValues], Any]] = [
    RunValues.rows,
    RunValues.sft_rows,
    RunValues.training,
    RunValues.sft_training,
    RunValues.evaluations,
    RunValues.scoring,
    RunValues.scoring_beside,
    RunValues.sampling,
    RunValues.processes,
]


@pytest.fixture
def values(tmp_path: Path) -> RunValues:
    """Of a run with all stages."""
    prompts = {"prompts": ["prompts.jsonl"]}
    tree = {
        "name": "name-of-the-run",
        "output_dir": str(tmp_path / "out"),
        "model": {"path": str(tmp_path / "model")},
        "sft": {"train": ["sft.jsonl"]},
        "sample": prompts,
        "evaluate": prompts,
    }
    return RunValues(RunFile.model_validate(tree))


@pytest.mark.parametrize("given", GIVEN, ids=lambda given: given.__name__)
def test_values_go_to_other_processes_and_hold_no_run_file(
    given: Callable[[RunValues], Any], values: RunValues
) -> None:
    sent = pickle.dumps(given(values))
    assert vars(pickle.loads(sent)).keys() == vars(given(values)).keys()
    assert b"name-of-the-run" not in sent
    assert b"RunFile" not in sent


def test_a_run_with_an_sft_stage_starts_from_its_export_and_the_stage_itself_from_the_run_files_model(
    values: RunValues, tmp_path: Path
) -> None:
    export = str(tmp_path / "out/sft/export")
    assert values.training().model == values.training().reference_model == values.scoring().model == export
    assert values.sft_training().model == values.sft_rows().model == str(tmp_path / "model")
