"""A content-addressed store of reference log-probs.

Layout: <root>/<key>/{key.json, <shard>.parquet, <shard>.json}, on a local disk or an object store. The .json beside a
shard is its marker, written last: a shard without one, or one that does not match it, does not count.

The key holds only what changes a number; a completion is found by the content hash of its prompt and its own tokens, so
it has one value however many rows it stands in. Legend: N completions asked, U different ones among them.
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
from raydpo.reference.old_layout import OldShards
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

    def commit(self, table: pa.Table, source: Source = "computed", *, verified: bool | None = None) -> str:
        """Add completions as one shard; see commit_shard. Computed values are verified, imported ones are not yet."""
        if verified is None:
            verified = source == "computed"
        return commit_shard(self._place, table, key=self.key.digest, source=source, verified=verified)

    def shard_of(self, ids: pa.Array | pa.ChunkedArray) -> str | None:
        """The name of the whole shard that was computed of just these completions, if there is one."""
        name = shard_name(ids, "computed")
        try:
            check_shard(self._place, name, key=self.key.digest)
        except Damage:
            return None
        return name

    def sums(self, shard: str, ids: pa.Array | pa.ChunkedArray) -> NDArray[np.float32]:
        """What a shard says of its completions, shape [N], in nats, in the order asked."""
        asked = Asked(ids)
        return _values(asked, self._directory.read([shard], SUMS))[asked.place]

    def missing(self, ids: pa.FixedSizeBinaryArray) -> Bools:
        """Which completions have no value yet, shape [N]; of one that occurs several times, the first only."""
        asked = Asked(ids)
        missing = np.zeros(len(ids), np.bool_)
        missing[asked.first[np.isnan(self._stored(asked))]] = True
        return missing

    def known(self, ids: pa.FixedSizeBinaryArray) -> NDArray[np.float32]:
        """log π_ref of the completions as lookup gives it, but NaN for those that are missing."""
        asked = Asked(ids)
        return self._stored(asked)[asked.place]

    def lookup(self, ids: pa.FixedSizeBinaryArray) -> NDArray[np.float32]:
        """log π_ref of the completions, shape [N], in nats. UserError unless every one is there."""
        asked = Asked(ids)
        values = self._stored(asked)
        missing = asked.first[np.isnan(values)]
        if len(missing):
            raise UserError(
                f"the reference store {self.address} lacks {len(missing)} of {len(asked)} completions (first: "
                f"{ids[int(missing.min())].as_py().hex()}); run `raydpo precompute` with this run file, it "
                f"computes only those.{self._damages()}"
            )
        return values[asked.place]

    def unverified(self, ids: pa.FixedSizeBinaryArray) -> list[str]:
        """Shards of imported values, not compared with any policy yet, that hold some of these completions."""
        whole, _ = self._directory.survey()
        names = [name for name, marker in whole.items() if not marker.verified]
        if not names:
            return []
        asked = Asked(ids)
        tables = self._directory.read(names, ["completion_id"])
        return [
            name
            for name, table in zip(names, tables, strict=True)
            if asked.find(as_numpy(table["completion_id"]))[1].any()
        ]

    def old_layout(self) -> OldShards:
        """What an earlier raydpo has left in this directory, by row."""
        return OldShards(self._directory)

    def mark_verified(self, shards: Sequence[str]) -> None:
        """The step-0 law has passed on values of these shards."""
        for name in shards:
            write_marker(self._place, name, replace(read_marker(self._place, name), verified=True))

    def _stored(self, asked: Asked) -> NDArray[np.float32]:
        """The sums of the completions asked, shape [U]; NaN where there is none. Tokens' values are not read."""
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
    values = np.full(len(asked), np.nan, np.float32)
    for table in tables:
        at, found = asked.find(as_numpy(table["completion_id"]))
        values[at[found]] = table["logps"].to_numpy()[found]
    return values
