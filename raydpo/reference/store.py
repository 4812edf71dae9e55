"""A content-addressed store of reference log-probs.

Layout: <root>/<key>/{key.json, <shard>.parquet, <shard>.json}, on a local disk or an object store. The .json beside a
shard is its marker, written last: a shard without one, or one that does not match it, does not count.

The key holds only what changes a number; rows are found by the content hash of their tokens. Legend: N rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydpo.errors import UserError
from raydpo.reference.directory import KEY_FILE, KeyDirectory, key_digest
from raydpo.reference.index import Asked, Bools, as_numpy
from raydpo.reference.place import Place
from raydpo.reference.shard import (
    SUMS,
    Damage,
    Foreign,
    Source,
    check_shard,
    commit_shard,
    read_marker,
    shard_name,
    write_marker,
)

_DAMAGES_SHOWN = 5


@dataclass(frozen=True)
class Key:
    """What a reference log-prob depends on besides its tokens."""

    weights: str  # raydpo.model.directory.weights_digest
    dtype: str
    fp32_head: bool
    attention: str
    scorer_version: int

    @property
    def digest(self) -> str:
        """The directory's name."""
        return key_digest(asdict(self))


class Store:
    """The values of one key. May be sent to other processes."""

    def __init__(self, root: str, key: Key) -> None:
        self.key = key
        self._place = Place.of(root) / key.digest
        self._directory = KeyDirectory(self._place)

    @property
    def address(self) -> str:
        """The key's directory, without credentials."""
        return self._place.address

    def claim(self) -> None:
        """Make the directory this key's, before anything is committed. UserError where it is another's or read-only."""
        try:
            self._directory.key()
        except Foreign as damage:
            raise UserError(f"{damage}. Remove that directory, or set another reference.store.") from None
        except Damage:
            content = json.dumps(asdict(self.key), indent=1) + "\n"
            try:
                self._place.write(KEY_FILE, content.encode())
            except OSError as error:
                raise UserError(
                    f"the reference store {self.address} cannot be written ({error}); mend that, or set another "
                    "reference.store."
                ) from error

    def commit(self, table: pa.Table, source: Source = "computed") -> str:
        """Add rows as one shard; see commit_shard."""
        return commit_shard(self._place, table, key=self.key.digest, source=source)

    def shard_of(self, row_ids: pa.ChunkedArray) -> str | None:
        """The name of the whole shard that was computed of just these rows, if there is one."""
        name = shard_name(row_ids, "computed")
        try:
            check_shard(self._place, name, key=self.key.digest)
        except Damage:
            return None
        return name

    def sums(self, shard: str, row_ids: pa.ChunkedArray) -> NDArray[np.float32]:
        """What a shard says of its rows, shape [N, 2], in the order asked."""
        asked = Asked(row_ids)
        return _values(asked, self._directory.read([shard], SUMS))[asked.place]

    def missing(self, row_ids: pa.FixedSizeBinaryArray) -> Bools:
        """Which rows have no value yet, shape [N]; of a row that occurs several times, the first only."""
        asked = Asked(row_ids)
        missing = np.zeros(len(row_ids), np.bool_)
        missing[asked.first[np.isnan(self._stored(asked)[:, 0])]] = True
        return missing

    def known(self, row_ids: pa.FixedSizeBinaryArray) -> NDArray[np.float32]:
        """log π_ref of the rows as lookup gives it, but NaN for those that are missing."""
        asked = Asked(row_ids)
        return self._stored(asked)[asked.place]

    def lookup(self, row_ids: pa.FixedSizeBinaryArray) -> NDArray[np.float32]:
        """log π_ref of the rows, shape [N, 2] (chosen, rejected), in nats. UserError unless every row is there."""
        asked = Asked(row_ids)
        values = self._stored(asked)
        missing = asked.first[np.isnan(values[:, 0])]
        if len(missing):
            raise UserError(
                f"the reference store {self.address} lacks {len(missing)} of {len(asked)} rows (first: "
                f"{row_ids[int(missing.min())].as_py().hex()}); run `raydpo precompute` with this run file, it "
                f"computes only those.{self._damages()}"
            )
        return values[asked.place]

    def unverified(self, row_ids: pa.FixedSizeBinaryArray) -> list[str]:
        """Shards of imported values, not compared with any policy yet, that hold some of these rows."""
        whole, _ = self._directory.survey()
        names = [name for name, marker in whole.items() if not marker.verified]
        asked = Asked(row_ids) if names else None
        tables = self._directory.read(names, ["row_id"])
        return [
            name
            for name, table in zip(names, tables, strict=True)
            if asked and asked.find(as_numpy(table["row_id"]))[1].any()
        ]

    def mark_verified(self, shards: Sequence[str]) -> None:
        """The step-0 law has passed on values of these shards."""
        for name in shards:
            write_marker(self._place, name, replace(read_marker(self._place, name), verified=True))

    def _stored(self, asked: Asked) -> NDArray[np.float32]:
        """The sums of the rows asked, shape [U, 2]; NaN where there is none. Tokens' values are not read."""
        whole, _ = self._directory.survey()
        return _values(asked, self._directory.read(list(reversed(whole)), SUMS))  # the preferred last: they overwrite

    def _damages(self) -> str:
        _, damages = self._directory.survey()
        if not damages or not self._directory.names():  # nothing is there yet, not even something damaged
            return ""
        shown = [f"\n- {damage}" for damage in damages[:_DAMAGES_SHOWN]]
        hidden = len(damages) - len(shown)
        more = f"\n- and {hidden} more: see `raydpo reference verify`" if hidden else ""
        return " There is also what does not count:" + "".join(shown) + more


def _values(asked: Asked, tables: Iterable[pa.Table]) -> NDArray[np.float32]:
    values = np.full((len(asked), 2), np.nan, np.float32)
    for table in tables:
        at, found = asked.find(as_numpy(table["row_id"]))
        values[at[found]] = np.stack([table[name].to_numpy()[found] for name in SUMS[1:]], axis=1)
    return values
