"""Jobs as their users start them: a process, what it says, what it starts and what it leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

CHECKOUT = Path(__file__).parents[2]
PYTHON = sys.executable
MARK = "RAYDPO_TEST_JOB"  # in the environment of a job, and so of everything that it starts
PATIENCE_S = 600


@dataclass(frozen=True)
class Finished:
    """A job that has ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def status(self) -> dict[str, Any]:
        """The last line of stdout, which is one JSON object."""
        found: dict[str, Any] = json.loads(self.stdout.splitlines()[-1])
        return found

    def succeeded(self) -> Finished:
        """Itself, or an AssertionError that shows what the job said."""
        assert self.exit_code == 0, f"exit code {self.exit_code}\n{self.stdout[-3000:]}\n{self.stderr[-6000:]}"
        return self


class Job:
    """A command in a process group of its own, as a shell would start it."""

    def __init__(self, *command: str | Path, env: Mapping[str, str] | None = None) -> None:
        self._mark = uuid.uuid4().hex
        self._output = Path(tempfile.mkdtemp(prefix="job-"))
        with (self._output / "stdout").open("wb") as out, (self._output / "stderr").open("wb") as err:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=CHECKOUT,
                env=environment() | dict(env or {}) | {MARK: self._mark},
                start_new_session=True,
            )

    def wait(self) -> Finished:
        """Until it ends; it and its family are killed when patience does first."""
        try:
            code = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill_family()
            code = self.process.wait()
        return Finished(code, self.said(), self.said("stderr"))

    def said(self, where: str = "stdout") -> str:
        """What it has written so far."""
        return (self._output / where).read_text(errors="replace")

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Poll, as often as the machine allows; AssertionError when the job ends before the condition holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None, f"the job ended too early: {self.wait()}"
            assert time.monotonic() < deadline, "the job never came that far"
            time.sleep(0.02)

    def signal_group(self, number: signal.Signals) -> None:
        """What a terminal does on Ctrl-C."""
        os.killpg(self.process.pid, number)

    def family(self) -> list[psutil.Process]:
        """Every living process that carries the job's mark, the job itself included."""
        return [process for process in psutil.process_iter() if _mark_of(process) == self._mark]

    def temporary_directories(self) -> list[Path]:
        """Those of the local cluster that the job has started; their sessions carry its pid."""
        return [session.parent for session in Path("/tmp").glob(f"raydpo-*/session_*_{self.process.pid}")]

    def close(self) -> None:
        """Leave nothing behind, whatever became of the job."""
        directories = self.temporary_directories()
        self.kill_family()
        self.process.wait()
        for directory in [*directories, self._output]:
            shutil.rmtree(directory, ignore_errors=True)

    def kill_family(self) -> None:
        family = self.family()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()  # before psutil does, which would keep the exit code to itself
        psutil.wait_procs(family, timeout=10)


@contextmanager
def job(*command: str | Path, env: Mapping[str, str] | None = None) -> Iterator[Job]:
    """A job that is gone when the block ends."""
    started = Job(*command, env=env)
    try:
        yield started
    finally:
        started.close()


def raydpo(stage: str, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Finished:
    """`raydpo STAGE ...`, from start to end."""
    with job(PYTHON, "-m", "raydpo", stage, *arguments, env=env) as started:
        return started.wait()


def environment() -> dict[str, str]:
    """This environment without any cluster's address, with the checkout importable for the scorers of the tests."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return plain | {"PYTHONPATH": str(CHECKOUT)}


def _mark_of(process: psutil.Process) -> str | None:
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # it ended while we looked, or is another user's
        if process.status() != psutil.STATUS_ZOMBIE:
            return process.environ().get(MARK)
    return None
