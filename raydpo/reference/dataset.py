"""The driver's index of a tokenised dataset: where each row lies, how long it is, what the reference says of it.

Legend: N rows, C completions of all rows. 72 bytes a row and 20 a completion, so 112 a pair; the tokens themselves stay
in the shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydpo.data.completions import completion_begins, completion_ids
from raydpo.data.lengths import completion_lengths, first_completions, own_completions, prompt_lengths
from raydpo.data.pairs import count_pairs
from raydpo.data.rows import Kind
from raydpo.data.shards import ShardInfo, TokenManifest, read_shard, verify_shards
from raydpo.reference.store import Store

Ints = NDArray[np.int64]

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Dataset:
    """Rows in the order of their shards, completions in the order of their rows.

    `positions` elsewhere are indices into the arrays of rows.
    """

    digest: str
    kind: Kind
    shards: tuple[str, ...]
    shard: NDArray[np.int64]  # [N]
    offset: NDArray[np.int64]  # [N]
    row_ids: pa.FixedSizeBinaryArray  # [N], 16 bytes each
    tokens: NDArray[np.int64]  # [N], packed: prompt once, all completions
    completion_tokens: NDArray[np.int64]  # [N], all completions together
    own: NDArray[np.int64]  # [N], its completions but those of other prompts
    pairs: NDArray[np.int64]  # [N], of completions of which one is better
    begins: NDArray[np.int64]  # [N + 1], where the completions of each row begin; the last is C
    completion_ids: pa.FixedSizeBinaryArray  # [C], 16 bytes each
    ref_logps: NDArray[np.float32] | None = None  # [C], sums in nats
    ref_token_logps: pa.LargeListArray | None = None  # [C], of every token, in nats; where a loss reads them

    def __len__(self) -> int:
        return len(self.row_ids)

    def completions_of(self, positions: Ints) -> Ints:
        """The completions of some rows, row after row."""
        counts = np.diff(self.begins)[positions]
        ends = np.cumsum(counts)
        return np.arange(counts.sum()) + np.repeat(self.begins[positions] - ends + counts, counts)

    def by_row(self, values: NDArray[Any], positions: Ints) -> pa.ListArray:
        """Values of completions, shape [C], as a list for each of some rows."""
        ends = np.cumsum(np.diff(self.begins)[positions])
        offsets = np.concatenate([[0], ends]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values[self.completions_of(positions)]))

    def tokens_by_row(self, lists: pa.LargeListArray, positions: Ints) -> pa.ListArray:
        """Values of tokens, a list for each completion, as one list for each of some rows."""
        ends = np.cumsum(self.completion_tokens[positions])
        offsets = np.concatenate([[0], ends]).astype(np.int32)
        values = lists.take(pa.array(self.completions_of(positions))).flatten()
        return pa.ListArray.from_arrays(pa.array(offsets), values)

    def where(self, completions: Ints) -> list[tuple[str, NDArray[np.int32]]]:
        """Token shards of some completions, in ascending order, and which they are among the completions of each."""
        shard = self.shard[np.searchsorted(self.begins, completions, side="right") - 1]
        first_rows = np.searchsorted(self.shard, np.arange(len(self.shards)))  # rows lie in the order of their shards
        offset = (completions - self.begins[first_rows][shard]).astype(np.int32)
        numbers, cuts = np.unique(shard, return_index=True)
        pieces = np.split(offset, cuts)[1:]
        return [(self.shards[number], offsets) for number, offsets in zip(numbers, pieces, strict=True)]

    def with_known(self, store: Store) -> Dataset:
        """Joined with the reference store; NaN where a completion is not there yet."""
        return replace(self, ref_logps=store.known(self.completion_ids))

    def with_reference(self, store: Store) -> Dataset:
        """Joined with the reference store; UserError unless every completion is there."""
        return replace(self, ref_logps=store.lookup(self.completion_ids))

    def with_reference_tokens(self, store: Store) -> Dataset:
        """With the reference's log-prob of every token; UserError unless the store has kept them."""
        return replace(self, ref_token_logps=store.lookup_tokens(self.completion_ids))


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
    counts = np.concatenate([np.diff(completion_begins(table)) for table in tables])
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
        own=np.concatenate([own_completions(table) for table in tables]),
        pairs=np.concatenate([count_pairs(table, manifest.kind) for table in tables]),
        begins=np.concatenate([[0], np.cumsum(counts)]),
        completion_ids=pa.concat_arrays([completion_ids(table) for table in tables]),
    )


def _completion_tokens(table: pa.Table) -> NDArray[np.int64]:
    """Tokens of all completions of every row of a shard."""
    sums: NDArray[np.int64] = np.add.reduceat(completion_lengths(table), first_completions(table))
    return sums
