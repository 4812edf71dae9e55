"""precompute: an elastic pool of reference scorers fills the reference store.

The unit of work is one token shard; what the store already holds is not scored again, so a killed job loses at most
the shards in flight.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raydpo.config.schema import RunFile
from raydpo.data.shards import TokenManifest
from raydpo.reference.dataset import MANIFEST, windows
from raydpo.reference.store import Store
from raydpo.runtime.pools.pool import ScorerPool
from raydpo.runtime.pools.tally import Tally
from raydpo.workspace.layout import Layout, reference_store
from raydpo.workspace.prepared import check_pairs

WINDOW_ROWS = 1 << 20  # whose ids the driver holds at a time, at some 150 bytes each; the pool starts anew for each


def precompute(run: RunFile) -> dict[str, Any]:
    """Score every row of the train and held-out tokens that the store lacks; for the figures see Tally.result."""
    store, layout = reference_store(run), Layout(run)
    store.claim()
    directories = [
        layout.train_tokens,
        *([layout.held_out_tokens] if (layout.held_out_tokens / MANIFEST).exists() else []),
    ]
    check_pairs(run)
    return {**score_missing(run, store, directories), "store": store.address}


def score_missing(run: RunFile, store: Store, directories: Sequence[Path]) -> dict[str, float | None]:
    """Have the pool score what the store lacks of prepared rows. The driver's memory does not grow with them."""
    pool = ScorerPool(run, store)
    rows = sum(TokenManifest.read(directory / MANIFEST).rows for directory in directories)
    with Tally("precompute", rows, pool) as tally:
        for window in (window for directory in directories for window in windows(directory, WINDOW_ROWS)):
            missing = np.flatnonzero(store.missing(window.row_ids))
            tally.skip(len(window) - len(missing))
            for _, found in pool.score([[piece] for piece in window.where(missing)]):
                tally.add(found)
            store.lookup(window.row_ids)  # 100 % coverage, or an error that names what is missing
        return tally.result()
