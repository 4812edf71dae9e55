"""A content-addressed store of reference log-probs.

Layout: <root>/<key>/{key.json, <shard>.parquet, <shard>.json}. The .json beside a shard is its marker, written last:
a shard without one, or one that does not match it, does not count.

The key holds only what changes a number; rows are found by the content hash of their tokens. Legend: N rows, n
completions per row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raydpo.config.errors import UserError
from raydpo.config.files import whole_file, write_json

_LISTS = pa.list_(pa.float32())
SCHEMA = pa.schema(
    [
        ("row_id", pa.binary(16)),
        ("chosen_logps", pa.float32()),
        ("rejected_logps", pa.float32()),
        ("chosen_tokens", pa.int32()),
        ("rejected_tokens", pa.int32()),
        ("chosen_token_logps", _LISTS),  # null when not kept
        ("rejected_token_logps", _LISTS),
    ]
)


@dataclass(frozen=True)
class Key:
    """What a reference log-prob depends on besides its tokens."""

    weights: str  # raydpo.model.load.weights_digest
    dtype: str
    attention: str
    scorer_version: int

    @property
    def digest(self) -> str:
        """The directory's name."""
        return hashlib.blake2b(json.dumps(asdict(self), sort_keys=True).encode(), digest_size=12).hexdigest()


class Store:
    """The shards of one key."""

    def __init__(self, root: Path, key: Key) -> None:
        self.directory = root / key.digest
        self.key = key

    def commit(self, name: str, table: pa.Table) -> None:
        """Write one shard, then its marker. A row or value that is missing is an error here, never a 0."""
        table = table.cast(SCHEMA)
        for column in ("chosen_logps", "rejected_logps"):
            if table[column].null_count or not pc.all(pc.is_finite(table[column])).as_py():
                raise ValueError(f"shard {name}: {column} holds values that are missing or not finite.")
        if not (self.directory / "key.json").exists():
            write_json(self.directory / "key.json", asdict(self.key))
        shard = self.directory / f"{name}.parquet"
        with whole_file(shard) as temporary:
            pq.write_table(table, temporary)
        write_json(shard.with_suffix(".json"), {"rows": table.num_rows, "sha256": _sha256(shard)})

    def verified(self) -> Iterator[Path]:
        """Shards whose bytes match their markers."""
        for shard in sorted(self.directory.glob("*.parquet")):
            if _promised_sha256(shard.with_suffix(".json")) == _sha256(shard):
                yield shard

    def row_ids(self) -> set[bytes]:
        """Hashes of all rows already scored."""
        return {row for shard in self.verified() for row in _column(shard, "row_id").to_pylist()}

    def lookup(self, row_ids: Sequence[bytes]) -> NDArray[np.float32]:
        """log π_ref of the rows, shape [N, 2] (chosen, rejected), in nats. UserError unless every row is there."""
        known: dict[bytes, tuple[float, float]] = {}
        for shard in self.verified():
            table = pq.read_table(shard, columns=["row_id", "chosen_logps", "rejected_logps"])
            pairs = zip(table["chosen_logps"].to_pylist(), table["rejected_logps"].to_pylist(), strict=True)
            known.update(zip(table["row_id"].to_pylist(), pairs, strict=True))
        missing = [row for row in row_ids if row not in known]
        if missing:
            raise UserError(
                f"the reference store {self.directory} lacks {len(missing)} of {len(row_ids)} rows "
                f"(first: {missing[0].hex()}); run `raydpo precompute` with this run file, it computes only those."
            )
        return np.asarray([known[row] for row in row_ids], dtype=np.float32).reshape(-1, 2)


def _column(shard: Path, name: str) -> pa.ChunkedArray:
    return pq.read_table(shard, columns=[name])[name]


def _promised_sha256(marker: Path) -> str | None:
    """None where the marker is missing or damaged: it promises nothing."""
    try:
        promised: str = json.loads(marker.read_text())["sha256"]
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return promised


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
