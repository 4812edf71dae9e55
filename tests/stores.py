"""Reference stores for the tests: made-up values, on a disk or on an S3 server of our own, and ways to spoil them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa

from raydpo.reference.place import Place
from raydpo.reference.shard import SCHEMA
from raydpo.reference.store import Key, Store

KEY = Key(weights="0123", dtype="float32", fp32_head=False, attention="segments", scorer_version=1)
NAMES = [bytes([i]) * 16 for i in range(6)]
LOGPS = np.random.default_rng(0).normal(-40, 20, 6).astype(np.float32)
BUCKET = "tests"


def ids(completions: Sequence[int]) -> pa.FixedSizeBinaryArray:
    """Completion ids as the store is asked for them."""
    return pa.array([NAMES[i] for i in completions], pa.binary(16))


def table(completions: Sequence[int], logps: np.ndarray = LOGPS) -> pa.Table:
    """What a scorer says of these completions; of every second one it kept the tokens."""
    columns = {
        "completion_id": ids(completions),
        "logps": logps[completions].tolist(),
        "tokens": [2] * len(completions),
        "token_logps": [[logps[i] / 2] * 2 if i % 2 else None for i in completions],
    }
    return pa.table(columns, schema=SCHEMA)


def claimed(root: str, key: Key = KEY) -> Store:
    """An empty store."""
    store = Store(root, key)
    store.claim()
    return store


def full_store(root: str) -> tuple[Store, list[str]]:
    """A store of all completions, and the names of its two shards: completions 0 to 2, and 3 to 5."""
    store = claimed(root)
    return store, [store.commit(table([0, 1, 2])), store.commit(table([3, 4, 5]))]


def place_of(root: str, key: Key = KEY) -> Place:
    """The directory of a key."""
    return Place.of(root) / key.digest


def files_of(root: str, key: Key = KEY) -> dict[str, bytes]:
    """Every file of a key."""
    place = place_of(root, key)
    return {entry.base_name: place.read(entry.base_name) for entry in place.entries()}


@contextmanager
def s3_server() -> Iterator[Callable[[], str]]:
    """An S3 server; yields a function that makes addresses, each with a prefix of its own and with credentials."""
    from moto.server import ThreadedMotoServer  # takes two seconds, which tests on a disk do not need

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1&allow_delayed_open=true"
    try:
        bucket = Place.of(f"s3://name:password@{BUCKET}/x?{options}&allow_bucket_creation=true")
        bucket.filesystem.create_dir(BUCKET)
        yield lambda: f"s3://name:password@{BUCKET}/{uuid.uuid4().hex}?{options}"
    finally:
        server.stop()
