"""The driver's index of a tokenised dataset: where each row lies, how long it is, what the reference says of it.

Legend: N rows, n completions of a row. 72 bytes a row; the tokens themselves stay in the shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydpo.data.formats import Kind
from raydpo.data.lengths import completion_lengths, first_completions, own_completions, prompt_lengths
from raydpo.data.pairs import count_pairs
from raydpo.data.shards import ShardInfo, TokenManifest, read_shard, verify_shards
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
    completions: NDArray[np.int64]  # [N], but those of other prompts
    pairs: NDArray[np.int64]  # [N], of completions of which one is better
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
    paths = tuple(str(directory / shard.path) for shard in shards)
    tables = [read_shard(path) for path in paths]
    row_ids = [chunk for table in tables for chunk in table["row_id"].chunks]
    completion_tokens = np.concatenate([_completion_tokens(table) for table in tables])
    return Dataset(
        digest=manifest.digest,
        kind=manifest.kind,
        shards=paths,
        shard=np.repeat(np.arange(len(tables)), [table.num_rows for table in tables]),
        offset=np.concatenate([np.arange(table.num_rows) for table in tables]),
        row_ids=pa.chunked_array(row_ids, pa.binary(16)).combine_chunks(),
        tokens=completion_tokens + np.concatenate([prompt_lengths(table) for table in tables]),
        completion_tokens=completion_tokens,
        completions=np.concatenate([own_completions(table) for table in tables]),
        pairs=np.concatenate([count_pairs(table, manifest.kind) for table in tables]),
    )


def _completion_tokens(table: pa.Table) -> NDArray[np.int64]:
    """Tokens of all completions of every row of a shard."""
    sums: NDArray[np.int64] = np.add.reduceat(completion_lengths(table), first_completions(table))
    return sums
