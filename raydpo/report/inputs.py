"""What the stages of a run have left in its output directory, read for the report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydpo.config.load import load_run_file
from raydpo.config.schema import RunFile
from raydpo.errors import UserError
from raydpo.report.best_of_n import BestOfNRecord, read_best_of_n
from raydpo.report.reward_model import RewardEvaluation, read_reward_evaluation

ALWAYS = ("step", "loss")
WHERE_MEASURED = (  # a loss without a reward has none of them: then no step has
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
)
OF_PAIRS = {"rewards/margins", "rewards/accuracies"}


@dataclass(frozen=True)
class RunOutput:
    """Everything that a report shows besides the evaluations."""

    run: RunFile
    config: str  # run.yaml as it was written: resolved, secrets redacted
    metrics: list[dict[str, Any]]  # one a step, by rising step
    stages: dict[str, float]  # seconds; empty where no stage has kept its own
    data_counts: dict[str, dict[str, int]]  # dataset -> what became of its rows; empty without token manifests
    best_of_n: BestOfNRecord | None  # None where its stage has not run
    reward: RewardEvaluation | None  # None without a reward stage, or without held-out pairs


def read_output(output_dir: Path) -> RunOutput:
    """Read a finished run. Raises UserError naming the file that is missing or broken and the stage that makes it."""
    return RunOutput(
        config=_text(output_dir / "run.yaml", "run"),
        run=load_run_file(output_dir / "run.yaml"),
        metrics=_metrics(output_dir / "train" / "metrics.jsonl"),
        stages=_stages(output_dir / "timings.json"),
        data_counts=_data_counts(output_dir / "tokens"),
        best_of_n=read_best_of_n(output_dir / "best_of_n.json"),
        reward=read_reward_evaluation(output_dir / "reward" / "evaluation.json"),
    )


def _metrics(path: Path) -> list[dict[str, Any]]:
    by_step: dict[int, dict[str, Any]] = {}
    lines = list(_lines(path))
    everywhere = [key for key in WHERE_MEASURED if any(key in row for _, row in lines)]
    of_pairs = not OF_PAIRS.isdisjoint(everywhere)
    for place, row in lines:
        # Of single completions, a batch without wanted ones says nothing of these.
        measured = everywhere if of_pairs else [key for key in everywhere if key in row]
        bad = next((key for key in (*ALWAYS, *measured) if not _is_number(row.get(key))), None)
        if bad:
            raise UserError(f"{place}: {bad} is {row.get(bad)}, not a finite number; run `raydpo train` again")
        # A resumed run repeats the steps since its checkpoint; the later attempt is the one that lives on.
        by_step[row["step"]] = row
    if not by_step:
        raise UserError(f"{path} is empty: no step has been trained; run `raydpo train`")
    return [by_step[step] for step in sorted(by_step)]


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_text(path, "train").splitlines(), start=1):
        place = f"{path}, line {number}"
        yield place, _object(line, place, "train")


def _stages(path: Path) -> dict[str, float]:
    if not path.exists():
        return {}
    stages = _object(path.read_text(encoding="utf-8"), str(path), "train").get("stages")
    if not isinstance(stages, dict) or not all(_is_number(seconds) for seconds in stages.values()):
        raise UserError(f'{path}: "stages" is not a table of seconds by stage; remove it')
    return stages


def _data_counts(tokens: Path) -> dict[str, dict[str, int]]:
    paths = sorted(tokens.glob("*/manifest.json"))
    return {path.parent.name: _object(_text(path, "prepare"), str(path), "prepare")["counts"] for path in paths}


def _text(path: Path, stage: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: `raydpo {stage}` writes it; run that first") from error


def _object(text: str, place: str, stage: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{place} is not JSON ({error}); run `raydpo {stage}` again") from error
    if not isinstance(value, dict):
        raise UserError(f"{place} is not a JSON object; run `raydpo {stage}` again")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
