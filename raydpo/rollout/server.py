"""vLLM's OpenAI-compatible server, as a process that is watched until it answers and ends with its owner."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raydpo.errors import UserError

POLL_S = 0.5
STOP_S = 10.0
NAME = "judge"  # of the model, whatever directory it is in


@dataclass(frozen=True)
class Served:
    """What is served and with what."""

    model: str
    max_model_len: int
    gpus: float
    threads: int
    start_timeout: int  # seconds


class Server:
    """A server that is starting, up, or gone."""

    def __init__(self, served: Served, host: str, api_key: str, log: Path) -> None:
        """Start it. What it prints goes to the log file; the key travels in its environment, which nobody lists."""
        self._served = served
        self._log = log
        self._port = _free_port(host)
        self.base_url = f"http://{host}:{self._port}/v1"
        environment = os.environ | {
            "VLLM_API_KEY": api_key,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "OMP_NUM_THREADS": str(served.threads),
        }
        log.parent.mkdir(parents=True, exist_ok=True)
        leash = [sys.executable, "-m", "raydpo.rollout.leash"]
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [*leash, *command(served, host, self._port)],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def wait_until_up(self) -> None:
        """Return when it answers. UserError with what it said last where it ends or takes too long."""
        began = time.monotonic()
        while not self._answers():
            if self._process.poll() is not None:
                raise UserError(
                    f"the server of {self._served.model} (vLLM) ended while it started: {self._last_words()}"
                )
            if time.monotonic() - began > self._served.start_timeout:
                raise UserError(
                    f"the server of {self._served.model} (vLLM) does not answer after {self._served.start_timeout} s; "
                    f"raise start_timeout, or look at {self._log}."
                )
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End it and all its processes."""
        assert self._process.stdin
        self._process.stdin.close()  # which the leash waits for
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.base_url.removesuffix("/v1") + "/health", timeout=POLL_S) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if "Error" in line]
        said = (errors or lines or ["nothing"])[-1].strip()
        return f"{said}. All that it said is in {self._log}."


def command(served: Served, host: str, port: int) -> Sequence[str]:
    """What starts vLLM's server."""
    options = {
        "--model": served.model,
        "--served-model-name": NAME,
        "--host": host,
        "--port": str(port),
        "--max-model-len": str(served.max_model_len),
    }
    flat = [part for option in options.items() for part in option]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flat, "--enforce-eager"]


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
