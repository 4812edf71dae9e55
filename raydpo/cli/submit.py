"""`raydpo submit`, `status`, `logs` and `stop`: a run's stages as jobs of a cluster."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raydpo.runtime.cluster.submission import Submissions, Submitted

COMMANDS = {
    "status": "say what became of the jobs of a run",
    "logs": "print what a job prints until it ends, and end as it does",
    "stop": "ask a job to end, and wait until it has committed the step that it is in",
}
STILL_THERE = 130  # as after Ctrl-C: whoever followed a job has left it


def add_submit(parsers: argparse._SubParsersAction[argparse.ArgumentParser], stages: Sequence[str]) -> None:
    """Add the parsers of the four commands."""
    summary = "hand a stage in to a cluster, print what it prints, and end as it does"
    submit = parsers.add_parser("submit", help=summary, description=summary.capitalize() + ".")
    submit.add_argument("submitted", metavar="STAGE", choices=stages, help="a stage, or run for all of them")
    submit.add_argument("run_file", metavar="RUNFILE", help="the run file (YAML)")
    submit.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="overrides, as for the stage itself")
    submit.add_argument("--no-wait", action="store_true", help="come back when the job is handed in")
    submit.add_argument(
        "--module", metavar="DIR", type=Path, action="append", default=[], help="send this Python package with it"
    )
    parts = [submit]
    for name, summary in COMMANDS.items():
        parts.append(parsers.add_parser(name, help=summary, description=summary.capitalize() + "."))
        parts[-1].add_argument("run", metavar="RUN", help="a run file, an output_dir, a run's name, or a job's id")
    for part in parts:
        part.add_argument("--address", help="of the dashboard, http://host:8265; else RAY_ADDRESS leads to the cluster")
        part.set_defaults(command="")


def run_submit(arguments: argparse.Namespace) -> int:
    """Submit the stage; with its end, return its exit code. Raises UserError."""
    from raydpo.config.load import load_run_file, shipped_run_file
    from raydpo.runtime.cluster.submission import Submission, submissions

    run = load_run_file(arguments.run_file, arguments.overrides)
    modules = tuple(module.absolute() for module in arguments.module)
    asked = Submission(arguments.submitted, run.name, run.output_dir, shipped_run_file(run), run.timeouts.stop, modules)
    with submissions(arguments.address) as jobs:
        identity = jobs.submit(asked)
        told = _commands(identity, arguments.address)
        print(f"submitted {identity}\n{told}", file=sys.stderr, flush=True)
        return 0 if arguments.no_wait else _follow(jobs, identity)


def run_status(arguments: argparse.Namespace) -> int:
    """Print one line a job, the newest first."""
    from raydpo.runtime.cluster.submission import submissions

    with submissions(arguments.address) as jobs:
        newest = jobs.find(_name(arguments.run))
        found = [newest] if newest.id == arguments.run else jobs.of_run(newest.output_dir)
    for job in found:
        print(_line(job))
    return 0


def run_logs(arguments: argparse.Namespace) -> int:
    """Follow a job that runs, print what a finished one has printed, and return its exit code."""
    from raydpo.runtime.cluster.submission import submissions

    with submissions(arguments.address) as jobs:
        found = jobs.find(_name(arguments.run))
        if found.is_unfinished:
            return _follow(jobs, found.id)
        print(jobs.printed(found.id), end="")
        return found.outcome


def run_stop(arguments: argparse.Namespace) -> int:
    """Stop a job; 0 when it has stopped or had ended before."""
    from raydpo.runtime.cluster.submission import submissions

    with submissions(arguments.address) as jobs:
        found = jobs.find(_name(arguments.run))
        if found.is_unfinished:
            print(f"{found.id} is asked to end ...", file=sys.stderr, flush=True)
            found = jobs.stop(found.id)
        print(_line(found))
    return 0


def _follow(jobs: Submissions, identity: str) -> int:
    try:
        ended = jobs.follow(identity)
    except KeyboardInterrupt:
        print(f"{identity} goes on; `raydpo stop {identity}` ends it", file=sys.stderr)
        return STILL_THERE
    if ended.never_ran:
        print(ended.message, file=sys.stderr)
    print(_line(ended), file=sys.stderr)
    return ended.outcome


def _name(run: str) -> str:
    """What the cluster knows a run by: an output_dir for a run file or a directory, anything else as it is."""
    from raydpo.config.load import load_run_file

    path = Path(run)
    if path.is_file():
        return load_run_file(path).output_dir
    return str(path.absolute()) if path.is_dir() else run


def _line(job: Submitted) -> str:
    since = job.since.isoformat(" ", "seconds") if job.since else "not yet"
    said = ""
    with suppress(IndexError):
        said = job.message.splitlines()[0]
    return f"{job.status:<9}  {job.id}  {job.stage}  started {since}  {job.output_dir}  {said}".rstrip()


def _commands(identity: str, address: str | None) -> str:
    where = f" --address {address}" if address else ""
    return "\n".join(f"  raydpo {command} {identity}{where}" for command in COMMANDS)
