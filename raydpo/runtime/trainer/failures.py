"""What became of the worker group: said and kept when it fails, and put in the user's terms when the run gives up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray.train import ControllerError, UserCallback

from raydpo.config.schema import Timeouts, Workers
from raydpo.errors import UserError
from raydpo.runtime.trainer.starting import START_RETRIES
from raydpo.runtime.trainer.train_private import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from raydpo.storage.files import storage_refusal, whole_lines
from raydpo.track.say import say


class FailureLog(UserCallback):
    """Runs in Ray Train's controller: says which rank failed, after which step and why, and keeps it in a file.

    Whatever another group would meet again ends the run at once: Ray Train does not retry an error of its controller.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._last: list[dict[str, Any]] = []

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called at every look at a group with failed workers, which may be several times."""
        for error in worker_exceptions.values():
            if refusal := _refusal(error):
                raise ControllerError(refusal)
        step = last_step(self._directory)
        found = [{"rank": rank, "after_step": step, "error": _cause(e)} for rank, e in worker_exceptions.items()]
        if found == self._last:
            return
        self._last = found
        with (self._directory / "failures.jsonl").open("a") as stream:
            stream.writelines(json.dumps(failure) + "\n" for failure in found)
        for failure in found:
            say(f"{self._directory.name}: rank {failure['rank']} failed after step {step}: {failure['error']}")


def last_step(directory: Path) -> int:
    """The last step that metrics.jsonl records; 0 without one."""
    lines = whole_lines(directory / "metrics.jsonl")
    return int(json.loads(lines[-1])["step"]) if lines else 0


def final_refusal(error: ControllerError, workers: Workers, timeouts: Timeouts) -> UserError | None:
    """Why Ray Train has given up, if that is for the user to mend."""
    failure = error.controller_failure
    if refusal := _refusal(failure):
        return refusal
    if not isinstance(failure, (WorkerGroupStartupTimeoutError, WorkerGroupStartupFailedError)):
        return None
    cause = f" ({failure})" if isinstance(failure, WorkerGroupStartupFailedError) else ""  # a time-out has no other
    return UserError(
        f"{workers.least} workers with {workers.cpus:g} CPUs and {workers.gpus:g} GPUs each did not start within "
        f"timeouts.start={timeouts.start:g} s, tried {START_RETRIES + 1} times{cause}. `raydpo doctor` says what fits "
        "the cluster; raise timeouts.start where nodes take long to come, then start again."
    )


def _refusal(error: Exception) -> UserError | None:
    """What the user is told of an error that another group would meet again; None of any other."""
    cause = getattr(error, "_base_exc", error)  # Ray wraps a worker's
    return cause if isinstance(cause, UserError) else storage_refusal(cause)


def _cause(error: Exception) -> str:
    """The first line of what happened to a worker, without Ray's wrapping."""
    error = getattr(error, "health_check_failure", error)
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
