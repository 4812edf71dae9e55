"""One shard of the reference store: a parquet file, and the marker beside it that makes it count.

The marker is written last and promises size and sha256 of the file. Whoever finds a shard without a marker, or with
one that it does not match, treats it as absent.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raydpo.reference.index import as_numpy
from raydpo.reference.place import Place

Source = Literal["computed", "imported"]

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
SUMS = ["row_id", "chosen_logps", "rejected_logps"]

_ATTEMPTS = 10
_PAUSE_S = 0.01  # at most, before the first new attempt; then twice as long each time
_BLOCK = 1 << 22

# (address, size, time, sha256) of the shards that this process has found whole: hashing reads every byte, tokens
# included, so it is done once. Only good news is remembered; a shard that was mended is looked at again.
_FOUND_WHOLE: set[tuple[str, int, int, str]] = set()


@dataclass(frozen=True)
class Marker:
    """What a shard is promised to be."""

    key: str  # digest of the key that it belongs to, so that a shard copied into another's directory shows
    rows: int
    bytes: int
    sha256: str
    source: Source
    verified: bool  # False: imported, and no training has compared the values with its policy yet


class Damage(Exception):
    """A file that does not count; the message names it and the cause."""


class Foreign(Damage):
    """A whole file, of another store."""


def commit_shard(place: Place, table: pa.Table, *, key: str, source: Source) -> str:
    """Write a shard and then its marker, unless the same rows are there already; returns the shard's name.

    Two writers of the same rows may hold different bytes (another machine rounds differently, another setting keeps no
    tokens), and one's marker may land beside the other's shard. So each goes on until a whole shard reads back: the
    last to write sees the mixture, if there is one, and ends it. Many writers in step would go on disturbing each
    other, so each waits for a random moment before it writes again.

    ValueError for a value that is missing or not finite, never a 0. OSError when the place cannot be written.
    """
    table = table.cast(SCHEMA)
    for column in ("chosen_logps", "rejected_logps"):
        if table[column].null_count or not pc.all(pc.is_finite(table[column])).as_py():
            raise ValueError(f"a shard of {place.address}: {column} holds values that are missing or not finite.")
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    content = sink.getvalue()
    sha256 = hashlib.sha256(content).hexdigest()
    marker = Marker(key, table.num_rows, content.size, sha256, source, verified=source == "computed")
    name = shard_name(table["row_id"], source)
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


def shard_name(row_ids: pa.ChunkedArray, source: Source) -> str:
    """A name from the rows alone: who scores the same rows writes the same file."""
    digest = hashlib.blake2b(np.sort(as_numpy(row_ids)).tobytes(), digest_size=12).hexdigest()
    return digest if source == "computed" else f"{source}-{digest}"


def check_shard(place: Place, name: str, *, key: str) -> Marker:
    """The marker of a whole shard. Damage when something is missing, changed, or another key's."""
    marker, file = read_marker(place, name), f"{name}.parquet"
    address = place.address_of(file)
    if marker.key != key:
        raise Foreign(f"{address} belongs to the key {marker.key}: it was copied here from another store")
    info = place.info(file)
    if not info.is_file:
        raise Damage(f"{address} is missing, though its marker is there")
    if info.size != marker.bytes:
        raise Damage(f"{address} has {info.size} bytes where its marker promises {marker.bytes}: truncated or replaced")
    seen = (address, info.size, info.mtime_ns, marker.sha256)
    if seen not in _FOUND_WHOLE:
        if _sha256(place, file) != marker.sha256:
            raise Damage(f"{address} does not match the sha256 of its marker: its bytes have changed")
        with place.open(file) as stream:
            found = pq.read_schema(stream)
        if not found.equals(SCHEMA):
            raise Foreign(f"{address} has the columns {', '.join(found.names)}: not a shard of a reference store")
        _FOUND_WHOLE.add(seen)
    return marker


def read_marker(place: Place, name: str) -> Marker:
    """A shard's marker, unchecked against the shard. Damage when there is none that can be read."""
    try:
        return Marker(**json.loads(place.read(f"{name}.json")))
    except FileNotFoundError:
        address = place.address_of(f"{name}.parquet")
        raise Damage(f"{address} has no marker {name}.json: its writer never finished, or the marker is lost") from None
    except (ValueError, TypeError):
        raise Damage(f"{place.address_of(f'{name}.json')} is not a marker: truncated or changed") from None


def write_marker(place: Place, name: str, marker: Marker) -> None:
    """Make a shard count, or say something new about it."""
    place.write(f"{name}.json", (json.dumps(asdict(marker), indent=1) + "\n").encode())


def _sha256(place: Place, name: str) -> str:
    digest = hashlib.sha256()
    with place.open(name) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
