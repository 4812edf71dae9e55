"""Jobs on a cluster through Ray's jobs API: hand one in, follow it, stop it, and say what became of it."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from raydpo.errors import UserError
from raydpo.runtime.cluster.connection import STOP_WAIT, check_address, wrong_token
from raydpo.storage.files import write_text

NAME, STAGE, OUTPUT_DIR = "raydpo_name", "raydpo_stage", "raydpo_output_dir"
RUN_FILE = "run.yaml"
POLL_S = 0.5
UNFINISHED = (JobStatus.PENDING, JobStatus.RUNNING)
LARGEST_MODULE_MIB = 50  # of code; models and data belong on a disk that the nodes mount


@dataclass(frozen=True)
class Submission:
    """A stage of a run, as a cluster gets it."""

    stage: str
    name: str  # of the run
    output_dir: str
    run_file: str  # its text, with every path absolute
    stop_grace_s: int
    modules: tuple[Path, ...] = ()  # packages that the run file names functions of


@dataclass(frozen=True)
class Submitted:
    """What the cluster knows of a submission."""

    id: str
    stage: str
    name: str
    output_dir: str
    status: str  # PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED
    since: datetime | None  # in UTC; None before it has started
    message: str
    exit_code: int | None  # of the job's process, when it has ended by itself

    @property
    def is_unfinished(self) -> bool:
        """Whether it waits or runs."""
        return self.status in UNFINISHED

    @property
    def never_ran(self) -> bool:
        """Whether the cluster could not start it; the message says why."""
        return self.status == JobStatus.FAILED and self.exit_code is None

    @property
    def outcome(self) -> int:
        """What a shell should see: the job's own exit code; as of a signal when it was stopped, 1 when it was lost."""
        if self.status == JobStatus.STOPPED:
            return 128 + signal.SIGTERM
        return 1 if self.exit_code is None else self.exit_code


class Submissions:
    """The jobs of one cluster."""

    def __init__(self, client: JobSubmissionClient) -> None:
        self._client = client

    def submit(self, asked: Submission) -> str:
        """Hand a stage in and return its id. Raises UserError while another job of the run's directory is unfinished.

        The job's working directory holds its run file and nothing else.
        """
        for found in self.of_run(asked.output_dir):
            if found.is_unfinished:
                raise UserError(
                    f"{found.id} ({found.stage}, {found.status}) has output_dir {asked.output_dir} already. Follow it "
                    f"with `raydpo logs {found.id}`, or end it with `raydpo stop {found.id}` first."
                )
        for module in asked.modules:
            check_module(module)
        with tempfile.TemporaryDirectory() as directory:
            write_text(Path(directory) / RUN_FILE, asked.run_file)
            return self._client.submit_job(
                entrypoint=f"exec python -m raydpo {asked.stage} {RUN_FILE}",
                submission_id=f"{asked.name}-{asked.stage}-{secrets.token_hex(3)}",
                metadata={NAME: asked.name, STAGE: asked.stage, OUTPUT_DIR: asked.output_dir},
                runtime_env=_environment_of(asked, directory),
            )

    def find(self, run: str) -> Submitted:
        """The submission with this id, or else the newest one of the run whose name or output_dir this is.

        Raises UserError with the ids that there are, when there is none.
        """
        every = self.all()
        for found in every:
            if found.id == run:
                return found
        for found in every:
            if run in (found.name, found.output_dir):
                return found
        there = ", ".join(found.id for found in every) or "none"
        raise UserError(f"no submitted job is, or belongs to, {run}. Jobs of raydpo on this cluster: {there}.")

    def of_run(self, output_dir: str) -> list[Submitted]:
        """Those of one run, the newest first."""
        return [found for found in self.all() if found.output_dir == output_dir]

    def all(self) -> list[Submitted]:
        """Every submission of raydpo's that the cluster remembers, the newest first."""
        ours = [job for job in self._client.list_jobs() if job.submission_id and NAME in (job.metadata or {})]
        ours.sort(key=lambda job: job.start_time or 0, reverse=True)
        return [_submitted(job) for job in ours]

    def follow(self, submission_id: str) -> Submitted:
        """Print what the job prints until it ends, and return how it ended."""
        asyncio.run(self._print_logs(submission_id))
        return self._ended(submission_id)  # the log ends a moment before the job's end is on record

    def printed(self, submission_id: str) -> str:
        """What the job has printed so far."""
        text: str = self._client.get_job_logs(submission_id)
        return text

    def stop(self, submission_id: str) -> Submitted:
        """Ask the job to end and wait until it has: it commits the step that it is in, for at most its grace."""
        self._client.stop_job(submission_id)
        return self._ended(submission_id)

    def _ended(self, submission_id: str) -> Submitted:
        while (found := _submitted(self._client.get_job_info(submission_id))).is_unfinished:
            time.sleep(POLL_S)
        return found

    async def _print_logs(self, submission_id: str) -> None:
        lines: AsyncIterator[str] = self._client.tail_job_logs(submission_id)
        async for text in lines:
            sys.stdout.write(text)
            sys.stdout.flush()


def check_module(module: Path) -> None:
    """Raise UserError unless this is a package of Python files of a size that a job should carry."""
    if not (module / "__init__.py").is_file():
        raise UserError(f"{module} is no Python package: it has no __init__.py. Give the package's own directory.")
    files = [path for path in module.rglob("*") if path.is_file()]
    sizes = {path: path.stat().st_size for path in files}
    total = sum(sizes.values()) / 2**20
    if total > LARGEST_MODULE_MIB:
        largest = max(files, key=sizes.__getitem__)
        raise UserError(
            f"{module} has {total:,.0f} MiB, and at most {LARGEST_MODULE_MIB} MiB of code go with a job; the largest "
            f"file is {largest} with {sizes[largest] / 2**20:,.0f} MiB. Put data on a disk that the nodes mount."
        )


@contextmanager
def submissions(address: str | None) -> Iterator[Submissions]:
    """The jobs of the cluster at an address, or where RAY_ADDRESS leads.

    address: of the dashboard, http://host:8265, or of the head, host:6379. Raises UserError where nobody answers or
    the token is not the cluster's.
    """
    named = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not named:
        raise UserError(
            "no cluster is named. Set RAY_ADDRESS=host:6379, or give --address http://host:8265, the address of its "
            "dashboard."
        )
    if "://" not in named:
        check_address(named)
    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)  # it says what it uploads and how its socket closes
    os.environ["RAY_API_SERVER_ADDRESS"] = named  # to an address that it is given, Ray prefers what RAY_ADDRESS says
    try:
        yield Submissions(JobSubmissionClient())
    except AuthenticationError:
        raise wrong_token(named) from None
    except (ConnectionError, requests.exceptions.RequestException) as error:
        raise UserError(f"no dashboard of a Ray cluster answers at {named}: {error}") from None


def _environment_of(asked: Submission, directory: str) -> dict[str, Any]:
    environment: dict[str, Any] = {"working_dir": directory, "env_vars": {STOP_WAIT: str(asked.stop_grace_s)}}
    if asked.modules:  # an empty list is an error to Ray
        environment["py_modules"] = [str(module) for module in asked.modules]
    return environment


def _submitted(job: JobDetails) -> Submitted:
    metadata = job.metadata or {}
    return Submitted(
        id=str(job.submission_id),
        stage=metadata[STAGE],
        name=metadata[NAME],
        output_dir=metadata[OUTPUT_DIR],
        status=str(job.status.value),
        since=datetime.fromtimestamp(job.start_time / 1000, UTC) if job.start_time else None,
        message=job.message or "",
        exit_code=job.driver_exit_code,
    )
