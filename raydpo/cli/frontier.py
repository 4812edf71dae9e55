"""`raydpo frontier`: methods, strengths and seeds over one run file, in one figure."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_frontier(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's parser."""
    text = "train methods at several strengths with several seeds and draw their rewards against their KLs"
    parser = parsers.add_parser("frontier", help=text, description=text.capitalize() + ".")
    parser.add_argument("frontier_file", metavar="FRONTIERFILE", help="the frontier file (YAML)")
    parser.add_argument("--only", metavar="METHOD", nargs="+", default=[], help="train these methods now")
    parser.add_argument("--dry-run", action="store_true", help="list the trainings and which of them are done")
    parser.set_defaults(command="")


def run_frontier(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code. Raises UserError for a mistake in the file."""
    from raydpo.config.frontier import load_frontier
    from raydpo.errors import UserError
    from raydpo.workspace.outcome import StageJob, run_stage

    asked = load_frontier(arguments.frontier_file)
    unknown = sorted(set(arguments.only) - set(asked.file.methods))
    if unknown:
        raise UserError(f"--only {unknown[0]}: no such method; the file has {', '.join(asked.file.methods)}.")
    from raydpo.stages import frontier

    if arguments.dry_run:
        print("\n".join(frontier.plan(asked)))
        return 0
    text = Path(arguments.frontier_file).read_text(encoding="utf-8")
    job = StageJob("frontier", asked.file.name, asked.file.output_dir, text)
    return run_stage(job, lambda: frontier.frontier(asked, arguments.only))
