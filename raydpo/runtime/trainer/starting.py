"""Waiting for room to start the workers in: with an end, and heeding SIGTERM."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any, NoReturn

from raydpo.config.schema import Timeouts, Workers
from raydpo.errors import UserError
from raydpo.runtime.trainer.stopping import stop_asked
from raydpo.runtime.trainer.train_private import LOGGER_OF_CALLBACKS, WAITING, ControllerCallback
from raydpo.track.say import say
from raydpo.workspace.outcome import Stopped

START_RETRIES = 2  # of a group that does not start in time
SILENT_S = 10.0  # room is often there within seconds
POLL_S = 0.1


class RoomWatch(ControllerCallback):
    """Runs in Ray Train's controller, which alone would wait for nodes without an end or a word.

    Without workers there is also nobody else to see that a stop is asked for.
    """

    def __init__(self, directory: Path, workers: Workers, timeouts: Timeouts) -> None:
        self._directory = directory
        self._room = f"room for {workers.least} workers with {workers.cpus:g} CPUs and {workers.gpus:g} GPUs each"
        self._limit = timeouts.start * (1 + START_RETRIES)  # what a group of a fixed size has in all
        self._since: float | None = None
        self._told = False

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Called at every look for room, and whenever a group starts or ends."""
        if not isinstance(current_state, WAITING):
            self._since = None
            self._told = False
            return
        if stop_asked(self._directory):
            _end(Stopped("no worker was there to save anything"))
        now = time.monotonic()
        if self._since is None:
            self._since = now
        waited = now - self._since
        if waited > self._limit:
            _end(
                UserError(
                    f"there was no {self._room} for {self._limit:g} s, three times timeouts.start. Give the cluster "
                    "nodes, lower workers.min_count or raise timeouts.start, then start again: the run goes on from "
                    "its last commit."
                )
            )
        if waited > SILENT_S and not self._told:
            say(f"{self._directory.name}: waits for {self._room}, {self._limit:g} s at most")
            self._told = True
        time.sleep(POLL_S)  # the controller's own loop has no pause between two looks


def _end(reason: Exception) -> NoReturn:
    logging.getLogger(LOGGER_OF_CALLBACKS).setLevel(logging.CRITICAL)
    raise reason
