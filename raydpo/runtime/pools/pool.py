"""The elastic pool of reference scorers, see raydpo.runtime.pools.elastic.

The precompute stage's unit is one token shard. What the store already holds is not scored again, so a killed job loses
at most the shards in flight. A completion that stands in several rows is scored with the first of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from ray.actor import ActorHandle

from raydpo.data.lengths import completions_per_row
from raydpo.data.shards import TokenManifest, read_shard
from raydpo.reference.dataset import MANIFEST, Dataset, windows
from raydpo.reference.store import Store
from raydpo.reference.unconverted import check_converted
from raydpo.runtime.pools.elastic import ElasticPool, Words, pool_actor
from raydpo.runtime.pools.scorer import ReferenceScorer, Scored, ScoringSettings, Unit
from raydpo.track.tally import Tally

WINDOW_ROWS = 1 << 19  # whose ids the driver holds at a time, at some 300 bytes a pair; the pool starts anew for each

WORDS = Words(
    stage="reference",
    actor="reference scorer",
    kept="What was scored is in the store; start the job again once there is room.",
    lighter="a lower reference.tokens_per_batch",
)


class ScorerPool(ElasticPool[Unit, Scored]):
    """Scores units in order; the figures are for whoever shows progress.

    room: how many scorers may run just now, where that can be less than reference.pool.max_actors.
    """

    def __init__(self, settings: ScoringSettings, store: Store, *, room: Callable[[], int] | None = None) -> None:
        pool = settings.reference.pool

        def start() -> ActorHandle:
            return pool_actor(ReferenceScorer, pool, settings, store)

        super().__init__(start, pool, WORDS, room=room)


def score_missing(settings: ScoringSettings, store: Store, directories: Sequence[Path]) -> dict[str, float | None]:
    """Have the pool score what the store lacks of prepared rows. The driver's memory does not grow with them.

    UserError, before anything is scored, where values of the old layout are still to be converted.
    """
    check_converted(store, _windows(directories))
    pool = ScorerPool(settings, store)
    with Tally("precompute", _completions(directories), pool) as tally:
        for window in _windows(directories):
            missing = np.flatnonzero(store.missing(window.completion_ids))
            tally.skip(len(window.completion_ids) - len(missing))
            for _, found in pool.score([[piece] for piece in window.where(missing)]):
                tally.add(found)
            store.lookup(window.completion_ids)  # 100 % coverage, or an error that names what is missing
        return tally.result()


def _windows(directories: Sequence[Path]) -> Iterator[Dataset]:
    for directory in directories:
        yield from windows(directory, WINDOW_ROWS)


def _completions(directories: Sequence[Path]) -> int:
    """Of all rows. Shards are asked, for a manifest counts rows only; no token is read."""
    paths = [directory / s.path for directory in directories for s in TokenManifest.read(directory / MANIFEST).shards]
    return sum(int(completions_per_row(read_shard(path)).sum()) for path in paths)
