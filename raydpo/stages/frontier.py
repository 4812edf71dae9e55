"""The frontier: methods, strengths and seeds over one run file, trained side by side and measured alike.

    shared/sft/                  the model that all start from, and the reference of all
    shared/seed-S/               what was sampled with a seed, its rows with their tokens, Best-of-N
    shared/reference/            one store for all
    METHOD/STRENGTH/seed-S/      an ordinary run: checkpoints, export, evaluations

What is done is what these directories say, so the same command goes on wherever it was ended.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydpo import stages
from raydpo.config.frontier import Child, Frontier
from raydpo.config.load import dump_run_file
from raydpo.config.schema import RunFile
from raydpo.errors import UserError
from raydpo.evaluate.frontier import Run
from raydpo.stages.inputs import check_inputs, loss_checks
from raydpo.stages.values import RunValues
from raydpo.storage.files import write_json, write_text
from raydpo.track.say import say
from raydpo.workspace.asked import OriginsToday
from raydpo.workspace.lock import owned_directory

if TYPE_CHECKING:
    from raydpo.runtime.children import ChildRun
    from raydpo.runtime.pools.sampling import Samplers

Result = dict[str, Any]
OF_THE_REFERENCE = "step-000000*.json"


def frontier(asked: Frontier, only: Sequence[str] = ()) -> Result:
    """Everything that is not done yet, and the figure. only: methods to train now; the others are left as they are.

    Raises UserError before the first stage for a loss that does not take what is set, or not the rows that there are.
    """
    _check_losses(asked)
    first = asked.fine_tuning()
    if first.sft:
        _once(first, "sft", lambda: stages.sft(first))
    children = [child for child in asked.children() if not only or child.method in only]
    with stages.on_cluster(RunValues(first), "evaluate"):
        rows_run = asked.sampling(asked.file.seeds[0])
        with stages.engines_of(RunValues(rows_run)) as engines:
            for seed in asked.file.seeds:
                _sample(asked.sampling(seed), engines)
            for child in children:
                _prepare(asked, child)
            _train_and_evaluate(children, RunValues(first), engines)
    return draw(asked)


def draw(asked: Frontier) -> Result:
    """The figure, its tables and its sentences, from the runs that have been evaluated."""
    from raydpo.report.frontier import write_frontier

    runs = [run for child in asked.children() if (run := _measured(child))]
    best = [RunValues(asked.sampling(seed)).layout.best_of_n for seed in asked.file.seeds]
    return write_frontier(asked.root, runs, best, subject=asked.file.about, name=asked.file.name)


def plan(asked: Frontier) -> list[str]:
    """A line for every training: what it is, where, and whether it is done. Raises UserError as the frontier does."""
    _check_losses(asked)
    return [
        f"{child.label:40} {'done' if _is_trained(child.run) else 'to do':6} {child.run.output_dir}"
        for child in asked.children()
    ]


def _check_losses(asked: Frontier) -> None:
    """Every point once; what is wrong with the last would else show when all others have been trained."""
    for child in asked.children():
        if child.seed != asked.file.seeds[0]:
            continue
        try:
            for check in loss_checks(child.run, RunValues(child.run).rows()):
                check()
        except UserError as error:
            point = " ".join(filter(None, (child.method, child.strength)))
            raise UserError(f"{asked.file.name}: {point}: {error}") from None


def _sample(run: RunFile, engines: Samplers) -> None:
    """The rows of a seed, and Best-of-N on the evaluation's prompts."""
    values = RunValues(run)
    if run.sample:
        _once(run, "sample", lambda: stages.sample_with(values, engines))
    if run.best_of_n:
        _once(run, "bestofn", lambda: stages.best_of_n_with(values, engines))


def _prepare(asked: Frontier, child: Child) -> None:
    """Tokens and reference values of the child's rows, which all trainings of its seed share."""
    from raydpo.workspace.objective import needs_others, needs_reference

    others = needs_others(child.run.train)
    objective = {"train.objective": child.run.train.objective.model_dump(exclude_none=True)} if others else {}
    run = asked.rows(child.seed, objective, others=others)
    _once(run, "prepare", lambda: stages.prepare(run))
    if needs_reference(child.run.train):
        _once(run, "precompute", lambda: stages.precompute(run))
    tokens = Path(child.run.output_dir) / "tokens"
    tokens.parent.mkdir(parents=True, exist_ok=True)
    if not tokens.exists():
        tokens.symlink_to(Path(run.output_dir) / "tokens", target_is_directory=True)


def _train_and_evaluate(children: Sequence[Child], values: RunValues, engines: Samplers) -> None:
    """Trainings run in processes of their own; this one evaluates what they export, with the engines that are up."""
    from raydpo.runtime.children import Children
    from raydpo.runtime.cluster.preflight import bills

    by_directory = {Path(child.run.output_dir): child for child in children}
    done = [child for child in children if _is_trained(child.run)]
    for child in done:
        _evaluate(child, children, engines)
    to_do = [_training(child) for child in children if child not in done]
    own = bills(values.processes(), "evaluate")["evaluate"]
    with Children(to_do, own) as running:
        for run in running.finished():
            _evaluate(by_directory[run.output_dir], children, engines)


def _training(child: Child) -> ChildRun:
    """The child's training as a command. Its run file leaves the evaluation to the frontier, whose engines are up."""
    from raydpo.runtime.children import ChildRun
    from raydpo.runtime.cluster.preflight import bills

    run = child.run.model_copy(update={"evaluate": None})
    directory = Path(run.output_dir)
    directory.mkdir(parents=True, exist_ok=True)
    run_file = directory / "train.yaml"
    write_text(run_file, dump_run_file(run))
    demands = bills(RunValues(run).processes(), "train")["train"]
    return ChildRun(child.label, "train", run_file, directory, demands)


def _is_trained(run: RunFile) -> bool:
    """Whether the run's own outcome says so, of the settings that it has today."""
    directory = Path(run.output_dir)
    try:
        outcome = json.loads((directory / "result.json").read_text(encoding="utf-8"))
        settings = (directory / "train.yaml").read_text(encoding="utf-8")
    except (FileNotFoundError, ValueError):
        return False
    today = dump_run_file(run.model_copy(update={"evaluate": None}))
    return outcome["stage"] == "train" and outcome["status"] == "succeeded" and settings == today


def _evaluate(child: Child, children: Sequence[Child], engines: Samplers) -> None:
    """Every export of the child without a record."""
    _copy_reference(child, children)
    say(f"{child.label}: evaluate")
    with owned_directory(Path(child.run.output_dir)):
        stages.evaluate_with(RunValues(child.run), engines)


def _copy_reference(child: Child, children: Sequence[Child]) -> None:
    """The reference's record from a sibling with the same rows, which was asked the same; a record says of what it is.

    Held-out pairs are part of that, though the reference ranks none.
    """
    own = RunValues(child.run).layout.evaluations
    if any(own.rglob(OF_THE_REFERENCE)):
        return
    for sibling in children:
        there = RunValues(sibling.run).layout.evaluations
        records = list(there.rglob(OF_THE_REFERENCE))
        if records and _rows_of(sibling) == _rows_of(child):
            for record in records:
                copy = own / record.relative_to(there)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(record, copy)
            return


def _rows_of(child: Child) -> Path:
    """Where the tokens are that it trains on, which siblings share."""
    return (Path(child.run.output_dir) / "tokens").resolve()


def _measured(child: Child) -> Run | None:
    """What the child's evaluations say; None while it has none."""
    found = OriginsToday(RunValues(child.run).evaluations()).records().valid
    if len(found) < 2:
        return None
    return Run(child.method, child.strength, child.seed, found)


def _once(run: RunFile, stage: str, work: Callable[[], Result]) -> None:
    """Do a shared stage unless it was done with the same run file; `<stage>.done.json` beside its outputs says so."""
    directory = Path(run.output_dir)
    done = directory / f"{stage}.done.json"
    settings = dump_run_file(run)
    if done.exists() and json.loads(done.read_text(encoding="utf-8"))["run"] == settings:
        return
    say(f"{directory.relative_to(directory.parents[1])}: {stage}")
    with owned_directory(directory):
        check_inputs(run, stage)
        result = work()
        write_json(done, {"run": settings, "result": result})
