"""What a training run leaves in its output directory, as the tests compare it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from raydpo.storage.files import whole_lines
from tests.cluster.processes import Finished
from tests.cluster.runfiles import small_run, write_run_file

CLOCK = {"seconds", "cpu_seconds", "data_seconds", "checkpoint_stall_seconds"}
CLOCK |= {"tokens_per_second", "rows_per_second", "mfu"}
GOES_ON = re.compile(r"train: goes on after step (\d+), (\d+) steps are done again")


def metrics_of(output_dir: Path) -> list[dict[str, Any]]:
    """What was recorded of each step, but for how long it took."""
    lines = map(json.loads, whole_lines(output_dir / "train" / "metrics.jsonl"))
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]


def recorded(output_dir: Path) -> int:
    """Steps in metrics.jsonl, which is being written."""
    return len(whole_lines(output_dir / "train" / "metrics.jsonl"))


def steps_committed(output_dir: Path) -> list[int]:
    markers = (output_dir / "train" / "checkpoints").glob("step-*/COMMITTED")
    return sorted(int(marker.parent.name[5:11]) for marker in markers)


def committed(output_dir: Path) -> int:
    """The newest step with a committed checkpoint; 0 without one."""
    return max(steps_committed(output_dir), default=0)


def failures(output_dir: Path) -> list[dict[str, Any]]:
    """What Ray Train's controller has noted of workers that failed."""
    return [json.loads(line) for line in whole_lines(output_dir / "train" / "failures.jsonl")]


def resumptions(job: Finished) -> list[tuple[int, int]]:
    """(step, steps done again) of each time that a worker group went on where another one had been."""
    return [(int(step), int(again)) for step, again in GOES_ON.findall(job.stdout)]


def ready_to_train(prepared: Path, inputs: Path, directory: Path, **train: Any) -> Path:
    """The run file of a run below `directory` that has been prepared and precomputed already, as `prepared` was."""
    for name in ("tokens", "reference"):
        shutil.copytree(prepared / name, directory / "out" / name)
    run = small_run(inputs, directory / "out")
    run["train"] |= train
    return write_run_file(directory / "run.yaml", run)
