"""How a job ends: exit code, result.json, status line, lock."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.load import dump_run_file, load_run_file
from raydpo.config.schema import Data, Model, RunFile
from raydpo.errors import UserError
from raydpo.workspace.outcome import StageJob, Stopped, run_stage

pytestmark = pytest.mark.unit

CHECKOUT = Path(__file__).parents[2]
SLEEPING_JOB = """
import signal, sys, time
from pathlib import Path
from raydpo.workspace.outcome import StageJob, run_stage

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs the tests in the background

def stage():
    try:
        Path(sys.argv[1], "started").touch()
        time.sleep(60)
    finally:
        Path(sys.argv[1], "cleaned").touch()

sys.exit(run_stage(StageJob("train", "small", sys.argv[1], "name: small"), stage))
"""


@pytest.fixture
def run(tmp_path: Path) -> RunFile:
    return RunFile(
        name="small", output_dir=str(tmp_path / "out"), model=Model(path="m"), data=Data(train=["pairs.jsonl"])
    )


def job_of(run: RunFile, stage: str = "train") -> StageJob:
    return StageJob(stage, run.name, run.output_dir, dump_run_file(run))


def result_of(run: RunFile) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(Path(run.output_dir, "result.json").read_text())
    return result


def raising(error: BaseException) -> Any:
    def stage() -> dict[str, Any]:
        raise error

    return stage


def unreachable() -> dict[str, Any]:
    raise AssertionError("the work of a refused job has begun")


def start_sleeping_job(directory: Path, script: str = SLEEPING_JOB) -> subprocess.Popen[str]:
    job = subprocess.Popen(
        [sys.executable, "-c", script, str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=CHECKOUT,
    )
    deadline = time.monotonic() + 30
    while not (directory / "started").exists():
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return job


def test_success_is_exit_code_0_and_the_status_line_is_the_result_file(
    run: RunFile, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_stage(job_of(run), lambda: {"steps": 3}) == 0
    assert json.loads(capsys.readouterr().out) == result_of(run)
    assert {**result_of(run), "seconds": 0} == {
        "status": "succeeded",
        "stage": "train",
        "name": "small",
        "seconds": 0,
        "result": {"steps": 3},
    }


def test_the_resolved_run_file_lies_beside_the_outputs(run: RunFile) -> None:
    run_stage(job_of(run), lambda: {})
    assert load_run_file(Path(run.output_dir, "run.yaml")) == run


def test_a_user_error_is_a_message_without_a_traceback(run: RunFile, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_stage(job_of(run), raising(UserError("pairs.jsonl is empty."))) == 2
    log = Path(run.output_dir, "logs/train.log")
    said = f"raydpo train: pairs.jsonl is empty.\nraydpo train: all output is in {log}\n"
    assert capsys.readouterr().err == said
    assert (result_of(run)["status"], result_of(run)["error"]) == ("failed", "pairs.jsonl is empty.")


def test_a_defect_keeps_its_traceback_and_still_leaves_a_result(
    run: RunFile, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_stage(job_of(run), raising(ZeroDivisionError("of ours"))) == 1
    assert "Traceback" in capsys.readouterr().err
    assert (result_of(run)["status"], result_of(run)["error"]) == ("failed", "ZeroDivisionError: of ours")


def test_a_result_that_json_cannot_hold_is_a_defect(run: RunFile) -> None:
    assert run_stage(job_of(run), lambda: {"loss": float("nan")}) == 1
    assert result_of(run)["status"] == "failed"


@pytest.mark.parametrize(
    ("error", "exit_code", "status"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(0), 130, "interrupted"),  # Ray Train's answer to Ctrl-C
        (SystemExit(1), 130, "interrupted"),  # the same, out of ray.get
        (SystemExit(15), 143, "interrupted"),  # Ray's answer to SIGTERM
        (SystemExit("no"), 1, "failed"),
    ],
)
def test_an_exit_from_inside_is_never_a_success(
    run: RunFile, error: BaseException, exit_code: int, status: str
) -> None:
    assert run_stage(job_of(run), raising(error)) == exit_code
    assert result_of(run)["status"] == status


def test_two_jobs_never_share_an_output_directory(run: RunFile, capsys: pytest.CaptureFixture[str]) -> None:
    job = start_sleeping_job(Path(run.output_dir))
    try:
        assert run_stage(job_of(run), lambda: {}) == 2
        message = capsys.readouterr().err
        assert str(Path(run.output_dir, ".lock")) in message
        assert f"process {job.pid}" in message
        assert not Path(run.output_dir, "result.json").exists()
    finally:
        job.kill()
        job.wait()


def test_a_killed_job_leaves_neither_a_lock_nor_an_older_jobs_success(run: RunFile) -> None:
    assert run_stage(job_of(run, "prepare"), lambda: {}) == 0
    job = start_sleeping_job(Path(run.output_dir))
    job.kill()
    job.wait()
    assert not Path(run.output_dir, "result.json").exists()
    assert run_stage(job_of(run), lambda: {}) == 0


def test_a_job_that_is_refused_before_its_work_leaves_what_an_earlier_one_has_left(run: RunFile) -> None:
    def refuse() -> None:
        raise UserError("no such file")

    assert run_stage(job_of(run), unreachable, refuse) == 2
    assert result_of(run)["error"] == "no such file"  # there was nothing to leave
    assert run_stage(job_of(run, "prepare"), lambda: {}) == 0
    assert run_stage(job_of(run), unreachable, refuse) == 2
    assert (result_of(run)["stage"], result_of(run)["status"]) == ("prepare", "succeeded")
    assert run_stage(job_of(run), raising(UserError("full disk"))) == 2
    assert result_of(run)["status"] == "failed"


@pytest.mark.parametrize(("sent", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_unwinds_the_stage_and_is_reported(tmp_path: Path, sent: signal.Signals, exit_code: int) -> None:
    job = start_sleeping_job(tmp_path)
    job.send_signal(sent)
    stdout, _ = job.communicate(timeout=30)
    assert job.returncode == exit_code
    assert (tmp_path / "cleaned").exists()
    assert json.loads(stdout) == json.loads((tmp_path / "result.json").read_text())
    assert json.loads(stdout)["error"] == sent.name


def test_an_exit_that_ray_has_disguised_is_still_the_signal_that_caused_it(tmp_path: Path) -> None:
    inside_ray_get = SLEEPING_JOB.replace("    finally:", "    except SystemExit:\n        sys.exit(1)\n    finally:")
    job = start_sleeping_job(tmp_path, inside_ray_get)
    job.send_signal(signal.SIGTERM)
    stdout, _ = job.communicate(timeout=30)
    assert (job.returncode, json.loads(stdout)["error"]) == (143, "SIGTERM")


def test_a_stage_that_stopped_in_good_order_says_what_is_saved(run: RunFile) -> None:
    assert run_stage(job_of(run), raising(Stopped("train has committed step 7"))) == 143
    found = result_of(run)
    assert (found["status"], found["error"]) == ("interrupted", "SIGTERM: train has committed step 7")


def test_a_place_that_cannot_be_written_is_named(
    run: RunFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a_file").touch()
    output_dir = str(tmp_path / "a_file/out")
    assert run_stage(job_of(run.model_copy(update={"output_dir": output_dir})), lambda: {}) == 2
    captured = capsys.readouterr()
    assert output_dir in captured.err
    assert json.loads(captured.out)["status"] == "failed"
