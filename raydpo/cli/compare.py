"""`raydpo compare`: runs side by side, on a page and in the terminal. No cluster, and no model is opened."""

from __future__ import annotations

import argparse
from pathlib import Path

PAGE = "comparison.html"


def add_compare(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's parser."""
    summary = "set runs side by side: settings, curves, measures with paired differences, samples"
    command = parsers.add_parser("compare", help=summary, description=summary.capitalize() + ".")
    command.add_argument("runs", metavar="RUN", nargs="+", help="an output_dir or a run file; the first is the base")
    command.add_argument("--page", type=Path, default=Path(PAGE), help=f"where the page goes ({PAGE})")


def run_compare(arguments: argparse.Namespace) -> int:
    """Write the page, print the tables and return the exit code. Raises UserError."""
    from raydpo.report.compare_page import comparison_text, write_comparison
    from raydpo.report.compared import read_runs

    runs = read_runs(arguments.runs)
    write_comparison(runs, arguments.page)
    print(comparison_text(runs))
    print(f"\ncomparison: {arguments.page}")
    return 0
