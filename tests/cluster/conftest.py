"""What the cluster tests share: tiny inputs, two finished runs, and a cluster that is not the jobs' own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.disk import CannotMount, Disk, disk
from tests.cluster.local import first_port, local_cluster
from tests.cluster.processes import PYTHON, Finished, job, raydpo
from tests.cluster.runfiles import REWARD, make_inputs, small_run, whole_run, write_run_file


@dataclass(frozen=True)
class Run:
    """A run that `raydpo run` has finished."""

    run_file: Path
    output_dir: Path
    job: Finished
    temporary_directories: set[Path]  # that its cluster had while it ran
    left_over: list[str]  # names of processes that outlived it


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, pairs and prompts."""
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> Run:
    """Prepare, precompute, train and report, undisturbed."""
    directory = tmp_path_factory.mktemp("small")
    output_dir = directory / "out {step}"  # a letter like any other, in every path below it
    run_file = write_run_file(directory / "run.yaml", small_run(inputs, output_dir))
    finished = raydpo("run", run_file).succeeded()
    return Run(run_file, output_dir, finished, set(), [])


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> Run:
    """Every stage, watched: what its cluster had on disk, and what it left running."""
    directory = tmp_path_factory.mktemp("whole")
    run = whole_run(inputs, directory / "out")
    run["best_of_n"] = {"n": [2, 4], "samples": 20, "rewards": [REWARD, "length"]}
    run_file = write_run_file(directory / "run.yaml", run)
    with job(PYTHON, "-m", "raydpo", "run", run_file) as started:
        started.wait_until(lambda: bool(started.temporary_directories()))
        temporary = set(started.temporary_directories())
        finished = started.wait().succeeded()
        left_over = [" ".join(process.cmdline()) for process in started.family()]
    return Run(run_file, directory / "out", finished, temporary, left_over)


@pytest.fixture(scope="session")
def foreign_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment that leads to a cluster which no job has started, and which none may stop."""
    with local_cluster(tmp_path_factory.mktemp("cluster"), "--cpus", "8", port=first_port(0)) as environment:
        yield environment


@pytest.fixture
def own_disk(tmp_path: Path) -> Iterator[Disk]:
    """For the output of one run."""
    try:
        with disk(tmp_path / "out", mib=64) as mounted:
            yield mounted
    except CannotMount as error:
        pytest.skip(f"a full disk needs the right to mount one: {error}")
