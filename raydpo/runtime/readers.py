"""The reading tasks of the Ray Data pipelines, in a module of their own: one that only reads imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from raydpo.data.formats import Field, read_chunks
from raydpo.data.shards import read_shard


def read_file(batch: dict[str, Any], *, fields: Sequence[Field], rows_per_chunk: int) -> Iterator[dict[str, list[Any]]]:
    """One file, as chunks; rows travel as JSON because their values differ in type."""
    number, path = int(batch["number"][0]), str(batch["path"][0])
    for chunk in read_chunks(path, fields, rows_per_chunk):
        yield {
            "name": [f"part-{number:05d}-{chunk.first_row:09d}.parquet"],
            "path": [path],
            "first_row": [chunk.first_row],
            "rows": [json.dumps(chunk.rows)],
        }


def read_rows(plan: pa.Table) -> pa.Table:
    """Add the tokens to a block of the training plan."""
    where = zip(plan["path"].to_pylist(), plan["offset"].to_pylist(), strict=True)
    tokens = pa.concat_tables([_cached_shard(path).slice(offset, 1) for path, offset in where]).combine_chunks()
    for name in tokens.column_names:
        plan = plan.append_column(name, tokens[name])
    return plan.drop_columns(["path", "offset"])


@lru_cache(maxsize=64)
def _cached_shard(path: str) -> pa.Table:
    """A shard, kept in this process: neighbouring steps read the same ones."""
    return read_shard(Path(path))
