"""Laws of the run lock: one job writes to an output directory, and nobody whom a dead one has left behind."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from raydpo.errors import UserError
from raydpo.storage.files import write_json
from raydpo.workspace import lock
from raydpo.workspace.lock import LOCK, OWNER, Claim, claim, hold, owned_directory

pytestmark = pytest.mark.unit

CHECKOUT = Path(__file__).parents[2]
WORKER = """
import sys, time
from pathlib import Path
from raydpo.workspace.lock import Claim, hold

hold(Claim(Path(sys.argv[1]), sys.argv[2]))
print("at work", flush=True)
time.sleep(60)
"""
DRIVER = """
import os, signal, sys
from pathlib import Path
from raydpo.workspace.lock import owned_directory

with owned_directory(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@contextmanager
def worker(of: Claim) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a claim until it is killed."""
    command = [sys.executable, "-c", WORKER, str(of.directory), of.token]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=CHECKOUT)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def at_work(process: subprocess.Popen[str]) -> bool:
    assert process.stdout
    return process.stdout.readline() == "at work\n"


def kill_a_driver(directory: Path) -> Claim:
    """A job whose driver is gone without a word; its claim, as its workers would still carry it."""
    process = subprocess.run([sys.executable, "-c", DRIVER, str(directory)], cwd=CHECKOUT, check=False)
    assert process.returncode == -9
    return claim(directory)


def test_a_jobs_own_workers_share_its_directory(tmp_path: Path) -> None:
    with owned_directory(tmp_path), worker(claim(tmp_path)) as one, worker(claim(tmp_path)) as other:
        assert at_work(one)
        assert at_work(other)


def test_a_job_begins_only_when_the_workers_of_a_killed_one_are_gone(tmp_path: Path) -> None:
    with worker(kill_a_driver(tmp_path)) as left_over:
        assert at_work(left_over)
        killer = threading.Timer(1.0, left_over.kill)
        killer.start()
        begin = time.monotonic()
        with owned_directory(tmp_path):
            assert time.monotonic() - begin > 0.9
            assert left_over.wait(10) == -9


def test_workers_that_do_not_end_are_named_and_nothing_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE_S", 0.3)
    with worker(kill_a_driver(tmp_path)) as left_over:
        assert at_work(left_over)
        with (
            pytest.raises(UserError, match=r"\.lock\.workers is still held by workers of an earlier job"),
            owned_directory(tmp_path),
        ):
            pytest.fail("it has begun")
        assert left_over.poll() is None
    with owned_directory(tmp_path):
        pass


def test_a_worker_that_comes_late_is_turned_away_and_holds_nobody_up(tmp_path: Path) -> None:
    late = kill_a_driver(tmp_path)
    with (
        owned_directory(tmp_path),
        pytest.raises(RuntimeError, match=f"belongs to process .* on {socket.gethostname()} by now"),
    ):
        hold(late)
    with pytest.raises(RuntimeError, match="belongs to nobody by now"):
        hold(late)
    with owned_directory(tmp_path):
        pass


def test_a_stale_lock_is_taken_over_and_its_owner_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kill_a_driver(tmp_path)
    pid = json.loads((tmp_path / OWNER).read_text())["pid"]
    with owned_directory(tmp_path):
        assert f"process {pid} on {socket.gethostname()} ended without releasing it" in capsys.readouterr().err
    with owned_directory(tmp_path):
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("host", "alive", "says"),
    [
        (socket.gethostname(), True, "Another job writes to this output_dir: wait for it or stop it"),
        (socket.gethostname(), False, "That process is dead, so the lock is stale or a child has kept it"),
        ("another-host", False, "If that host is down, its lock is stale"),
    ],
)
def test_a_held_lock_names_who_holds_it_and_what_to_do(tmp_path: Path, host: str, alive: bool, says: str) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    pid = 1 if alive else gone.pid
    write_json(tmp_path / OWNER, {"pid": pid, "host": host, "token": "t"})
    with FileLock(tmp_path / LOCK), pytest.raises(UserError, match=f"is held by process {pid} on {host}.*{says}"):
        owned_directory(tmp_path).__enter__()


def test_a_lock_whose_owner_is_not_known_yet_asks_to_try_again(tmp_path: Path) -> None:
    with FileLock(tmp_path / LOCK), pytest.raises(UserError, match="has just begun or is about to end; try again"):
        owned_directory(tmp_path).__enter__()
