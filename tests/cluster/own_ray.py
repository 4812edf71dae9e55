"""Ray in the process of the test, on a cluster that nobody else knows of."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray


@contextmanager
def own_ray(*, cpus: int, gpus: int = 0, object_store_mib: int = 100) -> Iterator[Path]:
    """Connected inside the block; yields the directory of the cluster's session."""
    temporary = tempfile.mkdtemp(prefix="raydpo-", dir="/tmp")  # sockets lie below it, and their paths must be short
    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            num_gpus=gpus,  # for scheduling: there need not be any
            object_store_memory=object_store_mib * 2**20,
            include_dashboard=False,
            logging_level="WARNING",
            _temp_dir=temporary,
        )
        yield Path(temporary) / "session_latest"
    finally:
        ray.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)
