"""How a job ends: one JSON status line on stdout, the same in result.json, and exit code 0 only on success."""

from __future__ import annotations

import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from raydpo.errors import UserError
from raydpo.storage.files import write_text
from raydpo.track.say import say
from raydpo.track.terminal import only_our_lines
from raydpo.workspace.lock import owned_directory

_DEFECT = 1
_USER_ERROR = 2


class Stopped(Exception):
    """Raised by a stage that has ended early because SIGTERM asked it to; the text says what is saved."""


@dataclass(frozen=True)
class Ending:
    """One line of JSON and the exit code that goes with it."""

    line: str
    exit_code: int


@dataclass(frozen=True)
class StageJob:
    """What a job that runs a stage leaves in the run's directory."""

    stage: str
    name: str  # of the run
    output_dir: str
    run_file: str  # resolved, as text


def run_stage(job: StageJob, work: Callable[[], dict[str, Any]], check: Callable[[], object] | None = None) -> int:
    """Run a stage that owns `output_dir`: lock it, save the resolved run file, leave result.json. Returns the code.

    What libraries print is kept in logs/<stage>.log, and the last line of a failure names it. A result.json of an
    earlier job is removed before the work, so that a job killed without warning never shows another's success; where
    `check` refuses the job there is no work, and what an earlier job has left stays.
    """
    started = time.monotonic()
    outcome: Ending | None = None
    with _terminate_as_exit() as arrived:
        try:
            directory = Path(job.output_dir)
            result = directory / "result.json"
            log = directory / "logs" / f"{job.stage}.log"
            with owned_directory(directory):
                with only_our_lines(log):
                    refusal = _refusal(job, check, arrived)
                    if not refusal:
                        result.unlink(missing_ok=True)
                        write_text(directory / "run.yaml", job.run_file)
                    outcome = refusal or _attempt(job.stage, job.name, work, arrived)
                if outcome.exit_code in (_DEFECT, _USER_ERROR):
                    say(f"raydpo {job.stage}: all output is in {log}", sys.stderr)
                if not (refusal and result.exists()):
                    write_text(result, outcome.line + "\n")
        except UserError as error:
            outcome = _user_error(job.stage, job.name, error, started)
        except OSError as error:
            reason = UserError(f"output_dir {job.output_dir} cannot be written: {error}. Set another or mend it.")
            ended = _user_error(job.stage, job.name, reason, started)
            outcome = outcome if outcome and outcome.exit_code else ended  # what went wrong first is the cause
    return _announce(outcome)


def _refusal(job: StageJob, check: Callable[[], object] | None, arrived: list[int]) -> Ending | None:
    """How the job ends where its check does not pass; None where it does."""

    def checked() -> dict[str, Any]:
        if check:
            check()
        return {}

    ending = _attempt(job.stage, job.name, checked, arrived)
    return ending if ending.exit_code else None


def run_check(stage: str, name: str, work: Callable[[], dict[str, Any]]) -> int:
    """Run a stage that only looks: nothing is locked or written, the status line is printed all the same."""
    with _terminate_as_exit() as arrived:
        return _announce(_attempt(stage, name, work, arrived))


def refuse(stage: str, error: UserError) -> int:
    """End a job that cannot begin, because there is no valid run file."""
    return _announce(_user_error(stage, None, error, time.monotonic()))


def _attempt(stage: str, name: str, work: Callable[[], dict[str, Any]], arrived: list[int]) -> Ending:
    """Run the stage of the run with this name; `arrived` holds the SIGTERMs that have come by the time it ends."""
    started = time.monotonic()
    try:
        return _outcome(stage, name, started, 0, status="succeeded", result=work())
    except UserError as error:
        return _user_error(stage, name, error, started)
    except Stopped as error:
        return _interrupted(stage, name, started, signal.SIGTERM, f": {error}")
    except KeyboardInterrupt:
        return _interrupted(stage, name, started, signal.SIGINT)
    except SystemExit as error:
        # Ray turns signals into exits: SIGTERM into its number, Ctrl-C during training into 0. An exit inside ray.get,
        # whatever its cause, comes out as 1; so SIGTERM is what has been seen to arrive.
        if arrived or error.code == signal.SIGTERM:
            return _interrupted(stage, name, started, signal.SIGTERM)
        if error.code in (None, 0, 1):
            return _interrupted(stage, name, started, signal.SIGINT)
        return _outcome(stage, name, started, _DEFECT, status="failed", error=f"exited with {error.code}")
    except Exception as error:
        say(traceback.format_exc(), sys.stderr)
        description = f"{type(error).__name__}: {error}"
        return _outcome(stage, name, started, _DEFECT, status="failed", error=description)


def _interrupted(stage: str, name: str, started: float, by: signal.Signals, saved: str = "") -> Ending:
    return _outcome(stage, name, started, 128 + by, status="interrupted", error=by.name + saved)


def _user_error(stage: str, name: str | None, error: UserError, started: float) -> Ending:
    say(f"raydpo {stage}: {error}", sys.stderr)
    return _outcome(stage, name, started, _USER_ERROR, status="failed", error=str(error))


def _outcome(stage: str, name: str | None, started: float, exit_code: int, **ending: Any) -> Ending:
    seconds = round(time.monotonic() - started, 3)
    status = {"status": ending.pop("status"), "stage": stage, "name": name, "seconds": seconds, **ending}
    return Ending(json.dumps(status, allow_nan=False), exit_code)


def _announce(outcome: Ending) -> int:
    sys.stderr.flush()
    print(outcome.line, flush=True)
    return outcome.exit_code


@contextmanager
def _terminate_as_exit() -> Iterator[list[int]]:
    """Let SIGTERM unwind the stack like an exit, so that every `finally` stops what it started.

    Yields the signals that have arrived.
    """
    arrived: list[int] = []

    def unwind(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)
        raise SystemExit(number)

    previous = signal.signal(signal.SIGTERM, unwind)
    try:
        yield arrived
    finally:
        signal.signal(signal.SIGTERM, previous)
