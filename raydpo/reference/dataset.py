"""The driver's index of a tokenised dataset: where each row lies, how long it is, what the reference says of it.

Legend: N rows. 56 bytes a row; the tokens themselves stay in the shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raydpo.data.shards import COMPLETIONS, Kind, ShardInfo, TokenManifest, read_shard, verify_shards
from raydpo.reference.store import Store

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Dataset:
    """Rows in the order of their shards; `positions` elsewhere are indices into these arrays."""

    digest: str
    kind: Kind
    shards: tuple[str, ...]
    shard: NDArray[np.int64]  # [N]
    offset: NDArray[np.int64]  # [N]
    row_ids: pa.FixedSizeBinaryArray  # [N], 16 bytes each
    tokens: NDArray[np.int64]  # [N], packed: prompt once, all completions
    completion_tokens: NDArray[np.int64]  # [N], all completions together
    ref_logps: NDArray[np.float32] | None = None  # [N, n], sums in nats

    def __len__(self) -> int:
        return len(self.row_ids)

    def where(self, positions: NDArray[np.int64]) -> list[tuple[str, NDArray[np.int32]]]:
        """Token shards and offsets in them of some rows; positions are in ascending order."""
        shard, offset = self.shard[positions], self.offset[positions].astype(np.int32)
        numbers, begins = np.unique(shard, return_index=True)  # rows lie in the order of their shards
        pieces = np.split(offset, begins)[1:]
        return [(self.shards[number], offsets) for number, offsets in zip(numbers, pieces, strict=True)]

    def with_known(self, store: Store) -> Dataset:
        """Joined with the reference store; NaN where a row is not there yet."""
        return replace(self, ref_logps=store.known(self.row_ids))

    def with_reference(self, store: Store) -> Dataset:
        """Joined with the reference store; UserError unless every row is there."""
        return replace(self, ref_logps=store.lookup(self.row_ids))


def open_dataset(directory: Path) -> Dataset:
    """Verify and index the shards of a prepared directory. UserError when it was never finished, or has changed."""
    manifest = TokenManifest.read(directory / MANIFEST)
    return _index(directory, manifest, manifest.shards)


def windows(directory: Path, rows: int) -> Iterator[Dataset]:
    """A prepared directory in parts of about so many rows, whole shards each; one is in memory at a time."""
    manifest = TokenManifest.read(directory / MANIFEST)
    ends = np.cumsum([shard.rows for shard in manifest.shards])
    for _, numbered in groupby(enumerate(manifest.shards), key=lambda item: ends[item[0]] // rows):
        yield _index(directory, manifest, [shard for _, shard in numbered])


def _index(directory: Path, manifest: TokenManifest, shards: Sequence[ShardInfo]) -> Dataset:
    verify_shards(directory, shards)
    parts: list[list[NDArray[np.int64]]] = []
    row_ids: list[pa.ChunkedArray] = []
    paths = tuple(str(directory / shard.path) for shard in shards)
    for number, path in enumerate(paths):
        table = read_shard(path)
        lengths = [_lengths(table[name]) for name in COMPLETIONS[manifest.kind]]
        completion: NDArray[np.int64] = np.stack(lengths).sum(axis=0)
        rows = np.arange(table.num_rows)
        parts.append([np.full_like(rows, number), rows, completion + _lengths(table["prompt_ids"]), completion])
        row_ids.append(table["row_id"])
    shard, offset, tokens, completion = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Dataset(
        digest=manifest.digest,
        kind=manifest.kind,
        shards=paths,
        shard=shard,
        offset=offset,
        row_ids=pa.chunked_array([c for ids in row_ids for c in ids.chunks], pa.binary(16)).combine_chunks(),
        tokens=tokens,
        completion_tokens=completion,
    )


def _lengths(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return pc.list_value_length(column).to_numpy().astype(np.int64)
