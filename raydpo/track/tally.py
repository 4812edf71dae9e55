"""What a pool of scorers has done: the figures of its progress line and of a job's result."""

from __future__ import annotations

from collections.abc import Sized
from types import TracebackType
from typing import Protocol

from raydpo.track.progress import Progress


class Scorers(Protocol):
    """The pool, as far as its figures go."""

    lost: int  # scorers
    retried: int  # units that a lost scorer had in flight

    @property
    def size(self) -> int:
        """Scorers whose process runs."""


class Work(Protocol):
    """What a scorer says of a unit."""

    @property
    def sums(self) -> Sized:
        """One value a completion."""

    @property
    def tokens(self) -> int:
        """That were scored; 0 when the values were there already."""

    @property
    def flops(self) -> float | None:
        """That the tokens need at least; None where that is not known."""

    @property
    def seconds(self) -> float:
        """That the unit took."""

    @property
    def ceiling(self) -> float:
        """FLOP/s that the scorer's device can do."""


class Tally:
    """Adds up units. MFU is over the time in which scorers had a unit; what is per second, over all of it."""

    def __init__(self, what: str, completions: int, pool: Scorers) -> None:
        self._progress = Progress(what, total=completions, unit="completions")
        self._pool = pool
        self._scored = 0
        self._found = 0
        self._tokens = 0
        self._possible = 0.0
        self._seconds = 0.0
        self._flops: float | None = 0.0

    def skip(self, completions: int) -> None:
        """Count completions that need no scoring."""
        self._found += completions
        self._progress.advance(completions)

    def add(self, found: Work) -> None:
        """Count a unit and show the figures."""
        scored = len(found.sums) if found.tokens else 0
        self._scored += scored
        self._found += len(found.sums) - scored
        self._tokens += found.tokens
        self._flops = None if self._flops is None or found.flops is None else self._flops + found.flops
        self._possible += found.seconds * found.ceiling if found.tokens else 0
        self._seconds += found.seconds
        shown = {"tokens/s": self._tokens / self._progress.elapsed}
        if self._mfu is not None:
            shown["MFU"] = self._mfu
        self._progress.advance(len(found.sums), **shown, scorers=self._pool.size, lost=self._pool.lost)

    def result(self) -> dict[str, float | None]:
        """found: completions that the store had, or that occur once more; lost: scorers; retried: units that a lost
        scorer had in flight.

        mfu is None for models whose arithmetic is not known.
        """
        elapsed = self._progress.elapsed
        return {
            "completions": self._scored + self._found,
            "scored": self._scored,
            "found": self._found,
            "completions_per_second": self._scored / elapsed,
            "tokens_per_second": self._tokens / elapsed,
            "mfu": self._mfu,
            "scoring_seconds": self._seconds,
            "seconds": elapsed,
            "lost": self._pool.lost,
            "retried": self._pool.retried,
        }

    @property
    def _mfu(self) -> float | None:
        if self._flops is None:
            return None
        return self._flops / self._possible if self._possible else 0.0

    def __enter__(self) -> Tally:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)
