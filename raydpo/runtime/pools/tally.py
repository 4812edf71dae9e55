"""What a pool of scorers has done: the figures of its progress line and of a job's result."""

from __future__ import annotations

from types import TracebackType

from raydpo.runtime.pools.pool import ScorerPool
from raydpo.runtime.pools.scorer import Scored
from raydpo.track.progress import Progress


class Tally:
    """Adds up units. MFU is over the time in which scorers had a unit; rows and tokens per second over all of it."""

    def __init__(self, what: str, rows: int, pool: ScorerPool) -> None:
        self._progress = Progress(what, total=rows, unit="pairs")
        self._pool = pool
        self._rows = self._found = self._tokens = 0
        self._possible = self._seconds = 0.0
        self._flops: float | None = 0.0

    def skip(self, rows: int) -> None:
        """Count rows that need no scoring."""
        self._found += rows
        self._progress.advance(rows)

    def add(self, found: Scored) -> None:
        """Count a unit and show the figures."""
        scored = len(found.sums) if found.tokens else 0
        self._rows += scored
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
        """found: rows that the store had; lost: scorers; retried: units that a lost scorer had in flight.

        mfu is None for models whose arithmetic is not known.
        """
        elapsed = self._progress.elapsed
        return {
            "rows": self._rows + self._found,
            "scored": self._rows,
            "found": self._found,
            "pairs_per_second": self._rows / elapsed,
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
