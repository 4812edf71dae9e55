"""Training under faults: is the run that went through them the one that did not, and what did they cost?

Run: python -m benchmarks.faults                  (an hour on 2 cores: each case is a run of its own)

Every case trains the same tiny model on two workers with a commit every 5 steps, and meets its fault at a step that its
seed has drawn. Where the driver itself has ended, the same command is given again. Losses, gradient norms and every
other figure of all steps are compared with those of an undisturbed run; the feed checks the row ids. Faults of nodes
happen on a debugging cluster (cluster/local) of a head and three more nodes, those of disks on a small disk of the
run's own, which takes root to mount. "2, 1, 4 workers" is stopped twice by SIGTERM and goes on with another number of
workers, under the ZeRO stage that stands in for the seed. In "a node comes, one dies" an elastic group has two, three
and two workers, and gets SIGTERM then.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from raydpo.train.checkpoint.commits import commits
from tests.cluster import faults
from tests.cluster.disk import Disk, disk
from tests.cluster.faults import Fault, Nodes, Scene
from tests.cluster.local import add_node, first_port, local_cluster
from tests.cluster.outputs import committed, metrics_of, ready_to_train, recorded, resumptions
from tests.cluster.processes import PYTHON, Finished, job, raydpo
from tests.cluster.runfiles import make_inputs, small_run, write_run_file

EPOCHS, CHECKPOINT_EVERY = 40, 5  # about twenty seconds of training: a drained node is taken away after 8 s
LONG = 240  # epochs: Ray Train looks for more nodes once a minute
ANSWER_S = 20  # timeouts.worker, for the frozen one
KILL = "kill -9 of a rank"
FAULTS: dict[str, Fault] = {
    KILL: faults.kill_rank,
    "kill -9 of the driver": faults.kill_driver,
    "kill -9 of everything": faults.kill_everything,
    "SIGTERM to the driver": faults.terminate_driver,
    "SIGSTOP of a rank": faults.freeze_rank,
    "kill -9 of a node": faults.kill_node,
    "ray drain-node, 8 s": faults.drain_node,
    "full disk": faults.fill_disk,
    "read-only disk": faults.lock_disk,
}
OF_NODES = (faults.kill_node, faults.drain_node)
OF_DISKS = (faults.fill_disk, faults.lock_disk)
MOVE, RESIZE = "2, 1, 4 workers", "a node comes, one dies"
ALL = [*FAULTS, MOVE, RESIZE]


@dataclass(frozen=True)
class Undisturbed:
    """The run that nothing has happened to, and what it was made from."""

    inputs: Path
    output_dir: Path
    metrics: list[dict[str, Any]]


@dataclass(frozen=True)
class Course:
    """How a run went."""

    step: int  # at which the first thing happened
    ends: list[Finished]
    metrics: list[dict[str, Any]]
    seconds: float  # from then to its end


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    label: str  # its seed, or what else it varies
    play: Callable[[Undisturbed, Path], Course]
    epochs: int = EPOCHS


def undisturbed(directory: Path, epochs: int) -> Undisturbed:
    """Prepare, precompute and train without a fault."""
    inputs = make_inputs(directory)
    run = small_run(inputs, directory / "out")
    run["train"] |= {"epochs": epochs}
    raydpo("run", write_run_file(directory / "run.yaml", run)).succeeded()
    return Undisturbed(inputs, directory / "out", metrics_of(directory / "out"))


def suffer(name: str, seed: int, expected: Undisturbed, directory: Path) -> Course:
    """The fault, and the same command again where it has ended the run."""
    fault, choice = FAULTS[name], random.Random(f"{name}/{seed}")
    step = choice.randrange(1, len(expected.metrics) // 3)
    with nodes_for(fault, directory) as nodes, disk_for(fault, directory) as own_disk:
        run_file = ready(expected, directory, epochs=EPOCHS)
        command = [PYTHON, "-m", "raydpo", "train", run_file, f"timeouts.worker={ANSWER_S}"]
        if nodes:
            command.append("train.workers.cpus=1.5")  # of a node's 2: one worker a node
        environment = nodes.environment if nodes else None
        with job(*command, env=environment) as started:
            started.wait_until(lambda: recorded(directory / "out") >= step)
            began = time.monotonic()
            fault(Scene(started, choice, nodes, own_disk))
            ends = [started.wait()]
        if own_disk:
            own_disk.mend()
        if ends[0].exit_code != 0:
            with job(*command, env=environment) as started:
                ends.append(started.wait())
        return Course(step, ends, metrics_of(directory / "out"), time.monotonic() - began)


def move(stage: int, expected: Undisturbed, directory: Path) -> Course:
    """Two workers, then one, then four."""
    choice, out = random.Random(stage), directory / "out"
    run_file = ready(expected, directory, epochs=EPOCHS)
    steps = sorted(choice.sample(range(1, len(expected.metrics) * 2 // 3), k=2))
    ends, began = [], 0.0
    for workers, step in zip((2, 1, 4), (*steps, None), strict=True):
        options = f"train.workers.count={workers}", f"train.zero.stage={stage}"
        with job(PYTHON, "-m", "raydpo", "train", run_file, *options) as started:
            if step:
                started.wait_until(lambda until=step: recorded(out) >= until)  # type: ignore[misc]
                began = began or time.monotonic()
                started.process.terminate()
            ends.append(started.wait())
    return Course(steps[0], ends, metrics_of(out), time.monotonic() - began)


def resize(expected: Undisturbed, directory: Path) -> Course:
    """Two workers of an elastic group, three on as many nodes, two again; then SIGTERM, and the rest elsewhere."""
    out = directory / "out"
    train = {"workers": {"count": 3, "min_count": 1, "cpus": 1.5}, "tokens_per_microbatch": 256, "keep_every": 25}
    command = [PYTHON, "-m", "raydpo", "train", ready(expected, directory, epochs=LONG, **train), "timeouts.start=60"]

    def workers() -> int:
        return commits(out / "train" / "checkpoints")[-1].cursor.world_size

    with (
        local_cluster(directory, "--raylets", "1", "--cpus", "2", port=first_port(80)) as environment,
        job(*command, env=environment) as started,
    ):
        started.wait_until(lambda: committed(out) > 0 and workers() == 2)
        step, began = recorded(out), time.monotonic()
        add_node(directory, "--cpus", "2")
        started.wait_until(lambda: workers() == 3)
        faults.kill_node(Scene(started, random.Random(0), Nodes(directory, environment)))
        started.wait_until(lambda: workers() == 2)
        started.process.terminate()
        ends = [started.wait()]
    with job(*command) as started:
        ends.append(started.wait())
    return Course(step, ends, metrics_of(out), time.monotonic() - began)


def ready(expected: Undisturbed, directory: Path, **train: Any) -> Path:
    """The run file of a case."""
    return ready_to_train(expected.output_dir, expected.inputs, directory, checkpoint_every=CHECKPOINT_EVERY, **train)


@contextmanager
def nodes_for(fault: Fault, directory: Path) -> Iterator[Nodes | None]:
    """A cluster of several nodes where the fault needs one."""
    if fault not in OF_NODES:
        yield None
        return
    with local_cluster(directory, "--raylets", "3", "--cpus", "2", port=first_port(80)) as environment:
        yield Nodes(directory, environment)


@contextmanager
def disk_for(fault: Fault, directory: Path) -> Iterator[Disk | None]:
    """A disk for the run's output where the fault needs one."""
    if fault not in OF_DISKS:
        yield None
        return
    with disk(directory / "out", mib=64) as mounted:
        yield mounted


def line(case: Case, course: Course, expected: Undisturbed) -> str:
    """One of the table."""
    how = ", then ".join(f"exit {end.exit_code}" for end in course.ends)
    again = ", ".join(str(redone) for end in course.ends for _, redone in resumptions(end)) or "none"
    apart = difference(course.metrics, expected.metrics)
    return f"| {case.name} | {case.label} | {course.step} | {how} | {apart} | {again} | {course.seconds:.0f} |"


def difference(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> str:
    """0 where every figure is the same to the bit, else the largest relative one of a loss or a gradient norm."""
    if found == expected:
        return "0"
    if [step["step"] for step in found] != [step["step"] for step in expected]:
        return "OTHER STEPS"
    pairs = [(a[name], b[name]) for a, b in zip(found, expected, strict=True) for name in ("loss", "grad_norm")]
    return f"{max(abs(a - b) / abs(b) for a, b in pairs):.0e}"


def cases(names: Sequence[str], kills: int, seeds: int) -> Iterator[Case]:
    """What to run, in the order of the table."""
    for name in names:
        if name == MOVE:
            yield from (Case(name, f"ZeRO {stage}", partial(move, stage)) for stage in (1, 2, 3))
        elif name == RESIZE:
            yield Case(name, "-", resize, epochs=LONG)
        else:
            yield from (
                Case(name, str(seed), partial(suffer, name, seed)) for seed in range(kills if name == KILL else seeds)
            )


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=ALL, default=ALL)
    parser.add_argument("--kills", type=int, default=20, help="cases of the first fault (20)")
    parser.add_argument("--seeds", type=int, default=3, help="cases of every other fault (3)")
    options = parser.parse_args()
    print(f"a commit every {CHECKPOINT_EVERY} steps; seconds from the fault to the end of the run\n")
    print("| case | seed | at step | ended | largest relative difference | steps redone | seconds |")
    print("|---|---|---|---|---|---|---|", flush=True)
    expected: dict[int, Undisturbed] = {}
    with ExitStack() as stack:
        for case in cases(options.cases, options.kills, options.seeds):
            if case.epochs not in expected:
                expected[case.epochs] = undisturbed(Path(stack.enter_context(scratch())), case.epochs)
            with scratch() as directory:
                course = case.play(expected[case.epochs], Path(directory))
                print(line(case, course, expected[case.epochs]), flush=True)


def scratch() -> tempfile.TemporaryDirectory[str]:
    """For one run."""
    return tempfile.TemporaryDirectory(prefix="raydpo-benchmark-")


if __name__ == "__main__":
    main()
