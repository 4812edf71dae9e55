"""The command line: `raydpo STAGE RUNFILE [key=value ...]`.

Arguments and the run file are checked before anything heavy is imported, so help and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydpo import __version__

if TYPE_CHECKING:
    from raydpo.config.schema import RunFile

STAGES = {
    "prepare": "read preference pairs, check them and write token shards",
    "sft": "fine-tune the model on completions; the result starts training and is its reference",
    "precompute": "score every pair with the reference model into the reference store",
    "train": "train the policy on the pairs",
    "sample": "sample completions from the reference, score them and make pairs",
    "evaluate": "sample held-out prompts from reference and policy and compare the rewards",
    "report": "write report.html from what the other stages left",
    "run": "all stages that the run file asks for, in order",
    "doctor": "print versions, devices and cluster resources, and what will not fit",
}


CHECKPOINTS = {
    "ls": ("list the checkpoints of a run, and verify them", ("PATH",)),
    "verify": ("name the first broken file of each checkpoint; exit code 1 when there is one", ("PATH",)),
    "export": ("make a model directory of a checkpoint, for transformers and vLLM", ("CHECKPOINT", "DIRECTORY")),
    "diff": ("compare two checkpoints, by tensor; exit code 1 when they differ", ("CHECKPOINT", "CHECKPOINT")),
}


REFERENCE = {
    "ls": ("list the keys of a reference store: rows, size, whether verified, age", ("STORE",)),
    "verify": ("read every shard and name what does not count, and why; exit code 1 when there is any", ("STORE",)),
    "gc": ("list what nobody would miss: leftovers of killed writers, duplicates; --yes removes it", ("STORE",)),
    "export": ("write all rows of a key to one parquet file", ("STORE", "KEY", "FILE")),
    "import": ("take reference log-probs of a run's rows from a file, as TRL names the columns", ("RUNFILE", "FILE")),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage and return the exit code: 0 only on success, 2 for a mistake that the user can mend."""
    arguments = _parser().parse_args(argv)
    if arguments.stage == "checkpoints":
        return _checkpoints(arguments.command, arguments.paths)
    if arguments.stage == "reference":
        return _reference(arguments)

    from raydpo.config.errors import UserError
    from raydpo.config.load import load_run_file
    from raydpo.runtime.outcome import refuse, run_check, run_stage

    try:
        run = load_run_file(arguments.run_file, arguments.overrides)
    except UserError as error:
        return refuse(arguments.stage, error)

    from raydpo.runtime import stages
    from raydpo.runtime.inputs import check_inputs

    def checked(run: RunFile) -> dict[str, Any]:
        check_inputs(run, arguments.stage)
        return functions[arguments.stage](run)

    functions = {
        "prepare": stages.prepare,
        "sft": stages.sft,
        "precompute": stages.precompute,
        "train": stages.train,
        "sample": stages.sample,
        "evaluate": stages.evaluate,
        "report": stages.report,
        "run": stages.run,
    }
    # The doctor looks at a run that may be going on; it must neither wait for its lock nor touch its result.
    if arguments.stage == "doctor":
        return run_check("doctor", run, stages.doctor)
    return run_stage(arguments.stage, run, checked)


def _checkpoints(command: str, paths: Sequence[Path]) -> int:
    from raydpo.config.errors import UserError
    from raydpo.runtime import checkpoints

    functions: dict[str, Callable[..., int]] = {
        "ls": checkpoints.ls,
        "verify": checkpoints.verify,
        "export": checkpoints.export,
        "diff": checkpoints.diff,
    }
    try:
        return functions[command](*paths)
    except UserError as error:
        print(f"raydpo checkpoints {command}: {error}", file=sys.stderr)
        return 2


def _reference(arguments: argparse.Namespace) -> int:
    from raydpo.config.errors import UserError
    from raydpo.runtime import references

    options = {"ls": (), "verify": (), "export": (), "gc": ("keys", "unverified", "older_than", "yes")}
    given = {name: getattr(arguments, name) for name in options.get(arguments.command, ("overrides",))}
    functions: dict[str, Callable[..., int]] = {
        "ls": references.ls,
        "verify": references.verify,
        "gc": references.gc,
        "export": references.export,
        "import": references.import_file,
    }
    try:
        return functions[arguments.command](*arguments.paths, **given)
    except UserError as error:
        print(f"raydpo reference {arguments.command}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="raydpo", description="Direct Preference Optimization on a Ray cluster.")
    parser.add_argument("--version", action="version", version=f"raydpo {__version__}")
    stages = parser.add_subparsers(dest="stage", metavar="STAGE", required=True)
    for name, summary in STAGES.items():
        stage = stages.add_parser(name, help=summary, description=summary.capitalize() + ".")
        stage.add_argument("run_file", metavar="RUNFILE", help="the run file (YAML)")
        stage.add_argument(
            "overrides", metavar="KEY=VALUE", nargs="*", help="overrides, for example train.objective.beta=0.05"
        )
    checkpoints = stages.add_parser("checkpoints", help="list, verify, export and compare checkpoints")
    commands = checkpoints.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (summary, paths) in CHECKPOINTS.items():
        command = commands.add_parser(name, help=summary, description=summary.capitalize() + ".")
        for path in paths:
            command.add_argument("paths", metavar=path, action="append", type=Path)
    _add_reference(stages)
    return parser


def _add_reference(stages: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    reference = stages.add_parser("reference", help="look after a reference store: list, verify, clear up, exchange")
    commands = reference.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parsers = {}
    for name, (summary, paths) in REFERENCE.items():
        parsers[name] = commands.add_parser(name, help=summary, description=summary.capitalize() + ".")
        for path in paths:
            parsers[name].add_argument("paths", metavar=path, action="append")
    gc = parsers["gc"]
    gc.add_argument("--key", dest="keys", metavar="KEY", action="append", default=[], help="all of this key, too")
    gc.add_argument("--unverified", action="store_true", help="imported values that no training has verified, too")
    gc.add_argument(
        "--older-than", metavar="MINUTES", type=float, default=60, help="younger files are a writer's at work (60)"
    )
    gc.add_argument("--yes", action="store_true", help="remove it")
    parsers["import"].add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="overrides of the run file")
