"""The command line: `raydpo STAGE RUNFILE [key=value ...]`, and a file for each group of commands.

Arguments and the run file are checked before anything heavy is imported, so help and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from raydpo import __version__
from raydpo.cli.chat import add_chat, run_chat
from raydpo.cli.checkpoints import add_checkpoints, run_checkpoints
from raydpo.cli.compare import add_compare, run_compare
from raydpo.cli.frontier import add_frontier, run_frontier
from raydpo.cli.reference import add_reference, run_reference
from raydpo.cli.submit import add_submit, run_logs, run_status, run_stop, run_submit

STAGES = {
    "prepare": "read preference pairs, check them and write token shards",
    "sft": "fine-tune the model on completions; the result starts training and is its reference",
    "reward": "train a reward model on the pairs",
    "precompute": "score every pair with the reference model into the reference store",
    "train": "train the policy on the pairs",
    "sample": "sample completions from the reference, score them and make pairs",
    "evaluate": "sample held-out prompts from reference and policy and compare the rewards",
    "judge": "have judges compare the samples of evaluations with others, and count who wins",
    "bestofn": "measure what the best of N completions of the reference is worth",
    "report": "write report.html from what the other stages left",
    "run": "all stages that the run file asks for, in order",
    "doctor": "print versions, devices and cluster resources, and what will not fit",
}

GROUPS = {"checkpoints": run_checkpoints, "reference": run_reference}  # each with commands behind its name
# All that is no stage of a run.
COMMANDS = {
    **GROUPS,
    "chat": run_chat,
    "compare": run_compare,
    "frontier": run_frontier,
    "logs": run_logs,
    "status": run_status,
    "stop": run_stop,
    "submit": run_submit,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage and return the exit code: 0 only on success, 2 for a mistake that the user can mend."""
    arguments = _parser().parse_args(argv)
    if arguments.stage in COMMANDS:
        return _run_command(arguments)

    from raydpo.config.load import dump_run_file, load_run_file
    from raydpo.errors import UserError
    from raydpo.workspace.outcome import StageJob, refuse, run_check, run_stage

    try:
        run = load_run_file(arguments.run_file, arguments.overrides)
    except UserError as error:
        return refuse(arguments.stage, error)

    from raydpo import stages
    from raydpo.stages.inputs import check_inputs

    def check() -> None:
        check_inputs(run, arguments.stage)
        stages.check_reachable(arguments.stage)

    functions = {
        "prepare": stages.prepare,
        "sft": stages.sft,
        "reward": stages.reward,
        "precompute": stages.precompute,
        "train": stages.train,
        "sample": stages.sample,
        "evaluate": stages.evaluate,
        "judge": stages.judge,
        "bestofn": stages.bestofn,
        "report": stages.report,
        "run": stages.run,
    }
    # The doctor looks at a run that may be going on; it must neither wait for its lock nor touch its result.
    if arguments.stage == "doctor":
        return run_check("doctor", run.name, lambda: stages.doctor(run))
    job = StageJob(arguments.stage, run.name, run.output_dir, dump_run_file(run))
    return run_stage(job, lambda: functions[arguments.stage](run), check)


def _run_command(arguments: argparse.Namespace) -> int:
    from raydpo.errors import UserError

    try:
        code: int = COMMANDS[arguments.stage](arguments)
    except UserError as error:
        name = " ".join(filter(None, ("raydpo", arguments.stage, getattr(arguments, "command", ""))))
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    return code


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
    add_checkpoints(stages)
    add_frontier(stages)
    add_reference(stages)
    add_compare(stages)
    add_chat(stages)
    add_submit(stages, [*STAGES])
    return parser
