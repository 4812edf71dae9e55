"""Progress of a long step: a bar in a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

from raydpo.track.say import say
from raydpo.track.terminal import screen

EVERY_S = 5.0


class Progress:
    """Counts units towards a total. A total of None is not known yet; figures are shown as `name value`."""

    def __init__(self, what: str, *, total: int | None, unit: str, done: int = 0) -> None:
        self._started = time.perf_counter()
        in_terminal = screen().isatty()
        self._bar = tqdm(
            desc=what,
            total=total,
            initial=done,
            unit=f" {unit}",
            mininterval=0.1 if in_terminal else EVERY_S,
            maxinterval=0.5 if in_terminal else 2 * EVERY_S,
            file=screen() if in_terminal else _Lines(),
            dynamic_ncols=in_terminal,
            ascii=not in_terminal,
            smoothing=0.1,
        )

    def advance(self, units: int = 1, **figures: float) -> None:
        """Count `units` as done and show figures beside them."""
        self._bar.set_postfix({k: f"{v:.3g}" for k, v in figures.items()}, refresh=False)
        self._bar.update(units)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._started

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


class _Lines:
    """A file for tqdm that turns its carriage returns into lines, which is what a log wants."""

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            say(line, sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()
