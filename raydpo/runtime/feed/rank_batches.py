"""What a worker makes of the rows that the feed brings: its part of every step, row for row as planned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from operator import itemgetter
from typing import Any, get_args

import ray.data
import torch
from torch import Tensor

from raydpo.data.pack import pack_rows
from raydpo.data.shards import to_row
from raydpo.data.tokens import row_id
from raydpo.model.batch import Batch
from raydpo.objective.contract import COLUMNS, TOKEN_COLUMNS, Unit
from raydpo.train.step import RankBatch


def rank_batches(rows: ray.data.DataIterator, *, steps: range, device: torch.device) -> Iterator[RankBatch]:
    """This rank's part of step after step; steps count from 0.

    RuntimeError when a row is not the one that the plan names, or does not come.
    """
    blocks = rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
    ordered = (row for block in blocks for row in block.to_pylist())
    delivered = groupby(ordered, key=itemgetter("step"))
    for due in steps:
        found = next(delivered, None)
        if found is None:
            raise RuntimeError(f"the data feed has ended before step {due + 1} of {steps.stop}.")
        step, of_step = found
        if step != due:
            raise RuntimeError(f"the data feed delivered step {step + 1} where step {due + 1} was due.")
        yield _rank_batch(list(of_step), device)


def _rank_batch(rows: list[dict[str, Any]], device: torch.device) -> RankBatch:
    step = rows[0]["step"]
    for row in rows:
        # Hashed again, because an id that was stored beside other tokens says nothing of them.
        found = row_id(row["prompt_ids"], row["completions"])
        if found != row["expected_id"]:
            raise RuntimeError(
                f"step {step + 1}: the tokens of row {found.hex()} came where row {row['expected_id'].hex()} was "
                "planned; the token shards have changed since `raydpo prepare`: run it again."
            )
    planned = rows[0]["rank_rows"]
    if len(rows) != planned:
        raise RuntimeError(f"step {step + 1}: {len(rows)} rows came to this rank, and {planned} were planned.")
    micro_batches = [list(group) for _, group in groupby(rows, key=itemgetter("micro"))]
    return RankBatch(
        step,
        [to_batch(members, device) for members in micro_batches],
        totals={unit: rows[0][f"step_{unit}"] for unit in get_args(Unit)},
        epoch=rows[0]["epoch"],
        num_tokens=rows[0]["num_tokens"],
        row_ids=[[row["row_id"].hex() for row in members] for members in micro_batches],
    )


def to_batch(rows: Iterable[dict[str, Any]], device: torch.device) -> Batch:
    """Pack rows of the feed, with the columns of their completions."""
    rows = list(rows)
    token_rows = [to_row(row) for row in rows]
    return Batch.from_pack(pack_rows(token_rows), _columns(rows, COLUMNS), _columns(rows, TOKEN_COLUMNS), device=device)


def _columns(rows: Sequence[dict[str, Any]], known: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    """What the feed brings of every completion, [C] each, or of every token, [M] each; both flat in a row."""
    return {
        name: torch.tensor(list(chain.from_iterable(row[name] for row in rows)), dtype=dtype)
        for name, dtype in known.items()
        if name in rows[0]
    }
