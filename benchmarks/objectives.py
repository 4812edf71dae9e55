"""Losses compared on the tiny recipe: reward, KL and pair accuracy of each after the same number of steps.

Every seed samples, pairs and scores once; all losses train on the same pairs from the same weights, in one directory,
one after the other. An interval is over seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.child import ROOT
from raydpo.config.yaml12 import read_yaml
from raydpo.evaluate.records import Evaluation, read_records
from raydpo.evaluate.stats import Interval, mean_interval
from raydpo.objective.contract import MISMATCHED
from raydpo.objective.registry import make_objective, resolve

# With the arguments that differ from a loss's own defaults.
LOSSES: dict[str, dict[str, float]] = {
    "sigmoid": {},
    # The margin that it aims at is 1/(2 beta) a token: at 0.1 that is 5 nats, and the policy ended 150 nats away.
    "ipo": {"beta": 5.0},
    # A ranked row of four has one wanted completion and three others.
    "kto": {"undesirable_weight": 0.33},
    "simpo": {},
    "orpo": {},
    "unlikelihood": {},
    "preferred_ft": {},
}
MADE_ONCE = ("sft", "sample")
PREPARED = ("prepare", "precompute")
OF_A_LOSS = ("train", "exports", "evaluations")


@dataclass(frozen=True)
class Found:
    """What a loss has reached with one seed."""

    loss: str
    seed: int
    reward: float
    gained: float  # reward above the reference's, on the same prompts
    kl: float  # nats per completion
    pair_accuracy: float
    seconds: float  # of the training, evaluation beside it


def main() -> None:
    """Run all losses with all seeds and print the table; --json keeps every number."""
    options = _options()
    found: list[Found] = []
    for seed in range(options.seeds):
        work = Workplace(options.recipe, options.scratch / f"seed-{seed}", seed, options.steps)
        for stage in MADE_ONCE:
            work.run(stage)
        for loss in options.losses:
            found.append(work.trained_with(loss))
            print(found[-1], file=sys.stderr, flush=True)
            options.json.write_text(json.dumps([vars(each) for each in found], indent=1))
    print(table(found))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, default=ROOT / "jobs/recipes/tiny.yaml")
    parser.add_argument("--scratch", type=Path, default=Path("runs/objectives"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--losses", nargs="+", default=list(LOSSES))
    parser.add_argument("--steps", type=int, help="of each training; by default all of the recipe")
    parser.add_argument("--json", type=Path, default=Path("objectives.json"))
    return parser.parse_args()


class Workplace:
    """One output directory, in which the losses take turns."""

    def __init__(self, recipe: Path, output_dir: Path, seed: int, steps: int | None) -> None:
        self._seed = seed
        self._output = output_dir.absolute()
        self._output.mkdir(parents=True, exist_ok=True)
        self._run_file = self._output.with_suffix(".yaml")
        settings = read_yaml(recipe.read_text(encoding="utf-8"))
        settings |= {"output_dir": str(self._output), "seed": seed}
        # The last step is evaluated in any case.
        settings["train"] |= {"evaluate_every": None, "max_steps": steps}
        self._run_file.write_text(json.dumps(settings))  # JSON is YAML
        self._prepared: bool | None = None  # with completions of other prompts, or without

    def run(self, stage: str, *overrides: str) -> None:
        """A stage as a user runs it. RuntimeError with the end of what it printed when it fails."""
        command = [sys.executable, "-m", "raydpo", stage, str(self._run_file), *overrides]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")

    def trained_with(self, loss: str) -> Found:
        """Train with one loss from the beginning, and read the evaluation of its last step."""
        for name in OF_A_LOSS:
            shutil.rmtree(self._output / name, ignore_errors=True)
        objective = {"loss_type": [loss], **LOSSES.get(loss, {})}
        chosen = f"train.objective={json.dumps(objective)}"
        others = MISMATCHED in make_objective(resolve([loss])).needs
        if others is not self._prepared:  # what is scored already is found in the store
            for stage in PREPARED:
                self.run(stage, chosen)
            self._prepared = others
        self.run("train", chosen)
        evaluations = read_records(self._output / "evaluations", lambda step: {}).valid
        reference, last = evaluations[0], evaluations[-1]
        assert reference.step == 0 < last.step
        assert last.sequence_kl
        assert last.pair_accuracy
        stages = json.loads((self._output / "timings.json").read_text())["stages"]
        return Found(
            loss,
            self._seed,
            reward=last.reward.mean,
            gained=_gained(reference, last),
            kl=last.sequence_kl.mean,
            pair_accuracy=last.pair_accuracy.mean,
            seconds=stages["train"],
        )


def _gained(reference: Evaluation, last: Evaluation) -> float:
    assert [each.prompt for each in reference.samples] == [each.prompt for each in last.samples]
    return last.reward.mean - reference.reward.mean


def table(found: Sequence[Found]) -> str:
    """A markdown table, a line for each loss in the order in which they were run."""
    lines = ["| loss | reward | above the reference | KL, nats | pair accuracy |", "|---|---|---|---|---|"]
    for loss in dict.fromkeys(each.loss for each in found):
        runs = [each for each in found if each.loss == loss]
        cells = [_cell([getattr(run, name) for run in runs]) for name in ("reward", "gained", "kl", "pair_accuracy")]
        lines.append(f"| {loss} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    interval: Interval = mean_interval(values, range(len(values)))
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


if __name__ == "__main__":
    main()
