"""Laws of a judge's server: it is waited for, its failure is told in its own words, and it ends with its owner."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from raydpo.errors import UserError
from raydpo.rollout import server
from raydpo.rollout.server import Served, Server

pytestmark = pytest.mark.unit

SERVED = Served("models/judge", max_model_len=64, gpus=0, threads=1, start_timeout=60)
HEALTHY = """
import http.server, os, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])  # as vLLM has its engine
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
print("key", os.environ["VLLM_API_KEY"], flush=True)
http.server.HTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"""
HANGS = "import time; time.sleep(600)"
BREAKS = "print('loading'); print('ValueError: no such dtype'); print('bye'); raise SystemExit(3)"
Start = Callable[[str, Served], Server]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Starts a server that runs other code than vLLM's."""

    def run(code: str, served: Served = SERVED) -> Server:
        monkeypatch.setattr(server, "command", lambda _, host, port: [sys.executable, "-c", code, host, str(port)])
        return Server(served, "127.0.0.1", "secret", tmp_path / "logs" / "judge.log")

    return run


def processes_below(server: Server) -> list[psutil.Process]:
    return psutil.Process(server._process.pid).children(recursive=True)


def test_a_server_is_up_when_it_answers_and_leaves_no_process(start: Start, tmp_path: Path) -> None:
    running = start(HEALTHY, SERVED)
    running.wait_until_up()
    below = processes_below(running)
    assert len(below) == 2
    assert "key secret" in (tmp_path / "logs" / "judge.log").read_text()
    running.stop()
    assert psutil.wait_procs(below, timeout=10)[1] == []


def test_a_server_that_does_not_start_tells_why(start: Start) -> None:
    running = start(BREAKS, SERVED)
    with pytest.raises(UserError, match=r"ended while it started: ValueError: no such dtype\. All .*judge\.log"):
        running.wait_until_up()
    running.stop()


def test_a_server_that_never_answers_is_given_up(start: Start) -> None:
    running = start(HANGS, Served("models/judge", 64, 0, 1, start_timeout=1))
    with pytest.raises(UserError, match="does not answer after 1 s; raise start_timeout"):
        running.wait_until_up()
    running.stop()


def test_a_command_on_a_leash_ends_when_its_owner_is_killed() -> None:
    owner = (
        "import subprocess, sys, time\n"
        "leash = [sys.executable, '-m', 'raydpo.rollout.leash', sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "child = subprocess.Popen(leash, stdin=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", owner], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout
        leash = psutil.Process(int(started.stdout.readline()))
        deadline = time.monotonic() + 60
        while not leash.children() and time.monotonic() < deadline:
            time.sleep(0.05)
        held = [leash, *leash.children()]
        assert len(held) == 2
        started.kill()
        assert psutil.wait_procs(held, timeout=30)[1] == []


def test_a_leash_passes_on_how_the_command_ended() -> None:
    command = [sys.executable, "-m", "raydpo.rollout.leash", sys.executable, "-c", "raise SystemExit(7)"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as leash:
        assert leash.wait(60) == 7


def test_vllm_is_asked_to_serve_the_model_under_one_name() -> None:
    asked = list(server.command(SERVED, "10.0.0.1", 81))
    assert asked[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    options = dict(zip(asked[3:-1:2], asked[4:-1:2], strict=True))
    assert (options["--model"], options["--served-model-name"]) == ("models/judge", "judge")
    assert (options["--host"], options["--port"], options["--max-model-len"]) == ("10.0.0.1", "81", "64")
