"""Runs as a comparison reads them: whatever is there, and what is missing or damaged said by name.

Unlike a report, a comparison takes runs that are going on, that were killed, or that another raydpo made; so nothing
here is held against today's run file, and no model is opened.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ruamel.yaml.error import YAMLError

from raydpo.config.load import load_run_file
from raydpo.config.yaml12 import read_yaml
from raydpo.errors import UserError
from raydpo.evaluate.judgements import Judgements, read_judgements
from raydpo.evaluate.records import Evaluation, folders_of, read_records
from raydpo.storage.files import whole_lines

Settings = dict[str, Any]
"""Values by dotted key, such as train.objective.beta."""


@dataclass
class ComparedRun:
    """What one run has left."""

    name: str  # by which the comparison calls it
    directory: Path
    settings: Settings = field(default_factory=dict)  # of its run file as it ran
    identity: Settings = field(default_factory=dict)  # of its training: what decides which weights come out
    metrics: list[dict[str, Any]] = field(default_factory=list)  # one a step, by rising step
    evaluations: list[Evaluation] = field(default_factory=list)  # by prompts and temperature, then by rising step
    judgements: Judgements = field(default_factory=Judgements)
    problems: list[str] = field(default_factory=list)  # what is missing or damaged, each naming its file

    @property
    def shows_something(self) -> bool:
        """Whether there is anything to compare."""
        return bool(self.metrics or self.evaluations)


def read_runs(places: Sequence[str]) -> list[ComparedRun]:
    """The runs of output directories or run files, in their order, each under a name of its own.

    Raises UserError for fewer than two runs, for one that is named twice, and where fewer than two have anything to
    show; every other problem is the run's own, so that one damaged run does not hide the others.
    """
    directories = [_directory_of(place) for place in places]
    resolved = [directory.resolve() for directory in directories]
    if len(directories) < 2:
        raise UserError("a comparison needs at least two runs; give their output directories or run files.")
    twice = next((path for i, path in enumerate(resolved) if path in resolved[:i]), None)
    if twice:
        raise UserError(f"{twice} is named twice; give each run once.")
    runs = [_read_run(directory) for directory in directories]
    if sum(run.shows_something for run in runs) < 2:
        problems = "; ".join(problem for run in runs for problem in run.problems)
        raise UserError(f"fewer than two of these runs have steps or evaluations to compare: {problems}.")
    return _named_apart(runs)


def _directory_of(place: str) -> Path:
    """The output directory itself, or that of a run file."""
    path = Path(place)
    return Path(load_run_file(path).output_dir) if path.is_file() else path


def _read_run(directory: Path) -> ComparedRun:
    run = ComparedRun(directory.name, directory)
    if not directory.is_dir():
        run.problems.append(f"{directory} does not exist: the run has not begun, or its output_dir is another")
        return run
    run.settings = _settings(directory / "run.yaml", run.problems)
    run.identity = _identity(directory / "train" / "identity.json", run.problems)
    run.metrics = _metrics(directory / "train" / "metrics.jsonl", run.problems)
    run.evaluations = _evaluations(directory / "evaluations", run.problems)
    try:
        run.judgements = read_judgements(directory / "judgements" / "judgements.json")
    except UserError as error:
        run.problems.append(str(error))
    return replace(run, name=str(run.settings.get("name") or run.name))


def _settings(path: Path, problems: list[str]) -> Settings:
    """The run file as it ran. Its keys are not checked: they may be those of another version."""
    try:
        tree = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{path} is missing: no stage has begun")
        return {}
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        problems.append(f"{path} cannot be read ({_first_line(error)})")
        return {}
    if not isinstance(tree, dict):
        problems.append(f"{path} is not a run file")
        return {}
    return flat(tree)


def _identity(path: Path, problems: list[str]) -> Settings:
    """What decides the training's weights; nothing before training, or where an earlier raydpo kept none."""
    if not path.exists():
        return {}
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path} is not JSON ({_first_line(error)})")
        return {}
    return flat(tree) if isinstance(tree, dict) else {}


def _metrics(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The steps that can be read. A line that is being written is none yet; damaged ones are counted and named."""
    if not path.exists():
        problems.append(f"{path} is missing: no step has been trained")
        return []
    by_step: dict[int, dict[str, Any]] = {}
    damaged: list[int] = []
    try:
        lines = whole_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path} cannot be read ({_first_line(error)})")
        return []
    for number, line in enumerate(lines, start=1):
        row = _step(line)
        if row is None:
            damaged.append(number)
        else:
            by_step[row["step"]] = row  # a resumed run repeats steps; the later attempt is the one that lives on
    if damaged:
        problems.append(f"{path}: line {damaged[0]} is no step, {len(damaged)} such lines in all are left out")
    elif not by_step:
        problems.append(f"{path} is empty: no step has been trained")
    return [by_step[step] for step in sorted(by_step)]


def _step(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _evaluations(directory: Path, problems: list[str]) -> list[Evaluation]:
    found: list[Evaluation] = []
    for folder in folders_of(directory):
        try:
            records = read_records(folder, lambda step: {})
        except (OSError, UserError) as error:
            problems.append(f"no evaluation is shown: {error}")
            return []
        if records.left_out:
            steps = ", ".join(map(str, records.left_out))
            problems.append(f"{folder}: evaluations of step {steps} are of another version of raydpo")
        elif not records.valid:
            problems.append(f"{folder} holds no evaluation: the run file asks for none, or none has been made yet")
        found += records.valid
    return found


def flat(tree: dict[str, Any], before: str = "") -> Settings:
    """Nested mappings by their dotted keys."""
    values: Settings = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            values |= flat(value, f"{before}{key}.")
        else:
            values[f"{before}{key}"] = value
    return values


def is_number(value: Any) -> bool:
    """Whether a metric's value can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _named_apart(runs: list[ComparedRun]) -> list[ComparedRun]:
    """Runs of one name go by their directories."""
    names = [run.name for run in runs]
    return [replace(run, name=str(run.directory)) if names.count(run.name) > 1 else run for run in runs]


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
