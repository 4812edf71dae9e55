"""Who may write to a run's output directory: one job at a time, and the training workers that it has started.

`.lock` is held by the job, `.lock.workers` is shared by its workers, `.lock.owner` says who the job is. Both locks are
the kernel's: they go with the process that holds them, however it dies. When only the driver of a job is killed, its
workers live, and write, until Ray notices; so the next job first writes its own token and then waits until nobody
shares the second lock. A worker that starts late takes that lock and then finds the token of another job. Neither order
of events leaves two writers, and no clock, heartbeat or check before each write is needed.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil
from filelock import FileLock, Timeout

from raydpo.errors import UserError
from raydpo.storage.files import write_json
from raydpo.track.say import say

LOCK = ".lock"
WORKERS = ".lock.workers"
OWNER = ".lock.owner"
PATIENCE_S = 60.0  # for workers whose driver is dead; Ray ends them within seconds
POLL_S = 0.1

_held: list[IO[str]] = []  # by this process, to its end: its threads may write until then


@dataclass(frozen=True)
class Claim:
    """A job's right to write to a directory, as its workers carry it."""

    directory: Path
    token: str


@contextmanager
def owned_directory(directory: Path) -> Iterator[None]:
    """Own the directory inside the block. UserError that names who else does, or whose workers are still there."""
    directory.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(directory / LOCK).acquire(timeout=0)
    except Timeout:
        raise UserError(_held_by(directory)) from None
    with lock:
        if found := _owner(directory):
            say(f"{directory}: {_name(found)} ended without releasing it; taken over", sys.stderr)
        token = uuid.uuid4().hex
        write_json(directory / OWNER, {"pid": os.getpid(), "host": socket.gethostname(), "token": token})
        try:
            _wait_for_workers(directory)
            yield
        finally:
            (directory / OWNER).unlink(missing_ok=True)


def claim(directory: Path) -> Claim:
    """The claim of the job that owns the directory, which has to be this one."""
    found = _owner(directory)
    assert found
    return Claim(directory, found["token"])


def hold(claim: Claim) -> None:
    """Called by a worker before it writes. RuntimeError when another job has taken the directory over."""
    stream = (claim.directory / WORKERS).open("a+")
    fcntl.flock(stream, fcntl.LOCK_SH)
    found = _owner(claim.directory)
    if found is None or found["token"] != claim.token:
        stream.close()
        raise RuntimeError(f"{claim.directory} belongs to {_name(found) if found else 'nobody'} by now.")
    _held.append(stream)


def _wait_for_workers(directory: Path) -> None:
    """Until no worker of an earlier job lives."""
    path = directory / WORKERS
    deadline = time.monotonic() + PATIENCE_S
    told = False
    with path.open("a+") as stream:
        while True:
            try:
                return fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given back when the file is closed
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{path} is still held by workers of an earlier job after {PATIENCE_S:.0f} s; stop them "
                        "(`fuser` with that path names those of this host), or set another output_dir."
                    ) from None
            if not told:
                say(f"{directory}: waiting for the workers of an earlier job to end", sys.stderr)
                told = True
            time.sleep(POLL_S)


def _owner(directory: Path) -> dict[str, str] | None:
    try:
        found: dict[str, str] = json.loads((directory / OWNER).read_text())
    except FileNotFoundError:
        return None
    return found


def _held_by(directory: Path) -> str:
    found = _owner(directory)
    lock = directory / LOCK
    if found is None:
        return f"{lock} is held by a process that has just begun or is about to end; try again."
    if found["host"] != socket.gethostname():
        remedy = f"If that host is down, its lock is stale: remove {lock}. Otherwise wait for the job or stop it"
    elif not psutil.pid_exists(int(found["pid"])):
        remedy = f"That process is dead, so the lock is stale or a child has kept it: stop the child, or remove {lock}"
    else:
        remedy = "Another job writes to this output_dir: wait for it or stop it"
    return f"{lock} is held by {_name(found)}. {remedy}, or set another output_dir."


def _name(owner: dict[str, str]) -> str:
    return f"process {owner['pid']} on {owner['host']}"
