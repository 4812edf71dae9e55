"""Laws of failure records: each failure is kept once, in the user's terms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ray.train import ControllerError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError

from raydpo.config.files import whole_lines
from raydpo.config.schema import Timeouts, Workers
from raydpo.runtime.failures import FailureLog, last_step, start_refusal

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
    refusal = start_refusal(error, Workers(count=2, cpus=3), Timeouts(start=30))
    assert refusal
    assert "2 workers with 3 CPUs and 0 GPUs each did not start within timeouts.start=30 s, tried 3 times" in str(
        refusal
    )
    assert start_refusal(ControllerError(ValueError("a defect")), Workers(), Timeouts()) is None
