"""A run that something went wrong with: killed, crashed, or robbed of a file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cluster.conftest import Run
from tests.cluster.outputs import committed, metrics_of, ready_to_train, steps_committed
from tests.cluster.processes import PYTHON, job, raydpo
from tests.cluster.runfiles import small_run, write_run_file

pytestmark = pytest.mark.cluster

STEPS = 48


@pytest.fixture
def prepared(small: Run, inputs: Path, tmp_path: Path) -> Run:
    """The small run just before its training."""
    return Run(ready_to_train(small.output_dir, inputs, tmp_path), tmp_path / "out", small.job, set(), [])


def test_a_killed_job_started_again_ends_bitwise_as_an_undisturbed_one(small: Run, prepared: Run) -> None:
    with job(PYTHON, "-m", "raydpo", "train", prepared.run_file) as started:
        started.wait_until(lambda: committed(prepared.output_dir) >= 3)
        started.kill_family()  # all at once, as when the machine loses its power
    assert 3 <= committed(prepared.output_dir) < STEPS, "it was killed too late: no test"
    assert not (prepared.output_dir / "result.json").exists()
    for snapshot in (prepared.output_dir / "train" / "ray").rglob("*.json"):
        snapshot.write_text("garbled: it is Ray's own, and must decide nothing")
    raydpo("train", prepared.run_file).succeeded()
    assert metrics_of(prepared.output_dir) == metrics_of(small.output_dir)


def test_a_killed_worker_is_replaced_and_the_run_ends_bitwise_as_an_undisturbed_one(small: Run, prepared: Run) -> None:
    with job(PYTHON, "-m", "raydpo", "train", prepared.run_file) as started:
        started.wait_until(lambda: committed(prepared.output_dir) >= 3)
        workers = [process for process in started.family() if "RayTrainWorker" in " ".join(process.cmdline())]
        assert len(workers) == 2
        workers[1].kill()
        assert committed(prepared.output_dir) < STEPS, "it was killed too late: no test"
        finished = started.wait().succeeded()
    assert finished.stdout.count("step-0 law holds") == 1, "the group that replaced the killed one began anew"
    assert metrics_of(prepared.output_dir) == metrics_of(small.output_dir)


def test_training_without_a_whole_reference_is_refused_with_the_remedy(prepared: Run) -> None:
    shards = sorted((prepared.output_dir / "reference").glob("*/*.parquet"))
    shards[0].unlink()
    refused = raydpo("train", prepared.run_file)
    assert refused.exit_code == 2
    assert "lacks 64 of 192 completions" in refused.stderr
    assert "run `raydpo precompute` with this run file" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (prepared.output_dir / "train").exists()


def test_a_run_goes_on_with_other_workers_under_another_stage(small: Run, prepared: Run) -> None:
    half = f"train.max_steps={STEPS // 2}"
    raydpo("train", prepared.run_file, half, "train.keep_every=10").succeeded()
    assert steps_committed(prepared.output_dir) == [10, 20, STEPS // 2 - 1, STEPS // 2]
    raydpo("train", prepared.run_file, "train.workers.count=4", "train.zero.stage=3").succeeded()
    found, expected = metrics_of(prepared.output_dir), metrics_of(small.output_dir)
    assert found[: STEPS // 2] == expected[: STEPS // 2]
    assert [step["step"] for step in found] == [step["step"] for step in expected]
    for name in ("loss", "grad_norm", "logps/chosen"):
        assert [step[name] for step in found] == pytest.approx([step[name] for step in expected], rel=1e-5)


def test_a_finished_run_is_not_taken_for_another_one(small: Run, inputs: Path, tmp_path: Path) -> None:
    output_dir = shutil.copytree(small.output_dir, tmp_path / "out")
    refused = raydpo("train", write_run_file(tmp_path / "run.yaml", small_run(inputs, output_dir) | {"seed": 1}))
    assert refused.exit_code == 2
    assert "committed step 48 of another run: seed was 0 and is 1" in refused.stderr
    assert metrics_of(output_dir) == metrics_of(small.output_dir)


def test_a_finished_run_whose_export_is_gone_exports_its_last_commit_again(
    small: Run, inputs: Path, tmp_path: Path
) -> None:
    output_dir = shutil.copytree(small.output_dir, tmp_path / "out")
    shutil.rmtree(output_dir / "exports")
    (output_dir / "train" / "metrics.jsonl").unlink()
    done = raydpo("train", write_run_file(tmp_path / "run.yaml", small_run(inputs, output_dir))).succeeded()
    assert "48 steps are done already" in done.stdout
    export = output_dir / "exports" / "step-000048"
    result = done.status["result"]
    assert result["export"] == str(export)
    assert (result["first_loss"], result["last_loss"]) == (None, None), "nothing is left that says them"
    weights = "model.safetensors"
    assert (export / weights).read_bytes() == (small.output_dir / "exports" / export.name / weights).read_bytes()
