"""The same job scripts, three ways: on a cluster of their own, attached to one that stands, and submitted to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import Run
from tests.cluster.greedy import transformers_greedy, vllm_greedy
from tests.cluster.outputs import committed, ready_to_train, recorded
from tests.cluster.processes import PYTHON, Finished, job, raydpo
from tests.cluster.runfiles import small_run, write_run_file

pytestmark = pytest.mark.cluster

LIST_JOBS = """
import json
from ray.util.state import list_jobs
print(json.dumps([{"command": job.entrypoint, "status": job.status} for job in list_jobs()]))
"""
SUBMIT = (Path(PYTHON).with_name("ray"), "job", "submit", "--working-dir", ".", "--", "python")


def run_job(*command: str | Path, env: dict[str, str] | None = None) -> Finished:
    with job(*command, env=env) as started:
        return started.wait().succeeded()


def jobs_of(cluster: dict[str, str]) -> list[dict[str, str]]:
    """Every job that the cluster has seen; it must be up to answer."""
    found: list[dict[str, str]] = json.loads(run_job(PYTHON, "-c", LIST_JOBS, env=cluster).stdout)
    return found


def result_of(output_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output_dir / "result.json").read_text())
    return found


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def run_file(inputs: Path, tmp_path: Path, output_dir: Path) -> Path:
    run = small_run(inputs, output_dir)
    run["train"]["max_steps"] = 6
    return write_run_file(tmp_path / "run.yaml", run)


def test_plain_python_runs_on_a_cluster_of_its_own_even_beside_another(
    foreign_cluster: dict[str, str], run_file: Path, output_dir: Path
) -> None:
    before = jobs_of(foreign_cluster)
    with job(PYTHON, "jobs/run.py", run_file) as started:
        started.wait_until(lambda: bool(started.temporary_directories()))
        started.wait().succeeded()
    assert result_of(output_dir)["status"] == "succeeded"
    new = [each["command"] for each in jobs_of(foreign_cluster)[len(before) :]]
    assert not [command for command in new if "jobs/run.py" in command]


def test_a_job_attaches_to_the_cluster_that_ray_address_names_and_leaves_it_up(
    foreign_cluster: dict[str, str], run_file: Path, output_dir: Path
) -> None:
    for stage in ("prepare", "precompute", "train"):
        with job(PYTHON, f"jobs/{stage}.py", run_file, env=foreign_cluster) as started:
            started.wait().succeeded()
            assert not started.temporary_directories()
        assert result_of(output_dir)["stage"] == stage
    ran = [each["command"] for each in jobs_of(foreign_cluster)]
    assert all(any(f"jobs/{stage}.py {run_file}" in command for command in ran) for stage in ("prepare", "train"))


def test_a_submitted_run_finishes_and_its_export_speaks_alike_in_transformers_and_vllm(
    foreign_cluster: dict[str, str], run_file: Path, output_dir: Path
) -> None:
    submitted = raydpo("submit", "run", run_file, env=foreign_cluster).succeeded()
    assert '{"status": "succeeded"' in submitted.stdout
    [line] = raydpo("status", run_file, env=foreign_cluster).succeeded().stdout.splitlines()
    assert line.startswith("SUCCEEDED  small-run-")
    result = result_of(output_dir)
    assert (result["status"], result["result"]["train"]["steps"]) == ("succeeded", 6)
    export = Path(result["result"]["train"]["export"])
    assert vllm_greedy(export) == transformers_greedy(export)


def test_a_stopped_submission_has_committed_the_step_that_it_was_in_and_its_directory_is_free(
    foreign_cluster: dict[str, str], small: Run, inputs: Path, tmp_path: Path
) -> None:
    run_file = ready_to_train(small.output_dir, inputs, tmp_path, epochs=200, checkpoint_every=10**6)
    out = tmp_path / "out"
    raydpo("submit", "train", run_file, "--no-wait", env=foreign_cluster).succeeded()
    with job(PYTHON, "-m", "raydpo", "logs", run_file, env=foreign_cluster) as following:
        following.wait_until(lambda: recorded(out) >= 3)
        again = raydpo("submit", "train", run_file, env=foreign_cluster)
        stopped = raydpo("stop", run_file, env=foreign_cluster).succeeded()
        assert following.wait().exit_code == 143
    assert (again.exit_code, "end it with `raydpo stop small-train-" in again.stderr) == (2, True)
    assert stopped.stdout.startswith("STOPPED    small-train-")
    assert result_of(out)["status"] == "interrupted"
    assert 3 <= committed(out) == recorded(out) < 2400
    raydpo("train", run_file, f"train.max_steps={committed(out) + 1}").succeeded()


def test_a_submission_that_fails_ends_with_the_exit_code_of_its_job(
    foreign_cluster: dict[str, str], run_file: Path
) -> None:
    submitted = raydpo("submit", "train", run_file, env=foreign_cluster)
    assert submitted.exit_code == 2
    assert '"status": "failed"' in submitted.stdout


@pytest.mark.parametrize("command", [("submit", "prepare"), ("prepare",)], ids=" ".join)
def test_without_the_token_a_job_is_refused_in_a_sentence(
    foreign_cluster: dict[str, str], run_file: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "token").write_text("0" * 64)
    wrong = foreign_cluster | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    refused = raydpo(*command, run_file, env=wrong)
    assert refused.exit_code == 2
    assert "does not take this token. Set RAY_AUTH_MODE=token" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_job_that_ray_submits_and_that_fails_is_listed_as_failed(foreign_cluster: dict[str, str]) -> None:
    with job(*SUBMIT, "jobs/train.py", "absent.yaml", env=foreign_cluster) as started:
        assert started.wait().exit_code != 0
    [listed] = [each for each in jobs_of(foreign_cluster) if each["command"].endswith("jobs/train.py absent.yaml")]
    assert listed["status"] == "FAILED"
