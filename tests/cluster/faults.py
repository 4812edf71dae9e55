"""Faults done to a training run from outside, as machines and people do them."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.cluster.disk import Disk
from tests.cluster.processes import Job

NOTICE_S = 8
NODE_ID = re.compile(r"--node[-_]id=([0-9a-f]+)")


@dataclass(frozen=True)
class Nodes:
    """The nodes of a debugging cluster (tests.cluster.local), but for the head."""

    directory: Path  # that local_cluster was given
    environment: dict[str, str]

    def raylets(self) -> dict[str, psutil.Process]:
        """Living raylets by node id."""
        state = json.loads((self.directory / "local" / ".state" / "cluster.json").read_text())
        family = [
            child
            for pid, _ in state["processes"][1:]
            if psutil.pid_exists(pid)
            for child in psutil.Process(pid).children(recursive=True)
        ]
        raylets = [process for process in family if process.name() == "raylet"]
        return {NODE_ID.findall(" ".join(process.cmdline()))[0]: process for process in raylets}

    def at_work(self) -> list[tuple[str, psutil.Process]]:
        """Node id and raylet of those that run a training worker."""
        return [(node, raylet) for node, raylet in self.raylets().items() if workers_below(raylet)]


@dataclass(frozen=True)
class Scene:
    """A training run when a fault comes: its driver, a choice, and what it uses but has not started itself."""

    job: Job
    choice: random.Random
    nodes: Nodes | None = None
    disk: Disk | None = None

    def a_worker(self) -> psutil.Process:
        """One of the training workers of the job's own cluster."""
        found = [process for process in self.job.family() if is_worker(process)]
        return self.choice.choice(sorted(found, key=lambda process: process.pid))

    def a_node(self) -> tuple[str, psutil.Process]:
        """A node with a training worker and without the driver."""
        assert self.nodes
        return self.choice.choice(self.nodes.at_work())


Fault = Callable[[Scene], None]


def kill_rank(scene: Scene) -> None:
    scene.a_worker().kill()


def freeze_rank(scene: Scene) -> None:
    scene.a_worker().suspend()


def kill_driver(scene: Scene) -> None:
    scene.job.process.kill()


def kill_everything(scene: Scene) -> None:
    scene.job.kill_family()


def terminate_driver(scene: Scene) -> None:
    scene.job.process.terminate()


def kill_node(scene: Scene) -> None:
    _, raylet = scene.a_node()
    raylet.kill()


def drain_node(scene: Scene) -> None:
    """What a cloud's agent does when a machine will be reclaimed."""
    assert scene.nodes
    node, _ = scene.a_node()
    environment = scene.nodes.environment
    command = [Path(sys.executable).with_name("ray"), "drain-node", f"--address={environment['RAY_ADDRESS']}"]
    command += [f"--node-id={node}", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"]
    command += [f"--deadline-remaining-seconds={NOTICE_S}"]
    subprocess.run(command, env=environment, capture_output=True, timeout=60, check=True)


def fill_disk(scene: Scene) -> None:
    """What another program does that takes all the room, and also what the run frees, until the run has ended."""
    assert scene.disk
    while scene.job.process.poll() is None:
        scene.disk.fill()
        time.sleep(0.05)


def lock_disk(scene: Scene) -> None:
    """What the kernel does with a file system that it has found damaged."""
    assert scene.disk
    scene.disk.lock()


def workers_below(raylet: psutil.Process) -> list[psutil.Process]:
    return [process for process in raylet.children(recursive=True) if is_worker(process)]


def is_worker(process: psutil.Process) -> bool:
    return "RayTrainWorker" in " ".join(process.cmdline())
