"""What a user may get wrong: one clear message, exit code 2, and nothing started or written."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from tests.cluster.conftest import Run
from tests.cluster.local import run as run_command
from tests.cluster.processes import PYTHON, Finished, job, raydpo
from tests.cluster.runfiles import small_run, write_jsonl, write_run_file

Tree = dict[str, Any]
GOOD = {"prompt": "a", "chosen": " b", "rejected": " c"}


@dataclass(frozen=True)
class Mistake:
    """One thing wrong with an otherwise good run file, and what the message must say about it."""

    make: Callable[[Tree, Path], Any]  # changes the run file's tree; may write files below the path
    says: tuple[str, ...]
    stage: str = "run"


def _pairs(tree: Tree, path: Path, *rows: dict[str, Any]) -> None:
    tree["data"]["train"] = [str(write_jsonl(path / "mine.jsonl", rows))]


MISTAKES = {
    "a missing model": Mistake(
        lambda tree, _: tree["model"].update(path="/absent/model"),
        ("'/absent/model' does not exist", "give a directory"),
    ),
    "a missing data file": Mistake(
        lambda tree, _: tree["data"].update(train=["/absent/pairs.jsonl"]),
        ("/absent/pairs.jsonl matches no file", "check"),
    ),
    "an unknown key": Mistake(
        lambda tree, _: tree["train"].update(learning_rat=1), ("unknown key train.learning_rat", "nearest known key is")
    ),
    "a misspelt key": Mistake(
        lambda tree, _: tree["train"].update(epoch=1), ("unknown key train.epoch", "nearest known key is train.epochs")
    ),
    "a number out of range": Mistake(
        lambda tree, _: tree["train"].update(objective={"beta": -0.1}),
        ("train.objective.beta = -0.1", "greater than 0"),
    ),
    "a batch that does not divide by the workers": Mistake(
        lambda tree, _: tree["train"]["workers"].update(count=3),
        ("global_batch_size=8 does not divide by workers.count=3", "set it to 6 or 9"),
    ),
    "a missing column": Mistake(
        lambda tree, path: _pairs(tree, path, {"prompt": "a", "better": " b", "rejected": " c"}),
        ("mine.jsonl: its rows are of no format that is known", "'better' is ' b'", "the columns in data.columns"),
    ),
    "a pair without a completion": Mistake(
        lambda tree, path: _pairs(tree, path, GOOD, GOOD | {"rejected": ""}),
        ("mine.jsonl row 2", "rejected", "remove the row"),
    ),
    "an empty file": Mistake(lambda tree, path: _pairs(tree, path), ("mine.jsonl holds no rows", "leave it out")),
    "a scorer that is not there": Mistake(
        lambda tree, _: tree.update(evaluate={"prompts": tree["data"]["train"], "reward": "vadr"}),
        ("there is no reward function 'vadr'", "did you mean 'vader'"),
    ),
    "an evaluation that was not asked for": Mistake(
        lambda tree, _: None, ("no evaluate section", "add one"), "evaluate"
    ),
}


def assert_refused(answer: Finished, *says: str) -> None:
    """Exit code 2, one message on stderr with all of these words, the same in the status line."""
    assert answer.exit_code == 2, answer.stderr
    assert "Traceback" not in answer.stdout + answer.stderr
    message = answer.status["error"]
    assert answer.status["status"] == "failed"
    assert f": {message}\n" in answer.stderr
    for words in says:
        assert words in message


@pytest.mark.unit
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_its_remedy_before_anything_starts(name: str, inputs: Path, tmp_path: Path) -> None:
    mistake, tree = MISTAKES[name], small_run(inputs, tmp_path / "out")
    mistake.make(tree, tmp_path)
    with job(PYTHON, "-m", "raydpo", mistake.stage, write_run_file(tmp_path / "run.yaml", tree)) as started:
        answer = started.wait()
        assert not started.temporary_directories(), "it has started a cluster"
    assert_refused(answer, *mistake.says)
    left = {path.name for path in (tmp_path / "out").glob("*")}
    assert left <= {".lock", ".lock.workers", "run.yaml", "result.json", "timings.json", "logs"}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("row", "says"),
    [
        (GOOD | {"chosen": 7}, ("mine.jsonl row 71, column 'chosen', is 7", "or remove the row")),
        (GOOD | {"chosen": " b" * 96}, ("mine.jsonl row 71", "max_length=96", "truncation")),
    ],
    ids=["another type", "too long"],
)
def test_a_mistake_far_down_a_file_is_named_with_its_row(
    row: dict[str, Any], says: tuple[str, ...], inputs: Path, tmp_path: Path
) -> None:
    tree = small_run(inputs, tmp_path / "out")
    _pairs(tree, tmp_path, *[GOOD] * 70, row)
    assert_refused(raydpo("prepare", write_run_file(tmp_path / "run.yaml", tree)), *says)


def test_an_output_directory_that_another_job_writes_to_is_left_alone(inputs: Path, tmp_path: Path) -> None:
    run_file = write_run_file(tmp_path / "run.yaml", small_run(inputs, tmp_path / "out"))
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"):
        answer = raydpo("train", run_file)
    assert_refused(answer, f"{tmp_path / 'out' / '.lock'} is held by a process", "try again")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


@pytest.mark.cluster
def test_workers_that_the_cluster_cannot_hold_come_with_the_whole_bill(inputs: Path, tmp_path: Path) -> None:
    tree = small_run(inputs, tmp_path / "out")
    tree["train"]["workers"] = {"count": 4, "cpus": 3}
    answer = raydpo("run", write_run_file(tmp_path / "run.yaml", tree))
    assert_refused(answer, "needs 13 CPUs at once (train.workers 4 x 3", "the cluster has 8", "Lower the counts")
    assert not (tmp_path / "out" / "tokens").exists()


@pytest.mark.cluster
def test_a_cluster_that_does_not_answer_is_named(inputs: Path, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take it
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        run_file = write_run_file(tmp_path / "run.yaml", small_run(inputs, tmp_path / "out"))
        answer = raydpo("prepare", run_file, env={"RAY_ADDRESS": address})
    assert_refused(answer, f"no Ray cluster answers at RAY_ADDRESS={address}", "unset RAY_ADDRESS")


@pytest.mark.cluster
def test_ctrl_c_stops_everything_that_the_job_started_and_nothing_else(
    small: Run, inputs: Path, tmp_path: Path, foreign_cluster: dict[str, str]
) -> None:
    tree = small_run(inputs, tmp_path / "out")
    tree["train"] |= {"epochs": 1000, "checkpoint_every": 10}
    tree["reference"]["store"] = str(small.output_dir / "reference")
    metrics = tmp_path / "out" / "train" / "metrics.jsonl"
    with job(PYTHON, "-m", "raydpo", "run", write_run_file(tmp_path / "run.yaml", tree)) as started:
        started.wait_until(lambda: metrics.exists() and metrics.stat().st_size > 0)
        family, temporary = started.family(), started.temporary_directories()
        started.signal_group(signal.SIGINT)
        answer = started.wait()
        _, alive = psutil.wait_procs(family, timeout=20)
    assert (answer.exit_code, answer.status["status"]) == (130, "interrupted")
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == answer.status
    assert temporary
    assert not [path for path in temporary if path.exists()]
    assert not alive
    still_there = "import ray; ray.init(log_to_driver=False); print(len(ray.nodes()), 'node')"
    assert "1 node" in run_command(PYTHON, "-c", still_there, env=foreign_cluster).stdout
