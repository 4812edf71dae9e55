"""One shard of the reference store: a parquet file, and the marker beside it that makes it count.

The marker is written last and promises size and sha256 of the file, as raydpo.storage.commit has it. Whoever finds a
shard without a marker, or with one that it does not match, treats it as absent. A marker speaks of one shard alone,
because many writers add to a directory at once.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raydpo.reference.index import as_numpy
from raydpo.reference.place import Place
from raydpo.storage.commit import Promise, find_flaw

Source = Literal["computed", "imported"]

SCHEMA = pa.schema(
    [
        ("completion_id", pa.binary(16)),  # raydpo.data.tokens.completion_id
        ("logps", pa.float32()),  # log π_ref(completion | prompt), summed over its tokens, in nats
        ("tokens", pa.int32()),
        ("token_logps", pa.list_(pa.float32())),  # null when not kept
    ]
)
SUMS = ["completion_id", "logps"]
TOKENS = ["completion_id", "token_logps"]

_ATTEMPTS = 10
_PAUSE_S = 0.01  # at most, before the first new attempt; then twice as long each time


@dataclass(frozen=True)
class Marker:
    """What a shard is promised to be."""

    key: str  # digest of the key that it belongs to, so that a shard copied into another's directory shows
    completions: int
    bytes: int
    sha256: str
    source: Source
    verified: bool  # False: imported, and no training has compared the values with its policy yet

    @property
    def promise(self) -> Promise:
        """What it says of the file."""
        return Promise(self.sha256, self.bytes)


class Damage(Exception):
    """A file that does not count; the message names it and the cause."""


class Foreign(Damage):
    """A whole file, of another store."""


class OldLayout(Damage):
    """A shard of an earlier raydpo, with values by row: see raydpo.reference.old_layout."""


def commit_shard(place: Place, table: pa.Table, *, key: str, source: Source, verified: bool) -> str:
    """Write a shard and its marker, unless the same completions are there already; returns the shard's name.

    Two writers of the same completions may hold different bytes (another machine rounds differently, another setting
    keeps no tokens), and one's marker may land beside the other's shard. So each goes on until a whole shard reads
    back: the last to write sees the mixture, if there is one, and ends it. Many writers in step would go on disturbing
    each other, so each waits for a random moment before it writes again.

    ValueError for a value that is missing or not finite, never a 0. OSError when the place cannot be written.
    """
    table = table.cast(SCHEMA)
    if table["logps"].null_count or not pc.all(pc.is_finite(table["logps"])).as_py():
        raise ValueError(f"a shard of {place.address}: logps holds values that are missing or not finite.")
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    content = sink.getvalue()
    sha256 = hashlib.sha256(content).hexdigest()
    marker = Marker(key, table.num_rows, content.size, sha256, source, verified)
    name = shard_name(table["completion_id"], source)
    for attempt in range(_ATTEMPTS):
        try:
            check_shard(place, name, key=key)
            return name
        except Damage:
            if attempt:
                time.sleep(random.uniform(0, _PAUSE_S * 2**attempt))
            place.write(f"{name}.parquet", content)
            write_marker(place, name, marker)
    check_shard(place, name, key=key)
    return name


def shard_name(ids: pa.Array | pa.ChunkedArray, source: Source) -> str:
    """A name from the completions alone: who scores the same ones writes the same file."""
    digest = hashlib.blake2b(np.sort(as_numpy(ids)).tobytes(), digest_size=12).hexdigest()
    return digest if source == "computed" else f"{source}-{digest}"


def check_shard(place: Place, name: str, *, key: str) -> Marker:
    """The marker of a whole shard. Damage when something is missing, changed, or another key's."""
    marker = read_marker(place, name)
    if marker.key != key:
        raise foreign_to(place, name, marker.key)
    check_file(place, name, marker.promise, SCHEMA)
    return marker


def foreign_to(place: Place, name: str, key: str) -> Foreign:
    """The error for a shard of another key."""
    address = place.address_of(f"{name}.parquet")
    return Foreign(f"{address} belongs to the key {key}: it was copied here from another store")


def check_file(place: Place, name: str, promise: Promise, schema: pa.Schema) -> None:
    """Raise Damage where a shard's file is not what its marker promises, or has other columns."""
    file = f"{name}.parquet"
    address = place.address_of(file)

    def check_columns() -> None:
        with place.open(file) as stream:
            found = pq.read_schema(stream)
        if not found.equals(schema):
            raise Foreign(f"{address} has the columns {', '.join(found.names)}: not a shard of a reference store")

    flaw = find_flaw(place, file, promise, remember=True, inspect=check_columns)
    if flaw is None:
        return
    if flaw.kind == "missing":
        raise Damage(f"{address} is missing, though its marker is there")
    if flaw.kind == "size":
        raise Damage(
            f"{address} has {flaw.size} bytes where its marker promises {promise.bytes}: truncated or replaced"
        )
    raise Damage(f"{address} does not match the sha256 of its marker: its bytes have changed")


def read_marker(place: Place, name: str) -> Marker:
    """A shard's marker, unchecked against the shard. Damage when there is none that can be read."""
    content = read_promise(place, name)
    if "rows" in content:
        raise OldLayout(f"{place.address_of(f'{name}.parquet')} holds values by row, as an earlier raydpo left it")
    try:
        return Marker(**content)
    except TypeError:
        raise _no_marker(place, name) from None


def read_promise(place: Place, name: str) -> dict[str, Any]:
    """What the marker of a shard says, of whatever layout. Damage when there is none that can be read."""
    try:
        content = json.loads(place.read(f"{name}.json"))
    except FileNotFoundError:
        address = place.address_of(f"{name}.parquet")
        raise Damage(f"{address} has no marker {name}.json: its writer never finished, or the marker is lost") from None
    except ValueError:
        raise _no_marker(place, name) from None
    if not isinstance(content, dict):
        raise _no_marker(place, name)
    return content


def write_marker(place: Place, name: str, marker: Marker) -> None:
    """Make a shard count, or say something new about it."""
    place.write(f"{name}.json", (json.dumps(asdict(marker), indent=1) + "\n").encode())


def _no_marker(place: Place, name: str) -> Damage:
    return Damage(f"{place.address_of(f'{name}.json')} is not a marker: truncated or changed")
