"""Scorers that load no model and no torch: how they end is what the tests of the pool are about."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import ray


class Quick:
    """A scorer that is done at once. The directory of a unit's only piece is where it leaves traces."""

    def __init__(self, *_: object) -> None:
        pass

    @ray.method(concurrency_group="health")
    def ping(self) -> None:
        pass

    def load(self) -> None:
        pass

    def score(self, unit: Any) -> int:
        return os.getpid()


class DiesOnce(Quick):
    def score(self, unit: Any) -> int:
        if first_time(unit):
            end_by(signal.SIGKILL)
        return os.getpid()


class StopsOnce(Quick):
    def score(self, unit: Any) -> int:
        if first_time(unit):
            end_by(signal.SIGSTOP)
        return os.getpid()


class Dies(Quick):
    def load(self) -> None:
        os._exit(1)


class Refuses(Quick):
    def score(self, unit: Any) -> int:
        raise FileNotFoundError(f"{unit[0][0]} is missing")


def end_by(number: signal.Signals) -> None:
    """Never returns: another thread may take the signal, and this one would be heard for a moment longer."""
    os.kill(os.getpid(), number)
    time.sleep(3600)


def first_time(unit: Any) -> bool:
    """Whether nobody has had this unit before."""
    trace = Path(unit[0][0])
    seen = trace.exists()
    trace.touch()
    return not seen
