"""The stages of a run, whichever of them run together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raydpo.config.schema import RunFile
from raydpo.stages import _timed
from raydpo.stages.values import RunValues

pytestmark = pytest.mark.unit


@pytest.fixture
def run(tmp_path: Path) -> RunFile:
    tree = {"name": "x", "output_dir": str(tmp_path), "model": {"path": "m"}, "data": {"train": ["p.jsonl"]}}
    return RunFile.model_validate(tree)


def kept(run: RunFile) -> list[str]:
    return list(json.loads((Path(run.output_dir) / "timings.json").read_text())["stages"])


def test_stages_that_run_as_jobs_of_their_own_keep_their_seconds_side_by_side(run: RunFile) -> None:
    for stage in ("prepare", "train", "prepare"):
        with _timed(RunValues(run), stage):
            pass
    assert kept(run) == ["prepare", "train"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"stages": 3}'])
def test_a_damaged_table_of_seconds_ends_no_stage(run: RunFile, content: str) -> None:
    (Path(run.output_dir) / "timings.json").write_text(content)
    with _timed(RunValues(run), "train"):
        pass
    assert kept(run) == ["train"]
