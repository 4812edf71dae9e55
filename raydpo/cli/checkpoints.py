"""`raydpo checkpoints`: list, verify, export and compare checkpoints."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

COMMANDS = {
    "ls": ("list the checkpoints of a run, and verify them", ("PATH",)),
    "verify": ("name the first broken file of each checkpoint; exit code 1 when there is one", ("PATH",)),
    "export": ("make a model directory of a checkpoint, for transformers and vLLM", ("CHECKPOINT", "DIRECTORY")),
    "diff": ("compare two checkpoints, by tensor; exit code 1 when they differ", ("CHECKPOINT", "CHECKPOINT")),
}


def add_checkpoints(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the group's parsers."""
    group = parsers.add_parser("checkpoints", help="list, verify, export and compare checkpoints")
    commands = group.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (summary, paths) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary.capitalize() + ".")
        for path in paths:
            command.add_argument("paths", metavar=path, action="append", type=Path)


def run_checkpoints(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code. Raises UserError."""
    import raydpo.cli.checkpoint_commands as commands  # here, because help and mistakes load nothing heavy

    functions: dict[str, Callable[..., int]] = {
        "ls": commands.list_checkpoints,
        "verify": commands.verify_checkpoints,
        "export": commands.export_checkpoint,
        "diff": commands.diff_checkpoints,
    }
    return functions[arguments.command](*arguments.paths)
