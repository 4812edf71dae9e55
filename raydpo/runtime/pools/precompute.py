"""precompute: an elastic pool of reference scorers fills the reference store.

The unit of work is one token shard; what the store already holds is not scored again, so a killed job loses at most
the shards in flight. A completion that stands in several rows is scored with the first of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raydpo.config.schema import RunFile
from raydpo.data.lengths import completions_per_row
from raydpo.data.shards import TokenManifest, read_shard
from raydpo.reference.dataset import MANIFEST, Dataset, windows
from raydpo.reference.store import Store
from raydpo.reference.unconverted import check_converted
from raydpo.runtime.pools.pool import ScorerPool
from raydpo.runtime.pools.scorer import ScoringSettings
from raydpo.runtime.pools.tally import Tally
from raydpo.workspace.layout import Layout, reference_store
from raydpo.workspace.prepared import check_pairs

WINDOW_ROWS = 1 << 19  # whose ids the driver holds at a time, at some 300 bytes a pair; the pool starts anew for each


def precompute(run: RunFile) -> dict[str, Any]:
    """Score what the store lacks of the train and held-out tokens; for the figures see Tally.result."""
    store = reference_store(run)
    layout = Layout(run)
    store.claim()
    directories = [
        layout.train_tokens,
        *([layout.held_out_tokens] if (layout.held_out_tokens / MANIFEST).exists() else []),
    ]
    check_pairs(run)
    return {**score_missing(ScoringSettings.of(run), store, directories), "store": store.address}


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
