"""A reference scorer: the process that holds the reference model and turns units of work into shards of the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray

from raydpo.config.schema import RunFile
from raydpo.data.order import split_microbatches
from raydpo.data.pack import pack_rows
from raydpo.data.shards import read_shard, to_rows
from raydpo.data.tokens import TokenRow
from raydpo.model.batch import Batch
from raydpo.model.flops import Bounds, forward_flops, matmul_ceiling
from raydpo.model.layout import layout_name
from raydpo.model.load import load_model
from raydpo.model.score import ScoringModel
from raydpo.reference.shard import SCHEMA
from raydpo.reference.store import Store
from raydpo.runtime.layout import Layout

# What is scored at once and becomes one shard: token shards, and the offsets of the rows wanted in each.
Unit = Sequence[tuple[str, NDArray[np.int32]]]


@dataclass(frozen=True)
class Scored:
    """What a scorer says of a unit of N rows."""

    sums: NDArray[np.float32]  # [N, 2], as the store holds them, in nats
    tokens: int  # 0 when the store had the shard already
    flops: float  # that the tokens need at least
    seconds: float  # from the call to the commit
    ceiling: float  # FLOP/s that this scorer's device can do


class ReferenceScorer:
    """An actor of the pool. It scores in one thread and answers pings in another."""

    def __init__(self, run: RunFile, store: Store) -> None:
        self._run, self._store = run, store

    @ray.method(concurrency_group="health")
    def ping(self) -> None:
        """Answer, however long a unit takes: a process that is stopped or cut off does not."""

    def load(self) -> None:
        """Load the model. Not done by __init__, whose errors Ray takes for a crash."""
        settings, pool = self._run.model, self._run.reference.pool
        self._device = torch.device("cuda" if pool.gpus else "cpu")
        torch.set_num_threads(max(1, int(pool.cpus)))
        self._lm = load_model(Layout(self._run).reference_model, dtype=settings.dtype, device=self._device)
        print(f"reference: {layout_name(self._lm)}", flush=True)  # Ray shows the same line of several actors once
        self._model = ScoringModel(self._lm, fp32_head=settings.fp32_head)
        self._ceiling = matmul_ceiling(getattr(torch, settings.dtype), self._device)

    def score(self, unit: Unit) -> Scored:
        """Score the unit's rows and commit them, unless another scorer or another job already has."""
        begin, settings = perf_counter(), self._run.reference
        table = pa.concat_tables([read_shard(path).take(pa.array(offsets)) for path, offsets in unit])
        shard = self._store.shard_of(table["row_id"])
        bounds: Bounds = ()
        if shard is None:
            rows = to_rows(table)
            scored, bounds = score_rows(self._model, rows, budget=settings.tokens_per_batch, device=self._device)
            shard = self._store.commit(_as_table(rows, scored, keep=settings.keep_token_logps))
        return Scored(
            sums=self._store.sums(shard, table["row_id"]),
            tokens=sum(row[-1] - row[0] for row in bounds),
            flops=forward_flops(self._lm, bounds),
            seconds=perf_counter() - begin,
            ceiling=self._ceiling,
        )


def score_rows(
    model: ScoringModel, rows: Sequence[TokenRow], *, budget: int, device: torch.device
) -> tuple[list[list[np.ndarray]], Bounds]:
    """Per-token log-probs of every completion of every row, in the order of the rows; and the bounds of all packs."""
    lengths = np.asarray([len(row.prompt_ids) + sum(map(len, row.completions)) for row in rows])
    results: list[list[np.ndarray]] = [[] for _ in rows]
    bounds: list[tuple[int, ...]] = []
    [micro_batches] = split_microbatches(lengths, world_size=1, budget=max(budget, int(lengths.max())))
    for members in micro_batches:
        batch = Batch.from_pack(pack_rows([rows[i] for i in members]), device=device)
        values = model.token_logps(batch).cpu().numpy()
        sizes = [len(completion) for i in members for completion in rows[i].completions]
        pieces = iter(np.split(values, np.cumsum(sizes)[:-1]))
        for i in members:
            results[i] = [next(pieces) for _ in rows[i].completions]
        bounds += batch.bounds
    return results, tuple(bounds)


def _as_table(rows: Sequence[TokenRow], scored: list[list[np.ndarray]], *, keep: bool) -> pa.Table:
    columns: dict[str, Any] = {"row_id": [row.row_id for row in rows]}
    for j, side in enumerate(("chosen", "rejected")):
        columns[f"{side}_logps"] = [float(values[j].sum(dtype=np.float64)) for values in scored]
        columns[f"{side}_tokens"] = [len(values[j]) for values in scored]
        columns[f"{side}_token_logps"] = [values[j].tolist() if keep else None for values in scored]
    return pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA)
