"""Laws of failure records: each failure is kept once, in the user's terms."""

from __future__ import annotations

import errno
import json
import pickle
from pathlib import Path

import pytest
from ray.train import ControllerError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)

from raydpo.config.schema import Timeouts, Workers
from raydpo.errors import UserError
from raydpo.runtime.trainer.failures import FailureLog, final_refusal, last_step
from raydpo.storage.files import whole_lines

pytestmark = pytest.mark.unit

DEAD = WorkerHealthCheckFailedError("A worker health check failed.", ValueError("the actor died\nand more"))
LATE = TimeoutError("rank 0, step 8: another rank is late")


def kept(directory: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in whole_lines(directory / "failures.jsonl")]


def test_a_failure_is_kept_once_however_often_it_is_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 6}\n{"step": 7}\n')
    log = FailureLog(tmp_path)
    for failed in ({1: DEAD}, {1: DEAD}, {0: LATE}):
        log.after_exception(None, failed)
    assert kept(tmp_path) == [
        {"rank": 1, "after_step": 7, "error": "ValueError: the actor died"},
        {"rank": 0, "after_step": 7, "error": "TimeoutError: rank 0, step 8: another rank is late"},
    ]
    assert "rank 1 failed after step 7: ValueError: the actor died" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "step"), [(None, 0), ("", 0), ('{"step": 6}\n', 6), ('{"step": 6}\n{"st', 6), ('{"st', 0)]
)
def test_a_line_that_a_kill_cut_short_is_no_step(tmp_path: Path, text: str | None, step: int) -> None:
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    assert last_step(tmp_path) == step


def test_workers_that_do_not_start_come_with_what_they_ask_and_how_long_they_had() -> None:
    error = ControllerError(WorkerGroupStartupTimeoutError(2))
    refusal = final_refusal(error, Workers(count=2, cpus=3), Timeouts(start=30))
    assert refusal
    assert "2 workers with 3 CPUs and 0 GPUs each did not start within timeouts.start=30 s, tried 3 times" in str(
        refusal
    )
    assert final_refusal(ControllerError(ValueError("a defect")), Workers(), Timeouts()) is None


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (UserError("step-0 law broken"), "step-0 law broken"),
        (
            OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl"),
            "metrics.jsonl cannot be written: No space",
        ),
        (OSError(errno.EROFS, "Read-only file system"), "cannot be written: Read-only file system. "),
    ],
)
def test_what_another_group_would_meet_again_ends_the_run_in_the_users_terms(
    tmp_path: Path, error: Exception, told: str
) -> None:
    with pytest.raises(ControllerError) as ended:
        FailureLog(tmp_path).after_exception(None, {1: UserExceptionWithTraceback(error, "the worker's traceback")})
    arrived = pickle.loads(pickle.dumps(ended.value))
    refusal = final_refusal(arrived, Workers(), Timeouts())
    assert isinstance(refusal, UserError)
    assert told in str(refusal)
