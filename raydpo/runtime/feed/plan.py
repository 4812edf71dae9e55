"""Feeding the workers: per-rank Ray Data pipelines in an order of our own.

Ray's streaming_split promises no order and drops rows when told to balance. Here the driver writes each rank's plan
(which rows, in which micro-batch of which step), a Ray Data pipeline reads ahead along it, and the worker checks every
row it receives against the plan (raydpo.runtime.feed.rank_batches).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray
from ray.train import DataConfig

from raydpo.data.order import Order, split_microbatches
from raydpo.reference.dataset import Dataset
from raydpo.runtime.cluster.preflight import READER_CPUS
from raydpo.runtime.feed.overlap import Ahead
from raydpo.runtime.feed.readers import read_rows
from raydpo.train.checkpoint.commits import latest

ONE_READER = ray.data.TaskPoolStrategy(size=1)
ROWS_PER_TASK = 256  # a read task covers whole steps of about this many rows of one rank


@dataclass(frozen=True)
class Plan:
    """Everything that decides which rank computes what; it goes to Ray Train's controller."""

    dataset: Dataset
    order: Order
    tokens_per_microbatch: int  # packed, at most
    num_steps: int
    checkpoints: Path  # the latest commit there says where to start
    ahead: Ahead | None = None  # scores references while training runs; None: the dataset has all of them

    def start(self) -> int:
        """Steps already done. By now the workers have verified the latest commit, and set aside any that is broken."""
        found = latest(self.checkpoints)
        return found.cursor.step if found else 0

    def tables(self, start: int, world_size: int) -> list[list[pa.Table]]:
        """Per rank, its rows from step `start` on, in blocks of whole steps."""
        per_rank: list[list[pa.Table]] = [[] for _ in range(world_size)]
        blocks: list[list[pa.Table]] = [[] for _ in range(world_size)]
        num_tokens = sum(self._tokens(step) for step in range(start))
        for step in range(start, self.num_steps):
            num_tokens += self._tokens(step)
            for rank, table in enumerate(self._step(step, world_size, num_tokens)):
                blocks[rank].append(table)
                if sum(map(len, blocks[rank])) >= ROWS_PER_TASK or step == self.num_steps - 1:
                    per_rank[rank].append(pa.concat_tables(blocks[rank]))
                    blocks[rank] = []
        return per_rank

    def _tokens(self, step: int) -> int:
        """Tokens of a step's rows, each prompt once a row."""
        return int(self.dataset.tokens[self.order.batch(step)].sum())

    def _totals(self, positions: NDArray[np.int64]) -> dict[str, int]:
        """What the loss and the metrics of a global batch may be means over."""
        return {
            "rows": len(positions),
            "completions": int(self.dataset.own[positions].sum()),
            "pairs": int(self.dataset.pairs[positions].sum()),
            "tokens": int(self.dataset.completion_tokens[positions].sum()),
        }

    def _step(self, step: int, world_size: int, num_tokens: int) -> Iterator[pa.Table]:
        """The part of each rank in a step; num_tokens counts those of all steps from the run's first to this one."""
        data = self.dataset
        positions = self.order.batch(step)
        totals = self._totals(positions)
        lengths = data.tokens[positions]
        bound = self.tokens_per_microbatch
        for micro_batches in split_microbatches(lengths, world_size=world_size, tokens_per_microbatch=bound):
            mine = positions[np.concatenate(micro_batches)]
            columns: dict[str, Any] = {
                "step": np.full(len(mine), step),
                "micro": np.repeat(np.arange(len(micro_batches)), [len(m) for m in micro_batches]),
                "shard": data.shard[mine],
                "offset": data.offset[mine],
                "expected_id": data.row_ids.take(pa.array(mine)),
                "rank_rows": np.full(len(mine), len(mine)),
                "epoch": np.full(len(mine), self.order.epochs_after(step + 1)),
                "num_tokens": np.full(len(mine), num_tokens),
                **{f"step_{name}": np.full(len(mine), value) for name, value in totals.items()},
            }
            if data.ref_logps is not None:
                columns["ref_logps"] = data.by_row(data.ref_logps, mine)
            if data.ref_token_logps is not None:
                columns["ref_token_logps"] = data.tokens_by_row(data.ref_token_logps, mine)
            if self.ahead:
                columns["number"] = data.by_row(self.ahead.numbers, mine)
            yield pa.table(columns)


class OrderedFeed(DataConfig):
    """Gives rank r a pipeline over the rows planned for rank r. Asked again at every start of the worker group."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan

    def configure(self, datasets: Any, world_size: int, *_: Any, **__: Any) -> list[dict[str, ray.data.DataIterator]]:
        """One iterator per rank, from the newest committed step on."""
        start = self._plan.start()
        ahead = self._plan.ahead
        if ahead:
            ray.get(ahead.scorers.reached.remote(start))
        return [{"rows": self._pipeline(blocks)} for blocks in self._plan.tables(start, world_size)]

    def _pipeline(self, blocks: list[pa.Table]) -> ray.data.DataIterator:
        # Not from_arrow: it runs a task of one CPU a block, and hangs where the workers leave less than that free.
        rows = ray.data.from_blocks(blocks or [pa.table({"step": pa.array([], pa.int64())})])
        rows.context.execution_options.preserve_order = True
        rows.context.raise_original_map_exception = True  # a wrapped one loses its cause on the way
        rows.context.execution_no_progress_timeout_s = -1  # slow steps would count; the worker times its own waits
        if blocks:
            # One reader a rank keeps well ahead of the training; without the limit Ray starts a process for every slot.
            ahead = self._plan.ahead
            rows = rows.map_batches(
                read_rows,
                fn_kwargs={"shards": self._plan.dataset.shards, "scorers": ahead.scorers if ahead else None},
                batch_format="pyarrow",
                batch_size=None,
                num_cpus=READER_CPUS,
                compute=ONE_READER,
            )
        return rows.iterator()
