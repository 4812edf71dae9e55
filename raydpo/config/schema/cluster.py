"""The sections `cluster` and `timeouts`: how Ray is reached, and how long anything may take."""

from __future__ import annotations

from pydantic import Field

from raydpo.config.schema.section import PositiveInt, Section


class Timeouts(Section):
    """Seconds after which training calls something hung, names it and fails; see train.max_failures."""

    start: PositiveInt = 300  # for all workers to be placed and up; twice tried again
    worker: PositiveInt = 600  # for a worker process to answer Ray Train
    collective: PositiveInt = 1800  # for the slowest rank in any exchange between ranks
    data: PositiveInt = 600  # for the rows of the next step, the very first included
    stop: PositiveInt = 900  # for a submitted job that is stopped: the step that it is in, the next one, and a commit


class Cluster(Section):
    """How to reach Ray. num_cpus and object_store_gib apply only to a local cluster that the job starts itself."""

    num_cpus: PositiveInt | None = None
    object_store_gib: float | None = Field(None, ge=0.0733)  # Ray's minimum is 75 MiB
    env: dict[str, str] = {}  # environment of every worker, and of a local cluster
