"""Signals, deaths and hangs during training: benchmarks/faults.py runs more of them, this is the quick part."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from raydpo.train.checkpoint.commits import commits
from tests.cluster.conftest import Run
from tests.cluster.disk import Disk
from tests.cluster.faults import (
    NOTICE_S,
    Fault,
    Nodes,
    Scene,
    drain_node,
    fill_disk,
    freeze_rank,
    kill_driver,
    kill_node,
    lock_disk,
)
from tests.cluster.local import add_node, first_port, local_cluster
from tests.cluster.outputs import (
    committed,
    failures,
    metrics_of,
    ready_to_train,
    recorded,
    resumptions,
)
from tests.cluster.processes import PYTHON, Finished, Job, job, raydpo

pytestmark = [pytest.mark.cluster, pytest.mark.alone]

EPOCHS = 20  # 240 steps: long enough for the workers of a dead driver to die before they are through
SELDOM = 10**6  # steps between checkpoints: whatever is committed before the end was asked for
LIMIT_S = 20
START_S = 30  # Ray Train may ask for a group as large as before while it does not know that a node is dead


@dataclass(frozen=True)
class Interrupted:
    """A run that got SIGTERM, lost its driver when it was started again, and was started a third time."""

    output_dir: Path
    terminated: Finished
    recorded: int  # steps, when it had ended
    committed: int
    last: Finished


@pytest.fixture(scope="module")
def undisturbed(small: Run, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The metrics of a run that nothing happens to."""
    directory = tmp_path_factory.mktemp("undisturbed")
    raydpo("train", ready_to_train(small.output_dir, inputs, directory, epochs=EPOCHS)).succeeded()
    return metrics_of(directory / "out")


@pytest.fixture(scope="module")
def interrupted(small: Run, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    directory = tmp_path_factory.mktemp("interrupted")
    out = directory / "out"
    run_file = ready_to_train(small.output_dir, inputs, directory, epochs=EPOCHS, checkpoint_every=SELDOM)
    with job(PYTHON, "-m", "raydpo", "train", run_file) as started:
        started.wait_until(lambda: recorded(out) >= 3)
        started.process.terminate()
        terminated = started.wait()
    seen = recorded(out), committed(out)
    with job(PYTHON, "-m", "raydpo", "train", run_file, "train.checkpoint_every=5") as started:
        started.wait_until(lambda: committed(out) > seen[1])
        kill_driver(Scene(started, random.Random(0)))
        last = raydpo("train", run_file, "train.checkpoint_every=5")
    return Interrupted(out, terminated, *seen, last)


def test_sigterm_commits_the_step_that_it_came_in_and_the_result_says_so(interrupted: Interrupted) -> None:
    assert interrupted.terminated.exit_code == 143, interrupted.terminated
    assert 3 <= interrupted.committed == interrupted.recorded < len(metrics_of(interrupted.output_dir))
    status = interrupted.terminated.status
    assert status["status"] == "interrupted"
    assert status["error"].startswith(f"SIGTERM: train has committed step {interrupted.committed};")


def test_after_a_killed_driver_the_same_command_takes_over_at_once(interrupted: Interrupted) -> None:
    interrupted.last.succeeded()
    assert "ended without releasing it; taken over" in interrupted.last.stderr
    [(step, again)] = resumptions(interrupted.last)
    assert step > interrupted.committed
    assert again <= 5 + 5  # an interval, and what was trained while the last commit was being written


def test_neither_sigterm_nor_a_killed_driver_changes_a_bit(
    undisturbed: list[dict[str, Any]], interrupted: Interrupted
) -> None:
    assert metrics_of(interrupted.output_dir) == undisturbed


def test_a_rank_that_another_one_waits_for_in_vain_is_replaced_and_the_run_is_the_same(
    undisturbed: list[dict[str, Any]], small: Run, inputs: Path, tmp_path: Path
) -> None:
    run_file, out = ready_to_train(small.output_dir, inputs, tmp_path, epochs=EPOCHS), tmp_path / "out"
    with job(PYTHON, "-m", "raydpo", "train", run_file, f"timeouts.collective={LIMIT_S}") as started:
        started.wait_until(lambda: committed(out) >= 3)
        freeze_rank(Scene(started, random.Random(0)))
        began = time.monotonic()
        started.wait_until(lambda: bool(failures(out)))
        assert LIMIT_S - 5 < time.monotonic() - began < LIMIT_S + 20
        started.wait().succeeded()
    [failure] = failures(out)
    assert failure["rank"] in (0, 1)
    assert failure["after_step"] >= 3
    assert re.match(r"TimeoutError: rank \d, step \d+: another rank is late", failure["error"])
    assert metrics_of(out) == undisturbed


@dataclass(frozen=True)
class Resized:
    """A run on two nodes: a third one comes, one dies, another one dies; it gets SIGTERM while it waits for more."""

    sizes: list[int]  # of the group, from commit to commit
    metrics: list[dict[str, Any]]
    ended: Finished


@pytest.fixture(scope="module")
def resized(small: Run, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Resized:
    directory = tmp_path_factory.mktemp("resized")
    out = directory / "out"
    train = {"workers": {"count": 3, "min_count": 2, "cpus": 1.5}, "tokens_per_microbatch": 256}  # one worker a node
    train |= {"epochs": 400, "checkpoint_every": 10, "keep_every": 10}
    run_file = ready_to_train(small.output_dir, inputs, directory, **train)

    def sizes() -> list[int]:
        return [commit.cursor.world_size for commit in commits(out / "train" / "checkpoints")]

    with (
        local_cluster(directory, "--raylets", "1", "--cpus", "2", port=first_port(100)) as environment,
        job(PYTHON, "-m", "raydpo", "train", run_file, f"timeouts.start={START_S}", env=environment) as started,
    ):
        started.wait_until(lambda: committed(out) > 0)
        add_node(directory, "--cpus", "2")
        started.wait_until(lambda: sizes()[-1] == 3)
        scene = Scene(started, random.Random(0), Nodes(directory, environment))
        kill_node(scene)
        started.wait_until(lambda: sizes()[-1] == 2)
        kill_node(scene)
        started.wait_until(lambda: "waits for room" in started.said())
        started.process.terminate()
        ended = started.wait()
    return Resized(sizes(), metrics_of(out), ended)


def test_an_elastic_group_takes_the_nodes_that_come_and_goes_on_without_those_that_die(resized: Resized) -> None:
    assert [size for size, _ in groupby(resized.sizes)] == [2, 3, 2]  # 3 does not divide the batch, and need not


def test_an_elastic_group_does_every_step_once_with_the_same_numbers(
    undisturbed: list[dict[str, Any]], resized: Resized
) -> None:
    assert [step["step"] for step in resized.metrics] == list(range(1, len(resized.metrics) + 1))
    for seen, expected in zip(resized.metrics, undisturbed, strict=False):
        assert seen == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_an_elastic_group_with_too_few_nodes_waits_for_more_until_it_is_told_to_stop(resized: Resized) -> None:
    assert resized.ended.exit_code == 143, resized.ended
    assert "train: waits for room for 2 workers with 1.5 CPUs and 0 GPUs each, 90 s at most" in resized.ended.stdout
    assert resized.ended.status["error"].startswith("SIGTERM: train has committed step ")


def test_a_full_or_read_only_disk_ends_the_run_with_what_it_needs_and_the_last_commit_stands(
    undisturbed: list[dict[str, Any]], small: Run, inputs: Path, own_disk: Disk
) -> None:
    run_file = ready_to_train(small.output_dir, inputs, own_disk.path.parent, epochs=EPOCHS)
    for fault, reason in ((fill_disk, "No space left on device"), (lock_disk, "Read-only file system")):
        step, ended = run_until_it_ends(run_file, fault, own_disk)
        assert ended.exit_code == 2, ended
        assert "Error in training function" not in ended.stderr  # Ray's heading of a worker's traceback
        told = ended.status["error"]
        assert re.match(rf"{own_disk.path}/train/.* cannot be written: .*{reason}", told), told
        assert re.search(r"needs [\d,]+ bytes, and [\d,]+ are free", told)
        assert step <= committed(own_disk.path) < len(undisturbed)
        own_disk.mend()
    raydpo("train", run_file).succeeded()
    assert metrics_of(own_disk.path) == undisturbed


def run_until_it_ends(run_file: Path, fault: Fault, own_disk: Disk) -> tuple[int, Finished]:
    """A run that meets the fault three commits on: the step committed by then, and how it ended."""
    enough = committed(own_disk.path) + 3
    with job(PYTHON, "-m", "raydpo", "train", run_file) as started:
        started.wait_until(lambda: committed(own_disk.path) >= enough)
        fault(Scene(started, random.Random(0), disk=own_disk))
        return enough, started.wait()


@dataclass(frozen=True)
class Moved:
    """A run on four nodes: one is taken away with notice, then another one without; in the end it gets SIGTERM."""

    saved: int  # the step that was committed before the notice ran out; 0: none
    failures: list[dict[str, Any]]
    lost: list[list[dict[str, Any]]]  # metrics at each move, with the steps that were then done again
    metrics: list[dict[str, Any]]  # in the end
    job: Finished


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A head and three nodes, each with room for one worker."""
    directory = tmp_path_factory.mktemp("nodes")
    with local_cluster(directory, "--raylets", "3", "--cpus", "2", port=first_port(60)) as environment:
        yield Nodes(directory, environment)


@pytest.fixture(scope="module")
def moved(small: Run, inputs: Path, nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Moved:
    directory = tmp_path_factory.mktemp("moved")
    out = directory / "out"
    run_file = ready_to_train(small.output_dir, inputs, directory, epochs=200, checkpoint_every=SELDOM)
    options = ("train.workers.cpus=1.5", "train.max_failures=1")
    with job(PYTHON, "-m", "raydpo", "train", run_file, *options, env=nodes.environment) as started:
        scene = Scene(started, random.Random(0), nodes)
        started.wait_until(lambda: recorded(out) >= 3)
        drain_node(scene)
        began = time.monotonic()
        started.wait_until(lambda: committed(out) > 0 or time.monotonic() - began > NOTICE_S)
        saved = committed(out)
        lost = [until_it_goes_back(started, out)]
        started.wait_until(lambda: recorded(out) >= saved + 30)
        kill_node(scene)
        lost.append(until_it_goes_back(started, out))
        started.wait_until(lambda: recorded(out) > max(map(len, lost)))
        started.process.terminate()
        finished = started.wait()
    return Moved(saved, failures(out), lost, metrics_of(out), finished)


def until_it_goes_back(started: Job, output_dir: Path) -> list[dict[str, Any]]:
    """Wait for the steps after the commit to be thrown away, and return what was recorded last before that."""
    seen = [metrics_of(output_dir)]

    def goes_back() -> bool:
        seen.append(metrics_of(output_dir))
        del seen[:-2]
        return len(seen[1]) < len(seen[0])

    started.wait_until(goes_back)
    return seen[0]


def test_a_node_that_is_drained_is_saved_from_before_its_deadline(moved: Moved) -> None:
    assert moved.saved > 0
    assert "a node is about to be taken away; saving" in moved.job.stdout


def test_a_drained_node_is_not_counted_as_a_failure_and_a_dead_one_is(moved: Moved) -> None:
    assert moved.job.exit_code == 143, moved.job
    assert [step for step, _ in resumptions(moved.job)] == [moved.saved, moved.saved]
    assert moved.failures  # of the dead node; max_failures=1 leaves no room for another


def test_steps_that_are_done_again_on_other_nodes_give_the_same_to_the_bit(moved: Moved) -> None:
    for lost in moved.lost:
        assert len(lost) > moved.saved
        assert moved.metrics[: len(lost)] == lost
