"""Runs of their own beside this one on its cluster: each a process with its own signals, lock and log.

A scheduler of our own rather than Ray Tune's. There is nothing to search; what is done is what a run's own directory
says, so no second snapshot can disagree with it; and a trial's placement group would reserve again what the run's
worker group reserves.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray

from raydpo.errors import UserError
from raydpo.runtime.cluster.preflight import Demand
from raydpo.track.say import say

POLL_S = 0.5
PATIENCE_S = 120.0  # for a run that is told to end: it commits the step that it is in


@dataclass(frozen=True)
class ChildRun:
    """A command of raydpo over a run file, and what it needs of the cluster while it runs."""

    label: str
    stage: str
    run_file: Path
    output_dir: Path
    demands: Sequence[Demand]

    @property
    def cpus(self) -> float:
        """All its processes together."""
        return sum(demand.count * demand.cpus for demand in self.demands)

    @property
    def gpus(self) -> float:
        """All its processes together."""
        return sum(demand.count * demand.gpus for demand in self.demands)


class Children:
    """Starts runs in their order, as many at once as fit beside each other; all have ended when the block ends."""

    def __init__(self, runs: Sequence[ChildRun], beside: Sequence[Demand]) -> None:
        """beside: what this run's own processes hold of the cluster."""
        have = ray.cluster_resources()
        self._free_cpus = have.get("CPU", 0) - sum(each.count * each.cpus for each in beside)
        self._free_gpus = have.get("GPU", 0) - sum(each.count * each.gpus for each in beside)
        self._waiting = deque(runs)
        self._running: dict[int, tuple[ChildRun, subprocess.Popen[bytes]]] = {}

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        processes = [process for _, process in self._running.values()]
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def finished(self) -> Iterator[ChildRun]:
        """Run after run as they end. Raises UserError for one that fails, with where to look."""
        while self._waiting or self._running:
            self._start_what_fits()
            ended = [pid for pid, (_, process) in self._running.items() if process.poll() is not None]
            for pid in ended:
                run, process = self._running.pop(pid)
                if process.returncode:
                    raise _failed(run, process.returncode)
                yield run
            if not ended:
                time.sleep(POLL_S)

    def _start_what_fits(self) -> None:
        """The first always starts where nothing runs: preflight has seen that the cluster can hold it."""
        while self._waiting:
            following = self._waiting[0]
            cpus = sum(run.cpus for run, _ in self._running.values()) + following.cpus
            gpus = sum(run.gpus for run, _ in self._running.values()) + following.gpus
            if self._running and (cpus > self._free_cpus or gpus > self._free_gpus):
                return
            self._waiting.popleft()
            process = _start(following)
            self._running[process.pid] = (following, process)


def _start(run: ChildRun) -> subprocess.Popen[bytes]:
    """A session of its own: Ctrl-C reaches this run, which then tells its children."""
    say(f"{run.label}: {run.stage}, in {run.output_dir}")
    run.output_dir.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, "-m", "raydpo", run.stage, str(run.run_file)]
    with _console(run).open("wb") as console:
        return subprocess.Popen(
            command, env=environment, stdout=console, stderr=subprocess.STDOUT, start_new_session=True
        )


def _console(run: ChildRun) -> Path:
    return run.output_dir / f"{run.stage}.console.log"


def _failed(run: ChildRun, code: int) -> UserError:
    lines = _console(run).read_text(encoding="utf-8", errors="replace").splitlines()
    said = next((line for line in reversed(lines) if line.startswith("raydpo ")), lines[-1] if lines else "nothing")
    return UserError(
        f"{run.label} ended with exit code {code}: {said}. All that it printed is in {_console(run)}; by hand it is "
        f"`raydpo {run.stage} {run.run_file}`. What is done is kept: mend it and give the same command again."
    )
