"""A contender in a process of its own: it loads once, then answers requests over a pipe, one line of JSON each.

Both ends are here. The parent asks ("step"); the child answers with an Answer, and ends when its input ends.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Stopwatch, give_back_memory, peak_memory

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Task:
    """What every contender is given: the same pairs, weights, number format and optimizer."""

    pairs: str  # written by benchmarks.shapes.write_pairs
    policy: str  # model directory
    reference: str  # model directory
    dtype: str
    scratch: str  # a directory of the contender's own
    optimizer: str = "rmsprop"
    lr: float = 1e-6
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class Answer:
    """One step, or one pass, over all pairs. Seconds as in benchmarks.measure.Spent, memory in bytes."""

    busy: float
    wall: float
    peak: int | None  # None: not known
    loss: float = math.nan  # where there is one
    logps: list[list[float]] | None = None
    padded_tokens: int | None = None


class Child:
    """The parent's end. Output of the child goes to a log, whose end is shown when it fails."""

    def __init__(self, module: str, task: Task, *options: str) -> None:
        Path(task.scratch).mkdir(parents=True, exist_ok=True)
        self._name, self._log = module, Path(task.scratch) / "log.txt"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"benchmarks.{module}", json.dumps(asdict(task)), *options],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def ask(self) -> Answer:
        """Have it do its work once. RuntimeError with the child's last words when it cannot."""
        assert self._process.stdin and self._process.stdout
        try:
            print("step", file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            raise RuntimeError(f"{self._name} exited with {code}:\n{_tail(self._log)}")
        return Answer(**json.loads(line))

    def close(self) -> None:
        """End it."""
        self._process.communicate()


class Desk:
    """The child's end: waits for requests and answers them. Whatever else is printed goes to the log."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def wait(self) -> bool:
        """Until a request comes; False when there will be none."""
        return bool(sys.stdin.readline())

    def send(self, answer: Answer) -> None:
        """Answer the request."""
        print(json.dumps(asdict(answer)), file=self._answers, flush=True)

    def serve(self, work: Callable[[], dict[str, Any]]) -> None:
        """Answer every request with what the work takes, and with the fields of Answer that it returns."""
        while self.wait():
            watch = Stopwatch()
            found = work()
            spent = watch.stop()
            self.send(Answer(spent.busy, spent.wall, peak_memory(), **found))
            give_back_memory()


def task_and_options() -> tuple[Task, list[str]]:
    """What the parent passed on the command line."""
    return Task(**json.loads(sys.argv[1])), sys.argv[2:]


def _tail(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
