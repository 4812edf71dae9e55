"""Looking after a store: what is in it, whether it is whole, what may go, and a copy for other programs."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raydpo.errors import UserError
from raydpo.reference.directory import KEY_FILE, KeyDirectory
from raydpo.reference.index import Bools, as_numpy, first_occurrences
from raydpo.reference.place import Place
from raydpo.reference.shard import SCHEMA, Damage
from raydpo.storage.files import whole_file

# What other programs call the sums (TRL does); the rest follows suit.
EXPORTED = pa.schema([SCHEMA.field(0), *(field.with_name(f"ref_{field.name}") for field in list(SCHEMA)[1:])])


@dataclass(frozen=True)
class KeySummary:
    """One key of a store, by its markers; the shards themselves are not read."""

    key: str
    made_of: dict[str, Any]  # what key.json says; empty when it is damaged
    shards: int
    rows: int
    unverified_rows: int
    bytes: int
    age_s: float  # since something was last written

    @classmethod
    def of(cls, directory: KeyDirectory) -> KeySummary:
        """The summary of one directory."""
        markers = directory.markers()
        try:
            made_of = directory.key()
        except Damage:
            made_of = {}
        written = max((entry.mtime.timestamp() for entry in directory.place.entries() if entry.is_file), default=0.0)
        return cls(
            key=directory.digest,
            made_of=made_of,
            shards=len(markers),
            rows=sum(marker.rows for marker in markers),
            unverified_rows=sum(marker.rows for marker in markers if not marker.verified),
            bytes=sum(marker.bytes for marker in markers),
            age_s=time.time() - written,
        )


@dataclass(frozen=True)
class Waste:
    """Files of one directory that nobody would miss."""

    place: Place
    files: tuple[str, ...]  # a marker before its shard, so that none promises what is gone
    bytes: int
    why: str


def list_keys(store: str) -> list[KeyDirectory]:
    """The directories of a store, whatever is in them. UserError where there are none."""
    root = Place.of(store)
    names = [entry.base_name for entry in root.entries() if entry.type == pafs.FileType.Directory]
    if not names:
        raise UserError(f"there is no reference store at {root.address}; give the directory above those of the keys.")
    return [KeyDirectory(root / name) for name in names]


def verify_store(store: str) -> tuple[dict[str, int], list[Damage]]:
    """Read every byte and compare: counts of what is whole, and everything that does not count with its cause."""
    counts: dict[str, int] = {"keys": 0, "shards": 0, "rows": 0}
    problems: list[Damage] = []
    for directory in list_keys(store):
        whole, damages = directory.survey()
        counts["keys"] += 1
        counts["shards"] += len(whole)
        counts["rows"] += sum(marker.rows for marker in whole.values())
        problems += damages
    return counts, problems


def find_waste(
    store: str, *, keys: Sequence[str] = (), unverified: bool = False, older_than_s: float = 3600.0
) -> list[Waste]:
    """What may go: what killed writers left, shards that do not count, shards whose every row is in others.

    keys: whole keys to go as well. unverified: imported shards that no training has verified, too. What was not asked
    for by name stays while it is younger than older_than_s: its writer may be at work. UserError for a key that is not
    there.
    """
    directories = list_keys(store)
    named = {_named(directories, key).digest for key in keys}
    waste: list[Waste] = []
    for directory in directories:
        if directory.digest in named:
            entries = directory.place.entries()
            files = sorted((entry.base_name for entry in entries), key=lambda name: name != KEY_FILE)
            waste.append(Waste(directory.place, tuple(files), sum(e.size or 0 for e in entries), "the key was named"))
        else:
            old = time.time() - older_than_s
            waste += (found for found in _waste_of(directory, unverified=unverified, written_before=old) if found.files)
    return waste


def remove_waste(waste: Sequence[Waste]) -> None:
    """Delete it."""
    for found in waste:
        found.place.remove(found.files)
        if not found.place.entries():
            found.place.remove_all()


def export_key(store: str, key: str, file: Path) -> int:
    """Write every row of a key once to one parquet file with the columns EXPORTED; returns the number of rows."""
    directory, rows = _named(list_keys(store), key), 0
    names = list(directory.survey()[0])
    if not names:
        raise UserError(f"the key {key} has no whole shard; `raydpo reference verify` says what is wrong with it.")
    with whole_file(file) as temporary, pq.ParquetWriter(temporary, EXPORTED) as writer:
        for table, new in zip(directory.read(names), _new_rows(directory, names), strict=True):
            kept = table.filter(pa.array(new)).rename_columns(EXPORTED.names)
            writer.write_table(kept)
            rows += kept.num_rows
    return rows


def _named(directories: Sequence[KeyDirectory], key: str) -> KeyDirectory:
    for directory in directories:
        if directory.digest == key:
            return directory
    there = ", ".join(directory.digest for directory in directories)
    raise UserError(f"there is no key {key} in this store; it has {there}.")


def _waste_of(directory: KeyDirectory, *, unverified: bool, written_before: float) -> Iterator[Waste]:
    entries = {entry.base_name: entry for entry in directory.place.entries() if entry.is_file}
    old = {name for name, entry in entries.items() if entry.mtime.timestamp() < written_before}

    def waste(files: Sequence[str], why: str) -> Waste:
        return Waste(directory.place, tuple(files), sum(entries[name].size for name in files), why)

    def shard(name: str, why: str, among: Collection[str]) -> Waste:
        return waste([file for file in (f"{name}.json", f"{name}.parquet") if file in among], why)

    try:
        directory.key()
    except Damage:
        return  # nobody knows what is in there: whoever wants it gone names the key
    for name in sorted(old):
        if name.startswith(".") and name.endswith(".tmp"):
            yield waste([name], "a killed writer left it")
    whole, _ = directory.survey()
    for name in directory.names():
        if name not in whole:
            yield shard(name, "it does not count: no marker, or not what its marker promises", old)
    rejected = [name for name, marker in whole.items() if unverified and not marker.verified]
    for name in rejected:
        yield shard(name, "imported and never verified", entries)
    kept = [name for name in whole if name not in rejected]
    for name, new in zip(kept, _new_rows(directory, kept), strict=True):
        if not new.any():
            yield shard(name, "every row is in other shards", old)


def _new_rows(directory: KeyDirectory, names: Sequence[str]) -> list[Bools]:
    """For each shard, which of its rows are in no shard before it."""
    return first_occurrences([as_numpy(table["row_id"]) for table in directory.read(names, ["row_id"])])
