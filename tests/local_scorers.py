"""Policy scorers without Ray: the actors of a pool as plain objects of this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from raydpo.config.schema import Model, Pool
from raydpo.runtime.pools.policies import KlOf, LogpsOf, PolicyScorer, PolicyScorers


class _Here:
    """Actors that are done in no order of their own."""

    def __init__(self, pool: Pool) -> None:
        self._actors = [PolicyScorer(pool) for _ in range(pool.max_actors)]
        for actor in self._actors:
            actor.load()

    def score(self, units: Sequence[LogpsOf | KlOf]) -> Iterator[tuple[int, Any]]:
        for number, unit in reversed(list(enumerate(units))):
            yield number, self._actors[number % len(self._actors)].score(unit)


def local_scorers(actors: int, form: Model, tokens_per_batch: int) -> PolicyScorers:
    """Scorers that work here."""
    pool = Pool(max_actors=actors)
    scorers = PolicyScorers(pool, form, tokens_per_batch)
    scorers._pool = _Here(pool)  # type: ignore[assignment]
    return scorers
