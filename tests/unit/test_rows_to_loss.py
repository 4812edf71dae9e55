"""Rows of every kind from tokens to the loss: shard, index, plan, reader, rank batch, micro-batch, objective."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from raydpo.data.ingest import tokenize_chunk
from raydpo.data.order import Order
from raydpo.data.reading import Chunk
from raydpo.data.rows import Kind
from raydpo.data.shards import TokenManifest, write_shard
from raydpo.data.tokens import TokenSettings
from raydpo.objective.contract import ScoredRows
from raydpo.objective.registry import make_objective, resolve
from raydpo.reference.dataset import Dataset, open_dataset
from raydpo.runtime.feed.plan import Plan
from raydpo.runtime.feed.rank_batches import rank_batches
from raydpo.runtime.feed.readers import read_rows
from raydpo.train.step import RankBatch
from tests.helpers import row_tokenizer

pytestmark = pytest.mark.unit

ROWS: dict[Kind, list[dict[str, Any]]] = {
    "pair": [{"prompt": [i], "chosen": [10 + i, 3], "rejected": [20 + i]} for i in range(6)],
    "unpaired": [{"prompt": [i], "completion": [10 + i, 3], "label": i % 2 == 0} for i in range(6)],
    "ranked": [
        {"prompt": [i], "completions": [[10 + i], [20 + i], [30 + i, 3]], "ranks": [0, 1, 1 + i % 2]} for i in range(6)
    ],
}
PAIRS = {"pair": 1, "unpaired": 0, "ranked": 5 / 2}  # of a row, on average: every other ranked row has a tie


@dataclass(frozen=True)
class Feed:
    """What the reader makes of a rank's plan."""

    table: pa.Table

    def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
        yield self.table


def prepared(kind: Kind, directory: Path, *, others: bool) -> Dataset:
    """Tokens as prepare leaves them, with a reference that is sure of everything."""
    settings = TokenSettings(16, "error", append_eos=False)
    table, counts = tokenize_chunk(Chunk("a", 1, ROWS[kind]), row_tokenizer(), settings, kind, others=others)
    TokenManifest(kind, [write_shard(table, directory / "a.arrow")], counts).write(directory / "manifest.json")
    dataset = open_dataset(directory)
    return replace(dataset, ref_logps=np.zeros(len(dataset.completion_ids), dtype=np.float32))


def rank_batches_of(dataset: Dataset, world_size: int) -> list[RankBatch]:
    """Every rank's batch of the only step."""
    order = Order(len(dataset), len(dataset), 1, seed=0, digest=dataset.digest)
    plan = Plan(dataset, order, tokens_per_microbatch=20, num_steps=1, checkpoints=Path("absent"))
    found = []
    for blocks in plan.tables(0, world_size):
        feed: Any = Feed(read_rows(pa.concat_tables(blocks), shards=dataset.shards, scorers=None))
        found += rank_batches(feed, steps=range(1), device=torch.device("cpu"))
    return found


def as_sure_as_the_reference(rank_batch: RankBatch) -> list[ScoredRows]:
    """What the objective sees of every micro-batch while policy and reference are the same."""
    return [batch.scored(torch.zeros(len(batch.owner))) for batch in rank_batch.micro_batches]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(
    ("kind", "loss_type", "at_reference"),
    [
        ("pair", "sigmoid", np.log(2)),
        ("ranked", "sigmoid", np.log(2)),
        ("unpaired", "apo_zero_unpaired", 0.5),
        ("unpaired", "kto", 0.5),
        ("pair", "kto", 0.5),
        ("ranked", "kto", 0.5),
    ],
)
def test_the_mean_over_a_step_is_over_the_units_of_the_whole_batch(
    kind: Kind, loss_type: str, at_reference: float, world_size: int, tmp_path: Path
) -> None:
    objective = make_objective(resolve([loss_type]))
    dataset = prepared(kind, tmp_path, others="mismatched" in objective.needs)
    found = rank_batches_of(dataset, world_size)
    [totals] = {tuple(sorted(each.totals.items())) for each in found}
    per_row = len(ROWS[kind][0].get("completions", [1] * (2 if kind == "pair" else 1)))
    assert dict(totals)["rows"] == len(ROWS[kind])
    assert dict(totals)["completions"] == per_row * len(ROWS[kind])
    assert dict(totals)["pairs"] == PAIRS[kind] * len(ROWS[kind])
    loss = sum(float(objective.loss(rows).sum()) for each in found for rows in as_sure_as_the_reference(each))
    assert loss / dict(totals)[objective.mean_over] == pytest.approx(at_reference, rel=1e-6)


def test_labels_come_with_their_completions(tmp_path: Path) -> None:
    [rank_batch] = rank_batches_of(prepared("unpaired", tmp_path, others=True), 1)
    labels: dict[int, bool] = {}
    for batch in rank_batch.micro_batches:
        prompts = [int(batch.input_ids[0, bounds[0]]) for bounds in batch.bounds]
        of_rows = batch.columns["label"][~batch.columns["mismatched"]].tolist()
        labels |= dict(zip(prompts, of_rows, strict=True))
    assert labels == {i: i % 2 == 0 for i in range(6)}
