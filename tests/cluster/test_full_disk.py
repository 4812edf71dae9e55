"""A full disk before training: named by the stage that meets it, with the file. For training see test_faults.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cluster.conftest import Run
from tests.cluster.disk import Disk
from tests.cluster.processes import Finished, raydpo
from tests.cluster.runfiles import small_run, write_run_file

pytestmark = pytest.mark.cluster

LEFT = 16384  # bytes: for the run file and the like


def assert_names(answer: Finished, file: str) -> None:
    """It is the user's to mend, and said without a traceback of ours."""
    assert answer.exit_code == 2, answer.stderr
    told = answer.status["error"]
    assert file in told
    assert "No space left on device. Make room" in told
    assert "UserError" not in answer.stderr


def test_prepare_names_the_shard_that_it_cannot_write(inputs: Path, own_disk: Disk) -> None:
    run_file = write_run_file(own_disk.path.parent / "run.yaml", small_run(inputs, own_disk.path))
    own_disk.fill(leave=LEFT)
    assert_names(raydpo("prepare", run_file), "/tokens/train/part-")
    own_disk.mend()
    raydpo("prepare", run_file).succeeded()


def test_training_names_the_reference_shard_that_could_not_be_written_ahead_of_it(
    small: Run, inputs: Path, own_disk: Disk, tmp_path: Path
) -> None:
    run = small_run(inputs, tmp_path / "mine")
    run["reference"]["store"] = str(own_disk.path)
    run["train"]["reference"] = "overlap"
    shutil.copytree(small.output_dir / "tokens", tmp_path / "mine" / "tokens")
    own_disk.fill(leave=LEFT)
    assert_names(raydpo("train", write_run_file(tmp_path / "run.yaml", run)), f"{own_disk.path}/")
