"""precompute: an elastic pool of reference scorers, fed by Ray Data, fills the reference store.

The unit of work is one token shard; what the store already holds is not scored again, so a killed job loses at most
the shards in flight.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch

from raydpo.config.schema import RunFile
from raydpo.data.order import split_microbatches
from raydpo.data.pack import pack_rows
from raydpo.data.shards import read_shard, to_rows
from raydpo.data.tokens import TokenRow
from raydpo.model import attention, score
from raydpo.model.batch import Batch
from raydpo.model.load import load_model, weights_digest
from raydpo.model.score import ScoringModel
from raydpo.reference.store import SCHEMA, Key, Store
from raydpo.runtime.dataset import Dataset, open_dataset
from raydpo.runtime.layout import Layout
from raydpo.runtime.progress import Progress


def reference_store(run: RunFile) -> Store:
    """The store of this run's reference model."""
    layout = Layout(run)
    key = Key(weights_digest(layout.reference_model), run.model.dtype, attention.NAME, score.VERSION)
    return Store(layout.reference_store, key)


def precompute(run: RunFile) -> dict[str, Any]:
    """Score every row of the train and held-out tokens that the store lacks."""
    layout, store = Layout(run), reference_store(run)
    datasets = [open_dataset(path) for path in (layout.train_tokens, layout.held_out_tokens) if path.exists()]
    todo = list(_missing(datasets, store.row_ids()))
    scored = _score(run, store, todo) if todo else {"rows": 0, "tokens": 0}
    for dataset in datasets:
        store.lookup(dataset.row_ids)  # 100 % coverage, or an error that names what is missing
    total = sum(map(len, datasets))
    return {"rows": total, "scored": scored["rows"], "found": total - scored["rows"], "store": str(store.directory)}


def _missing(datasets: Sequence[Dataset], known: set[bytes]) -> Iterator[dict[str, Any]]:
    """Per token shard, the offsets of rows not in `known`; a row that occurs twice is asked for once."""
    for dataset in datasets:
        offsets: dict[str, list[int]] = defaultdict(list)
        for row_id, shard, offset in zip(dataset.row_ids, dataset.shard, dataset.offset, strict=True):
            if row_id not in known:
                known.add(row_id)
                offsets[dataset.shards[shard]].append(int(offset))
        yield from ({"path": path, "offsets": wanted} for path, wanted in offsets.items())


def _score(run: RunFile, store: Store, todo: list[dict[str, Any]]) -> dict[str, int]:
    pool = run.reference.pool
    work = ray.data.from_items(todo, override_num_blocks=len(todo))
    done = work.map_batches(
        ReferenceScorer,
        fn_constructor_kwargs={"run": run, "store": store},
        compute=ray.data.ActorPoolStrategy(min_size=pool.min_actors, max_size=pool.max_actors),
        batch_size=1,
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
    )
    totals = {"rows": 0, "tokens": 0}
    with Progress("precompute", total=sum(len(item["offsets"]) for item in todo), unit="pairs") as progress:
        for row in done.iter_rows():
            totals["rows"] += row["rows"]
            totals["tokens"] += row["tokens"]
            progress.advance(row["rows"], tokens_per_s=totals["tokens"] / progress.elapsed)
    return totals


class ReferenceScorer:
    """An actor of the pool: holds the reference model, scores one shard a call, commits it to the store."""

    def __init__(self, run: RunFile, store: Store) -> None:
        self._store, self._settings = store, run.reference
        self._device = torch.device("cuda" if run.reference.pool.gpus else "cpu")
        torch.set_num_threads(max(1, int(run.reference.pool.cpus)))
        self._model = ScoringModel(load_model(Layout(run).reference_model, dtype=run.model.dtype, device=self._device))

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        """batch: one shard's path and the offsets of the rows to score."""
        path, offsets = str(batch["path"][0]), batch["offsets"][0]
        table = read_shard(Path(path)).take(pa.array(offsets))
        rows = to_rows(table)
        scored, tokens = score_rows(self._model, rows, budget=self._settings.tokens_per_batch, device=self._device)
        self._store.commit(_shard_name(rows), _as_table(rows, scored, keep=self._settings.keep_token_logps))
        return {"rows": [len(rows)], "tokens": [tokens]}


def score_rows(
    model: ScoringModel, rows: Sequence[TokenRow], *, budget: int, device: torch.device
) -> tuple[list[list[np.ndarray]], int]:
    """Per-token log-probs of every completion of every row, in the order of the rows, and the tokens read."""
    lengths = np.asarray([len(row.prompt_ids) + sum(map(len, row.completions)) for row in rows])
    results: list[list[np.ndarray]] = [[] for _ in rows]
    [micro_batches] = split_microbatches(lengths, world_size=1, budget=max(budget, int(lengths.max())))
    for members in micro_batches:
        batch = Batch.from_pack(pack_rows([rows[i] for i in members]), device=device)
        values = model.token_logps(batch).cpu().numpy()
        sizes = [len(completion) for i in members for completion in rows[i].completions]
        pieces = iter(np.split(values, np.cumsum(sizes)[:-1]))
        for i in members:
            results[i] = [next(pieces) for _ in rows[i].completions]
    return results, int(lengths.sum())


def _shard_name(rows: Sequence[TokenRow]) -> str:
    """A name from the rows' ids, so that two jobs that score the same rows write the same file."""
    return hashlib.blake2b(b"".join(row.row_id for row in rows), digest_size=12).hexdigest()


def _as_table(rows: Sequence[TokenRow], scored: list[list[np.ndarray]], *, keep: bool) -> pa.Table:
    columns: dict[str, Any] = {"row_id": [row.row_id for row in rows]}
    for j, side in enumerate(("chosen", "rejected")):
        columns[f"{side}_logps"] = [float(values[j].sum(dtype=np.float64)) for values in scored]
        columns[f"{side}_tokens"] = [len(values[j]) for values in scored]
        columns[f"{side}_token_logps"] = [values[j].tolist() if keep else None for values in scored]
    return pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA)
