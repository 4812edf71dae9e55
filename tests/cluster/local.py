"""The debugging cluster of cluster/local, from a copy of its scripts: a cluster of the user's is left alone."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.processes import CHECKOUT, environment


def run(*command: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A short command and what it said."""
    plain = environment() | {"PYTHON": sys.executable}
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, env=env or plain)


def exports(stdout: str) -> dict[str, str]:
    """What `eval` would set: one line of `export NAME=VALUE ...`."""
    word, *assignments = shlex.split(stdout)
    assert word == "export"
    return dict(assignment.split("=", 1) for assignment in assignments)


def copy_of_scripts(directory: Path) -> Path:
    """A cluster/local of its own, with a state of its own."""
    ignore = shutil.ignore_patterns(".state", "__pycache__")
    return shutil.copytree(CHECKOUT / "cluster" / "local", directory / "local", ignore=ignore)


def first_port(offset: int) -> int:
    """A base that other test runs on this machine hardly have, below the range that the kernel hands out."""
    return 20000 + 20 * (os.getpid() % 500) + offset


def add_node(directory: Path, *options: str) -> None:
    """One more node for the local_cluster that was started in `directory`."""
    started = run(directory / "local" / "add", *options)
    assert started.returncode == 0, started.stderr


@contextmanager
def local_cluster(directory: Path, *options: str, port: int) -> Iterator[dict[str, str]]:
    """Up inside the block; yields the environment of a shell that has evaluated what `up` prints."""
    scripts = copy_of_scripts(directory)
    started = run(scripts / "up", *options, "--port", str(port))
    assert started.returncode == 0, started.stderr
    try:
        yield environment() | {"PYTHON": sys.executable} | exports(started.stdout)
    finally:
        stopped = run(scripts / "down")
    assert stopped.returncode == 0, stopped.stderr
