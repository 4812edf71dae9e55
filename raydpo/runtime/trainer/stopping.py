"""Saving before it is too late: SIGTERM to the driver, and notice that a node is about to be taken away.

Rank 0 looks for both once a step, and the reduction that every step makes for its metrics carries what it saw to the
other ranks: all of them save after the same step, without a collective of its own.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ray.train import PreemptionInfo

from raydpo.runtime.trainer.train_private import get_train_context

STOP = "stop"  # the driver's word to the workers, a file because the output directory is what all nodes share


@contextmanager
def stop_on_sigterm(directory: Path) -> Iterator[None]:
    """Inside the block the first SIGTERM asks the workers of `directory` to stop after the step that they are in.

    The second one does what it did before the block: end the job at once.
    """
    (directory / STOP).unlink(missing_ok=True)
    previous = signal.getsignal(signal.SIGTERM)

    def ask(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, previous)
        (directory / STOP).touch()
        # Not print: the signal may have come in the middle of one.
        os.write(sys.stderr.fileno(), b"SIGTERM: saving after this step; send another to stop at once\n")

    signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def stop_asked(directory: Path) -> bool:
    """Whether SIGTERM has come since stop_on_sigterm began."""
    return (directory / STOP).exists()


class Requests:
    """What the workers are asked to do early."""

    def __init__(self, directory: Path, *, rank: int) -> None:
        self._directory = directory
        self._rank = rank
        self._known: PreemptionInfo | None = None

    def poll(self) -> dict[str, float]:
        """1 or 0 for "stop" (save and end) and "notice" (save and go on; once for each notice), by rank 0 alone."""
        if self._rank:
            return {"stop": 0.0, "notice": 0.0}
        # ray.train.get_preemption_info() would be a barrier of all ranks through an actor, at every step.
        info = get_train_context().preemption_context.preemption_info
        news = info != self._known
        self._known = info
        return {"stop": float(stop_asked(self._directory)), "notice": float(news)}
