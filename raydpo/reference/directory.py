"""The directory of one key: its key.json and its shards, checked and read by many threads at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from raydpo.reference.index import Ids, as_numpy
from raydpo.reference.place import Place
from raydpo.reference.shard import Damage, Foreign, Marker, OldLayout, check_shard, read_marker

KEY_FILE = "key.json"

_THREADS = 16  # hashing releases the interpreter, and an object store answers many at once
_AHEAD = 64  # results that may wait for whoever reads them


class Promised(Protocol):
    """What a marker says of a shard, of whatever layout."""

    @property
    def verified(self) -> bool:
        """Whether the values were computed here, or a training has compared them with its policy."""

    @property
    def bytes(self) -> int:
        """The size of the file."""


T = TypeVar("T")
S = TypeVar("S")
P = TypeVar("P", bound=Promised)


def key_digest(key: Mapping[str, Any]) -> str:
    """The name of a key's directory: a hash of what key.json holds."""
    return hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=12).hexdigest()


class KeyDirectory:
    """<store>/<digest of the key>/{key.json, <shard>.parquet, <shard>.json}."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.digest = place.path.rpartition("/")[2]

    def key(self) -> dict[str, Any]:
        """What the values depend on. Damage when key.json is missing, no JSON, or not of this directory."""
        address = self.place.address_of(KEY_FILE)
        try:
            key = json.loads(self.place.read(KEY_FILE))
        except FileNotFoundError:
            raise Damage(f"{address} is missing: not the directory of a key, or a half-written one") from None
        except ValueError:
            raise Damage(f"{address} is not JSON: truncated or changed") from None
        if not isinstance(key, dict) or key_digest(key) != self.digest:
            raise Foreign(f"{address} is of another key than its directory {self.digest}: a foreign store")
        return key

    def names(self) -> list[str]:
        """Names of all shards of which there is a file or a marker, finished or not."""
        files = [info.base_name for info in self.place.entries() if info.is_file and info.base_name != KEY_FILE]
        return sorted({name.rpartition(".")[0] for name in files if _is_of_a_shard(name)})

    def survey(self) -> tuple[dict[str, Marker], list[Damage]]:
        """Whole shards with their markers, those to prefer first; and what is wrong with the others.

        Shards of the old layout are neither. No shard counts in a directory whose key.json is damaged: nobody knows
        what it holds the values of.
        """
        names = self.names()
        found = list(in_threads(self._check, names))
        whole = {name: marker for name, marker in zip(names, found, strict=True) if isinstance(marker, Marker)}
        damages = [damage for damage in found if isinstance(damage, Damage) and not isinstance(damage, OldLayout)]
        try:
            self.key()
        except Damage as damage:
            return {}, [damage, *damages]
        return by_preference(whole), damages

    def markers(self) -> list[Marker]:
        """What the shards are promised to be, unchecked; those without a promise are left out."""
        return [marker for marker in in_threads(self._promise, self.names()) if marker]

    def read(self, names: Sequence[str], columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The tables of shards, in the order of their names; a few at a time are in memory."""

        def table(name: str) -> pa.Table:
            with self.place.open(f"{name}.parquet") as stream:
                return pq.read_table(stream, columns=columns)

        return in_threads(table, names)

    def ids(self) -> Iterator[Ids]:
        """The completions of every whole shard, shard after shard."""
        whole, _ = self.survey()
        return (as_numpy(table["completion_id"]) for table in self.read(list(whole), ["completion_id"]))

    def _check(self, name: str) -> Marker | Damage:
        try:
            return check_shard(self.place, name, key=self.digest)
        except Damage as damage:
            return damage

    def _promise(self, name: str) -> Marker | None:
        try:
            return read_marker(self.place, name)
        except Damage:
            return None


def _is_of_a_shard(name: str) -> bool:
    return name.endswith((".parquet", ".json")) and not name.startswith(".")


def by_preference(markers: Mapping[str, P]) -> dict[str, P]:
    """Shards by name, in the order in which they answer for a value that several hold.

    Verified values come before imported ones, then those with more to them.
    """
    return dict(sorted(markers.items(), key=lambda item: (not item[1].verified, -item[1].bytes, item[0])))


def in_threads(function: Callable[[S], T], items: Sequence[S]) -> Iterator[T]:
    """Map in order, with a bounded number of results that wait."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for begin in range(0, len(items), _AHEAD):
            yield from pool.map(function, items[begin : begin + _AHEAD])
