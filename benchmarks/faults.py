"""Training under faults: is the run that went through them bitwise the one that did not, and what did they cost?

Run: python -m benchmarks.faults                  (about an hour on 2 cores: each case is a run of its own)

Every case trains the same tiny model on two workers with a commit every 5 steps, and meets its fault at a step that its
seed has drawn. Where the driver itself has ended, the same command is given again. Losses, gradient norms and every
other figure of all steps are compared with those of an undisturbed run; the feed checks the row ids. The faults of
nodes happen on a debugging cluster (cluster/local) of a head and three more nodes.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster import faults
from tests.cluster.faults import Fault, Nodes, Scene
from tests.cluster.local import first_port, local_cluster
from tests.cluster.outputs import metrics_of, ready_to_train, recorded, resumptions
from tests.cluster.processes import PYTHON, job, raydpo
from tests.cluster.runfiles import make_inputs, small_run, write_run_file

EPOCHS, CHECKPOINT_EVERY = 40, 5  # about twenty seconds of training: a drained node is taken away after 8 s
ANSWER_S = 20  # timeouts.worker, for the frozen one
FAULTS: dict[str, Fault] = {
    "kill -9 of a rank": faults.kill_rank,
    "kill -9 of the driver": faults.kill_driver,
    "kill -9 of everything": faults.kill_everything,
    "SIGTERM to the driver": faults.terminate_driver,
    "SIGSTOP of a rank": faults.freeze_rank,
    "kill -9 of a node": faults.kill_node,
    "ray drain-node, 8 s": faults.drain_node,
}
OF_NODES = (faults.kill_node, faults.drain_node)


@dataclass(frozen=True)
class Undisturbed:
    """The run that nothing has happened to, and what it was made from."""

    inputs: Path
    output_dir: Path
    metrics: list[dict[str, Any]]


def undisturbed(directory: Path) -> Undisturbed:
    """Prepare, precompute and train without a fault."""
    inputs = make_inputs(directory)
    run = small_run(inputs, directory / "out")
    run["train"] |= {"epochs": EPOCHS}
    raydpo("run", write_run_file(directory / "run.yaml", run)).succeeded()
    return Undisturbed(inputs, directory / "out", metrics_of(directory / "out"))


def suffer(name: str, seed: int, expected: Undisturbed, directory: Path) -> str:
    """One line of the table."""
    fault, choice = FAULTS[name], random.Random(f"{name}/{seed}")
    step = choice.randrange(1, len(expected.metrics) // 3)
    run_file = ready_to_train(
        expected.output_dir, expected.inputs, directory, epochs=EPOCHS, checkpoint_every=CHECKPOINT_EVERY
    )
    command = [PYTHON, "-m", "raydpo", "train", run_file, f"timeouts.worker={ANSWER_S}"]
    with nodes_for(fault, directory) as nodes:
        if nodes:
            command.append("train.workers.cpus=1.5")  # of a node's 2: one worker a node
        environment = nodes.environment if nodes else None
        with job(*command, env=environment) as started:
            started.wait_until(lambda: recorded(directory / "out") >= step)
            began = time.monotonic()
            fault(Scene(started, nodes, choice))
            ends = [started.wait()]
        if ends[0].exit_code != 0:
            with job(*command, env=environment) as started:
                ends.append(started.wait())
    seconds = time.monotonic() - began
    how = ", then ".join(f"exit {end.exit_code}" for end in ends)
    equal = "yes" if metrics_of(directory / "out") == expected.metrics else "NO"
    again = ", ".join(str(redone) for end in ends for _, redone in resumptions(end)) or "none"
    return f"| {name} | {seed} | {step} | {how} | {equal} | {again} | {seconds:.0f} |"


@contextmanager
def nodes_for(fault: Fault, directory: Path) -> Iterator[Nodes | None]:
    """A cluster of several nodes where the fault needs one."""
    if fault not in OF_NODES:
        yield None
        return
    with local_cluster(directory, "--raylets", "3", "--cpus", "2", port=first_port(80)) as environment:
        yield Nodes(directory, environment)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--kills", type=int, default=20, help="cases of the first fault (20)")
    parser.add_argument("--seeds", type=int, default=3, help="cases of every other fault (3)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="raydpo-benchmark-") as scratch:
        expected = undisturbed(Path(scratch))
        steps = len(expected.metrics)
        print(f"{steps} steps, a commit every {CHECKPOINT_EVERY}; seconds from the fault to the end of the run\n")
        print("| fault | seed | at step | ended | bitwise equal | steps redone | seconds |")
        print("|---|---|---|---|---|---|---|")
        for name in options.fault:
            for seed in range(options.kills if FAULTS[name] is faults.kill_rank else options.seeds):
                with tempfile.TemporaryDirectory(prefix="raydpo-benchmark-") as directory:
                    print(suffer(name, seed, expected, Path(directory)), flush=True)


if __name__ == "__main__":
    main()
