"""precompute: an elastic pool of reference scorers, fed by Ray Data, fills the reference store.

The unit of work is one token shard; what the store already holds is not scored again, so a killed job loses at most
the shards in flight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch
from numpy.typing import NDArray

from raydpo.config.schema import RunFile
from raydpo.data.order import split_microbatches
from raydpo.data.pack import pack_rows
from raydpo.data.shards import read_shard, to_rows
from raydpo.data.tokens import TokenRow
from raydpo.model import score
from raydpo.model.batch import Batch
from raydpo.model.layout import backend_for, layout_name
from raydpo.model.load import load_model, weights_digest
from raydpo.model.score import ScoringModel
from raydpo.reference.shard import SCHEMA
from raydpo.reference.store import Key, Store
from raydpo.runtime.dataset import Dataset, open_dataset
from raydpo.runtime.layout import Layout
from raydpo.runtime.progress import Progress


def reference_store(run: RunFile) -> Store:
    """The store of this run's reference model."""
    layout = Layout(run)
    key = Key(
        weights=weights_digest(layout.reference_model),
        dtype=run.model.dtype,
        fp32_head=run.model.fp32_head,
        attention=backend_for("cuda" if run.reference.pool.gpus else "cpu"),
        scorer_version=score.VERSION,
    )
    return Store(layout.reference_store, key)


def precompute(run: RunFile) -> dict[str, Any]:
    """Score every row of the train and held-out tokens that the store lacks."""
    store = reference_store(run)
    store.claim()
    datasets = prepared_datasets(run)
    row_ids = pa.concat_arrays([dataset.row_ids for dataset in datasets])
    todo = list(missing_rows(datasets, store.missing(row_ids)))
    scored = _score(run, store, todo) if todo else {"rows": 0, "tokens": 0}
    store.lookup(row_ids)  # 100 % coverage, or an error that names what is missing
    return {
        "rows": len(row_ids),
        "scored": scored["rows"],
        "found": len(row_ids) - scored["rows"],
        "store": store.address,
    }


def prepared_datasets(run: RunFile) -> list[Dataset]:
    """The train tokens and, where there are any, the held-out ones."""
    layout = Layout(run)
    held_out = [layout.held_out_tokens] if layout.held_out_tokens.exists() else []
    return [open_dataset(path) for path in (layout.train_tokens, *held_out)]


def missing_rows(datasets: Sequence[Dataset], missing: NDArray[np.bool_]) -> Iterator[pa.Table]:
    """Per token shard with missing rows, its path and their offsets: one row of a table, 4 bytes an offset.

    missing: over the rows of all datasets, in order.
    """
    ends = np.cumsum([len(dataset) for dataset in datasets])
    for dataset, wanted in zip(datasets, np.split(missing, ends[:-1]), strict=True):
        shard, offset = dataset.shard[wanted], dataset.offset[wanted].astype(np.int32)
        numbers, begins = np.unique(shard, return_index=True)  # rows lie in the order of their shards
        for number, offsets in zip(numbers, np.split(offset, begins)[1:], strict=True):
            yield pa.table({"path": [dataset.shards[number]], "offsets": pa.array([offsets], pa.list_(pa.int32()))})


def _score(run: RunFile, store: Store, todo: list[pa.Table]) -> dict[str, int]:
    pool = run.reference.pool
    work = ray.data.from_arrow(todo)
    done = work.map_batches(
        ReferenceScorer,
        fn_constructor_kwargs={"run": run, "store": store},
        compute=ray.data.ActorPoolStrategy(min_size=pool.min_actors, max_size=pool.max_actors),
        batch_size=1,
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
    )
    totals = {"rows": 0, "tokens": 0}
    with Progress("precompute", total=sum(len(item["offsets"][0]) for item in todo), unit="pairs") as progress:
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
        lm = load_model(Layout(run).reference_model, dtype=run.model.dtype, device=self._device)
        print(f"precompute: {layout_name(lm)}", flush=True)  # Ray shows the same line of several actors once
        self._model = ScoringModel(lm, fp32_head=run.model.fp32_head)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        """batch: one shard's path and the offsets of the rows to score."""
        path, offsets = str(batch["path"][0]), batch["offsets"][0]
        table = read_shard(Path(path)).take(pa.array(offsets))
        rows = to_rows(table)
        scored, tokens = score_rows(self._model, rows, budget=self._settings.tokens_per_batch, device=self._device)
        self._store.commit(_as_table(rows, scored, keep=self._settings.keep_token_logps))
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


def _as_table(rows: Sequence[TokenRow], scored: list[list[np.ndarray]], *, keep: bool) -> pa.Table:
    columns: dict[str, Any] = {"row_id": [row.row_id for row in rows]}
    for j, side in enumerate(("chosen", "rejected")):
        columns[f"{side}_logps"] = [float(values[j].sum(dtype=np.float64)) for values in scored]
        columns[f"{side}_tokens"] = [len(values[j]) for values in scored]
        columns[f"{side}_token_logps"] = [values[j].tolist() if keep else None for values in scored]
    return pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA)
