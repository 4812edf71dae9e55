"""The reading tasks of the Ray Data pipelines, in a module of their own: one that only reads imports no torch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray
from ray.actor import ActorHandle

from raydpo.data.reading import Chunk, read_chunks
from raydpo.data.rows import Convert, Field
from raydpo.data.shards import read_shard

P = ParamSpec("P")
T = TypeVar("T")

_ASK_AGAIN_S = 0.2


def read_files(
    batch: dict[str, Any],
    *,
    fields: Sequence[Field],
    rows_per_chunk: int,
    ignore: Sequence[str],
    convert: Convert | None = None,
    keep_bad: bool = False,
) -> Iterator[dict[str, list[Any]]]:
    """The files of one task, as chunks; rows travel as JSON because their values differ in type.

    The last chunk of a file, which one without rows has too, says in `total` how many rows were read; others say -1.
    """
    for number, path in json.loads(batch["files"][0]):
        read = 0
        waiting = None
        for chunk in read_chunks(path, fields, rows_per_chunk, ignore, convert, keep_bad=keep_bad):
            if waiting:
                yield _travelling(number, waiting, total=-1)
            read += len(chunk.rows)
            waiting = chunk
        yield _travelling(number, waiting or Chunk(path, 1, []), total=read)


def _travelling(number: int, chunk: Chunk, *, total: int) -> dict[str, list[Any]]:
    return {
        "file": [number],
        "name": [f"part-{number:05d}-{chunk.first_row:09d}.arrow"],
        "path": [chunk.path],
        "first_row": [chunk.first_row],
        "total": [total],
        "rows": [json.dumps(chunk.rows)],
    }


def never_ends_the_data(work: Callable[P, T]) -> Callable[P, T]:
    """A map function that is made safe: Ray Data takes a StopIteration out of one for the end of the data."""

    @wraps(work)
    def safe(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return work(*args, **kwargs)
        except StopIteration as error:
            raise RuntimeError(f"{work.__qualname__} has raised StopIteration in the middle of the data") from error

    return safe


@never_ends_the_data
def read_rows(plan: pa.Table, *, shards: Sequence[str], scorers: ActorHandle | None) -> pa.Table:
    """Add the tokens to a block of the training plan, and the reference sums that are scored while training runs."""
    where = zip(plan["shard"].to_pylist(), plan["offset"].to_pylist(), strict=True)
    pieces = [_mapped(shards[number]).slice(offset, 1) for number, offset in where]
    tokens = pa.concat_tables(pieces).combine_chunks()
    for name in tokens.column_names:
        plan = plan.append_column(name, tokens[name])
    if scorers:
        plan = _with_sums(plan, scorers)
    return plan.drop_columns(["shard", "offset"])


def _with_sums(plan: pa.Table, scorers: ActorHandle) -> pa.Table:
    """The plan with the sums that it lacks, waited for; `number` says which they are, -1 where the plan has the sum."""
    numbers = plan["number"].combine_chunks().flatten().to_numpy()
    awaited = numbers >= 0
    if awaited.any():
        first_step = plan["step"][0].as_py()
        while (found := ray.get(scorers.values.remote(numbers[awaited], first_step))) is None:
            time.sleep(_ASK_AGAIN_S)
        plan = with_awaited(plan, awaited, found)
    return plan.drop_columns(["number"])


def with_awaited(plan: pa.Table, awaited: NDArray[np.bool_], found: NDArray[np.float32]) -> pa.Table:
    """Put sums in their places in the lists of ref_logps; awaited: which of all completions they are of, shape [C]."""
    known = plan["ref_logps"].combine_chunks()
    sums = known.flatten().to_numpy().copy()
    sums[awaited] = found
    ends = np.cumsum(pc.list_value_length(known).to_numpy())
    offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32))
    column = pa.ListArray.from_arrays(offsets, pa.array(sums))
    return plan.set_column(plan.column_names.index("ref_logps"), "ref_logps", column)


@lru_cache(maxsize=4096)  # maps take address space, not memory
def _mapped(path: str) -> pa.Table:
    return read_shard(path)
