"""A reference scorer: the process that holds the reference model and turns units of work into shards of the store.

torch is loaded with the model: drivers, which only name this class, go without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from raydpo.config.schema import Model, Reference
from raydpo.data.completions import rows_of
from raydpo.data.shards import read_shard
from raydpo.data.tokens import completion_id
from raydpo.reference.store import Store
from raydpo.track.say import say

# What is scored at once and becomes one shard: token shards, and which of the completions of each are wanted.
Unit = Sequence[tuple[str, NDArray[np.int32]]]


@dataclass(frozen=True)
class Scored:
    """What a scorer says of a unit of N completions."""

    sums: NDArray[np.float32]  # [N], as the store holds them, in nats
    tokens: int  # 0 when the store had the shard already
    flops: float | None  # that the tokens need at least; None where that is not known
    seconds: float  # from the call to the commit
    ceiling: float  # FLOP/s that this scorer's device can do


@dataclass(frozen=True)
class ScoringSettings:
    """What the scorers of a run work with."""

    model: str  # the reference
    form: Model  # its number format
    reference: Reference  # the pool, and what the store keeps


class ReferenceScorer:
    """An actor of the pool. It scores in one thread and answers pings in another."""

    def __init__(self, settings: ScoringSettings, store: Store) -> None:
        self._settings = settings
        self._store = store

    @ray.method(concurrency_group="health")
    def ping(self) -> None:
        """Answer, however long a unit takes: a process that is stopped or cut off does not."""

    def load(self) -> None:
        """Load the model. Not done by __init__, whose errors Ray takes for a crash."""
        from raydpo.reference.scoring import ReferenceModel
        from raydpo.runtime.cluster.device import granted_device

        settings = self._settings
        threads = max(1, int(settings.reference.pool.cpus))
        self._model = ReferenceModel(settings.model, settings.form, device=granted_device(), threads=threads)
        say(f"reference: {self._model.layout}")  # Ray shows the same line of several actors once

    def score(self, unit: Unit) -> Scored:
        """Score the unit's completions and commit them, unless another scorer or another job already has."""
        begin = perf_counter()
        settings = self._settings.reference
        rows = [row for path, wanted in unit for row in rows_of(read_shard(path), wanted)]
        ids = pa.array([completion_id(row.prompt_ids, c) for row in rows for c in row.completions], pa.binary(16))
        shard = self._store.shard_of(ids)
        tokens = 0
        flops: float | None = 0.0
        if shard is None:
            found = self._model.score(
                rows, tokens_per_microbatch=settings.tokens_per_batch, keep_token_logps=settings.keep_token_logps
            )
            shard = self._store.commit(found.table)
            tokens = found.tokens
            flops = found.flops
        return Scored(
            sums=self._store.sums(shard, ids),
            tokens=tokens,
            flops=flops,
            seconds=perf_counter() - begin,
            ceiling=self._model.ceiling,
        )
