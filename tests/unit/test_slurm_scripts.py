"""The batch scripts of cluster/slurm/, run with stand-ins for Slurm, Ray and the driver.

The stand-in for `srun` runs its command once, as the head; that for `ray symmetric-run` runs what stands behind `--`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

SLURM = Path(__file__).parents[2] / "cluster" / "slurm"
STAND_INS = {
    "srun": 'while [[ $1 == --* ]]; do shift; done\nexec "$@"',
    "ray": 'echo "$@" >>"$CALLS"\n[[ -n ${NO_HEAD:-} ]] && exit 0\nwhile [[ $1 != -- ]]; do shift; done\nshift\n"$@"',
    "scontrol": 'echo "scontrol $*" >>"$CALLS"',
    "hostname": "echo 10.1.2.3 172.17.0.1",
    # The driver: a training that needs a moment for its commit. Everything else that is asked of Python is the token.
    "python": """\
if [[ $1 == -c ]]; then echo -n secret; exit; fi
stat -c "%a %n" "$RAY_AUTH_TOKEN_PATH" >>"$CALLS"
echo "driver $RAY_AUTH_MODE ${RAY_ADDRESS:-own} $*" >>"$CALLS"
trap 'echo committed >>"$CALLS"; exit 143' TERM
[[ -n ${ENDS:-} ]] && exit "$ENDS"
echo ready >>"$CALLS"
for _ in {1..200}; do sleep 0.05; done""",
}
MULTI = pytest.param("multi_node.sh", id="multi_node")
SINGLE = pytest.param("single_node.sh", id="single_node")


class Job:
    """A batch script that is running, in a directory with the stand-ins first in its PATH."""

    def __init__(self, script: str, folder: Path, **environment: str) -> None:
        commands = folder / ".venv" / "bin"
        commands.mkdir(parents=True)
        for name, body in STAND_INS.items():
            (commands / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (commands / name).chmod(0o755)
        self.calls = folder / "calls"
        self.folder = folder
        self.calls.touch()
        slurm = {"SUBMIT_DIR": str(folder), "JOB_ID": "7", "JOB_NUM_NODES": "2", "CPUS_ON_NODE": "4"}
        slurm |= {"CPUS_PER_TASK": "4"}
        self.process = subprocess.Popen(
            ["bash", SLURM / script, "train", "run.yaml", "train.objective.beta=0.2"],
            env={"PATH": os.environ["PATH"], "CALLS": str(self.calls), "TMPDIR": str(folder)}
            | {"RAY_ADDRESS": "another:6379"}
            | {f"SLURM_{name}": value for name, value in slurm.items()}
            | environment,
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
        )

    def said(self) -> list[str]:
        return self.calls.read_text().splitlines()

    def tell(self, number: signal.Signals) -> None:
        """Signal the script alone, as Slurm does for `--signal=B:…`, once the driver is at work."""
        deadline = time.monotonic() + 20
        while "ready" not in self.said():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        self.process.send_signal(number)

    def end(self) -> int:
        """The exit code. Nothing of the token is left."""
        code = self.process.wait(timeout=30)
        assert [path.name for path in self.folder.iterdir() if path.name not in (".venv", "calls")] == []
        return code


@pytest.mark.parametrize("script", [MULTI, SINGLE])
def test_notice_of_the_end_commits_and_requeues(script: str, tmp_path: Path) -> None:
    job = Job(script, tmp_path)
    job.tell(signal.SIGUSR1)
    assert job.end() == 143
    assert job.said()[-2:] == ["committed", "scontrol requeue 7"]


@pytest.mark.parametrize("script", [MULTI, SINGLE])
def test_a_stop_commits_and_does_not_requeue(script: str, tmp_path: Path) -> None:
    job = Job(script, tmp_path)
    job.tell(signal.SIGTERM)
    assert job.end() == 143
    assert job.said()[-1] == "committed"


@pytest.mark.parametrize("script", [MULTI, SINGLE])
@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_scripts_code_is_the_drivers(script: str, code: int, tmp_path: Path) -> None:
    job = Job(script, tmp_path, ENDS=str(code))
    assert job.end() == code
    assert not any(line.startswith("scontrol") for line in job.said())


def test_several_nodes_get_a_token_and_one_address(tmp_path: Path) -> None:
    job = Job("multi_node.sh", tmp_path, ENDS="0")
    assert job.end() == 0
    start, token, driver = job.said()
    assert start.startswith("symmetric-run --address 10.1.2.3:6379 --min-nodes 2 --num-cpus 4 --num-gpus 0 ")
    assert token == f"600 {tmp_path}/.raydpo-slurm-7/token"
    assert driver == "driver token 10.1.2.3:6379 -m raydpo train run.yaml train.objective.beta=0.2"


def test_one_node_has_a_ray_of_its_own_with_a_token(tmp_path: Path) -> None:
    job = Job("single_node.sh", tmp_path, ENDS="0")
    assert job.end() == 0
    token, driver = job.said()
    assert token.startswith("600 ")
    assert driver == "driver token own -m raydpo train run.yaml train.objective.beta=0.2 cluster.num_cpus=4"


def test_a_head_that_does_not_start_is_a_failure(tmp_path: Path) -> None:
    """Although symmetric-run exits with 0."""
    job = Job("multi_node.sh", tmp_path, NO_HEAD="1")
    assert job.end() == 1
    assert job.process.stderr
    assert "Ray did not start on 10.1.2.3:6379" in job.process.stderr.read()


@pytest.mark.parametrize("script", ["multi_node.sh", "single_node.sh"])
def test_a_command_without_a_run_file_is_refused(script: str) -> None:
    refused = subprocess.run(["bash", SLURM / script, "train"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "usage: sbatch" in refused.stderr
