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

from raydpo.config.errors import UserError
from raydpo.config.files import whole_file
from raydpo.reference.directory import KEY_FILE, KeyDirectory
from raydpo.reference.index import Bools, as_numpy, first_occurrences
from raydpo.reference.old_layout import CONVERTED, OldShards
from raydpo.reference.place import Place
from raydpo.reference.shard import SCHEMA, Damage

# Beside the logps of a policy they need a name of their own: TRL puts ref_ before such columns.
EXPORTED = pa.schema([SCHEMA.field(0), *(field.with_name(f"ref_{field.name}") for field in list(SCHEMA)[1:])])


@dataclass(frozen=True)
class KeySummary:
    """One key of a store, by its markers; the shards themselves are not read."""

    key: str
    made_of: dict[str, Any]  # what key.json says; empty when it is damaged
    shards: int
    completions: int
    unverified: int  # completions among them
    old_pairs: int  # pairs in shards of the old layout, converted or not
    bytes: int
    age_s: float  # since something was last written

    @classmethod
    def of(cls, directory: KeyDirectory) -> KeySummary:
        """The summary of one directory."""
        markers = directory.markers()
        old = list(OldShards(directory).markers().values())
        try:
            made_of = directory.key()
        except Damage:
            made_of = {}
        written = max((entry.mtime.timestamp() for entry in directory.place.entries() if entry.is_file), default=0.0)
        return cls(
            key=directory.digest,
            made_of=made_of,
            shards=len(markers) + len(old),
            completions=sum(marker.completions for marker in markers),
            unverified=sum(marker.completions for marker in markers if not marker.verified),
            old_pairs=sum(marker.rows for marker in old),
            bytes=sum(marker.bytes for marker in markers) + sum(marker.bytes for marker in old),
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
    """Read every byte and compare: counts of what is whole, and everything that does not count with its cause.

    old_pairs are whole pairs in shards of the old layout, of which some or all may be converted.
    """
    counts = {"keys": 0, "shards": 0, "completions": 0, "old_pairs": 0}
    problems: list[Damage] = []
    for directory in list_keys(store):
        whole, damages = directory.survey()
        old, old_damages = OldShards(directory).survey()
        counts["keys"] += 1
        counts["shards"] += len(whole) + len(old)
        counts["completions"] += sum(marker.completions for marker in whole.values())
        counts["old_pairs"] += sum(marker.rows for marker in old.values())
        problems += [*damages, *old_damages]
    return counts, problems


def find_waste(
    store: str, *, keys: Sequence[str] = (), unverified: bool = False, older_than_s: float = 3600.0
) -> list[Waste]:
    """What may go: what killed writers left, shards that do not count, shards all of whose values are in others.

    A shard of the old layout is among them when every row of it is converted.

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
    """Write every completion of a key once to one parquet file with the columns EXPORTED; returns their number."""
    directory = _named(list_keys(store), key)
    written = 0
    names = list(directory.survey()[0])
    if not names:
        raise UserError(f"the key {key} has no whole shard; `raydpo reference verify` says what is wrong with it.")
    with whole_file(file) as temporary, pq.ParquetWriter(temporary, EXPORTED) as writer:
        for table, new in zip(directory.read(names), _new(directory, names), strict=True):
            kept = table.filter(pa.array(new)).rename_columns(EXPORTED.names)
            writer.write_table(kept)
            written += kept.num_rows
    return written


def _named(directories: Sequence[KeyDirectory], key: str) -> KeyDirectory:
    for directory in directories:
        if directory.digest == key:
            return directory
    there = ", ".join(directory.digest for directory in directories)
    raise UserError(f"there is no key {key} in this store; it has {there}.")


def _waste_of(directory: KeyDirectory, *, unverified: bool, written_before: float) -> Iterator[Waste]:
    entries = {entry.base_name: entry for entry in directory.place.entries() if entry.is_file}
    ripe = {name for name, entry in entries.items() if entry.mtime.timestamp() < written_before}

    def waste(files: Sequence[str], why: str) -> Waste:
        return Waste(directory.place, tuple(files), sum(entries[name].size for name in files), why)

    try:
        directory.key()
    except Damage:
        return  # nobody knows what is in there: whoever wants it gone names the key
    for name, why in _leftovers(entries):
        yield waste([name] if name in ripe else [], why)
    whole, _ = directory.survey()
    rejected = [name for name, marker in whole.items() if unverified and not marker.verified]
    for name in rejected:
        yield waste(_files_of(name, entries), "imported and never verified")
    kept = [name for name in whole if name not in rejected]
    for name, why in [*_uncounted(directory, whole), *_repeated(directory, kept)]:
        yield waste(_files_of(name, ripe), why)


def _files_of(shard: str, among: Collection[str]) -> list[str]:
    """The files of a shard, its marker first."""
    files = (f"{shard}.json", f"{shard}.parquet", f"{shard}{CONVERTED}")
    return [file for file in files if file in among]


def _leftovers(files: Collection[str]) -> Iterator[tuple[str, str]]:
    """Files that belong to no shard of raydpo's, and why they are there."""
    for name in sorted(files):
        if name.startswith(".") and name.endswith(".tmp"):
            yield name, "a killed writer left it"
        elif name.endswith(CONVERTED) and name.replace(CONVERTED, ".parquet") not in files:
            yield name, "the shard that it speaks of is gone"


def _uncounted(directory: KeyDirectory, whole: Collection[str]) -> Iterator[tuple[str, str]]:
    """Shards, finished or not, that answer no question, and why."""
    old_shards = OldShards(directory)
    old_whole, _ = old_shards.survey()
    for name in directory.names():
        if name not in whole and name not in old_whole:
            yield name, "it does not count: no marker, or not what its marker promises"
    for name in old_shards.superseded():
        yield name, "of the old layout, and every row is converted"


def _repeated(directory: KeyDirectory, kept: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name, new in zip(kept, _new(directory, kept), strict=True):
        if not new.any():
            yield name, "every completion is in other shards"


def _new(directory: KeyDirectory, names: Sequence[str]) -> list[Bools]:
    """For each shard, which of its completions are in no shard before it."""
    tables = directory.read(names, ["completion_id"])
    return first_occurrences([as_numpy(table["completion_id"]) for table in tables])
