"""Shards of an earlier raydpo, which kept the two values of a pair in one row and found them by the pair's row_id.

They lie in the directory of their key, beside those of today. `raydpo reference convert` makes shards by completion out
of them, and leaves beside each a file <shard>.converted that says which completions its rows are of: a run file names
the rows of one run, and a store may hold those of many. A shard is waste once every row of it is named there and every
completion is in a whole shard of today.

Legend: R rows of a shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raydpo.reference.directory import KeyDirectory, by_preference, in_threads
from raydpo.reference.index import Asked, Bools, Ids, as_arrow, as_numpy, first_occurrences
from raydpo.reference.shard import SCHEMA, Damage, Source, check_file, foreign_to, read_promise
from raydpo.storage.commit import Promise

OLD_SCHEMA = pa.schema(
    [
        ("row_id", pa.binary(16)),
        ("chosen_logps", pa.float32()),
        ("rejected_logps", pa.float32()),
        ("chosen_tokens", pa.int32()),
        ("rejected_tokens", pa.int32()),
        ("chosen_token_logps", pa.list_(pa.float32())),
        ("rejected_token_logps", pa.list_(pa.float32())),
    ]
)
CONVERTED = ".converted"  # the end of the record's name
_ID_BYTES = 16


@dataclass(frozen=True)
class OldMarker:
    """What a shard of the old layout is promised to be."""

    key: str
    rows: int
    bytes: int
    sha256: str
    source: Source
    verified: bool

    @property
    def promise(self) -> Promise:
        """What it says of the file."""
        return Promise(self.sha256, self.bytes)


class OldShards:
    """The shards of the old layout in a key's directory."""

    def __init__(self, directory: KeyDirectory) -> None:
        self._directory = directory
        self._place = directory.place

    def survey(self) -> tuple[dict[str, OldMarker], list[Damage]]:
        """Whole shards with their markers, those to prefer first; and what is wrong with the others.

        As among the shards of today, none counts under a damaged key.json.
        """
        markers = self.markers()
        found = list(in_threads(self._check, list(markers.items())))
        whole = {name: markers[name] for name, damage in zip(markers, found, strict=True) if damage is None}
        damages = [damage for damage in found if damage]
        try:
            self._directory.key()
        except Damage:  # which the survey of today's shards names
            return {}, damages
        return by_preference(whole), damages

    def markers(self) -> dict[str, OldMarker]:
        """What the shards are promised to be, unchecked."""
        names = self._directory.names()
        found = in_threads(self._promise, names)
        return {name: marker for name, marker in zip(names, found, strict=True) if marker}

    def holds(self, row_ids: pa.FixedSizeBinaryArray) -> Bools:
        """Of which rows there are values, shape [N]."""
        asked = Asked(row_ids)
        return asked.seen_in(self.row_ids(list(self.survey()[0])))[asked.place]

    def row_ids(self, names: Sequence[str]) -> Iterator[Ids]:
        """The rows of shards, in the order of the names."""
        return (as_numpy(table["row_id"]) for table in self._directory.read(names, ["row_id"]))

    def read(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """The tables of shards, OLD_SCHEMA, in the order of the names."""
        return self._directory.read(names)

    def mark_converted(self, name: str, row_ids: Ids, completion_ids: Ids) -> None:
        """Note of which completions rows of a shard are, besides the rows that were noted before.

        row_ids: shape [R]. completion_ids: [2R], chosen and rejected in turn.
        """
        named = np.concatenate([self.converted(name), np.column_stack([row_ids, completion_ids.reshape(-1, 2)])])
        _, first = np.unique(named[:, 0], return_index=True)
        self._place.write(f"{name}{CONVERTED}", named[first].tobytes())

    def converted(self, name: str) -> Ids:
        """The rows of a shard that were converted: their ids and those of their completions, shape [R, 3]."""
        try:
            content = self._place.read(f"{name}{CONVERTED}")
        except FileNotFoundError:
            content = b""
        if len(content) % (3 * _ID_BYTES):  # damaged: to convert again costs little, to trust it might cost values
            content = b""
        return np.frombuffer(content, dtype="S16").reshape(-1, 3)

    def superseded(self) -> list[str]:
        """Whole shards of whose every row the completions are in whole shards of today."""
        names = list(self.survey()[0])
        if not names:
            return []
        notes = [self.converted(name) for name in names]
        completions = Asked(as_arrow(np.concatenate([note[:, 1:].ravel() for note in notes])))
        kept = completions.seen_in(self._directory.ids())[completions.place].reshape(-1, 2).all(axis=1)
        kept_by_shard = np.split(kept, np.cumsum([len(note) for note in notes])[:-1])
        return [
            name
            for name, ids, note, safe in zip(names, self.row_ids(names), notes, kept_by_shard, strict=True)
            if np.isin(ids, note[safe, 0]).all()
        ]

    def _check(self, item: tuple[str, OldMarker]) -> Damage | None:
        name, marker = item
        try:
            if marker.key != self._directory.digest:
                raise foreign_to(self._place, name, marker.key)
            check_file(self._place, name, marker.promise, OLD_SCHEMA)
        except Damage as damage:
            return damage
        return None

    def _promise(self, name: str) -> OldMarker | None:
        try:
            return OldMarker(**read_promise(self._place, name))
        except (Damage, TypeError):
            return None


def by_completion(rows: pa.Table, ids: pa.FixedSizeBinaryArray) -> pa.Table:
    """R rows of the old layout as a shard of today's; a completion that stands in several rows has its first value.

    ids: of the rows' completions, shape [2R], chosen and rejected in turn. Every value stays what it was, to the bit.
    """
    columns = {"completion_id": ids}
    for name in SCHEMA.names[1:]:
        chosen = rows[f"chosen_{name}"].combine_chunks()
        rejected = rows[f"rejected_{name}"].combine_chunks()
        columns[name] = pa.concat_arrays([chosen, rejected]).take(_in_turn(len(rows)))
    [first] = first_occurrences([as_numpy(ids)])
    return pa.table(columns, schema=SCHEMA).filter(pa.array(first))


def _in_turn(rows: int) -> pa.Array:
    """Where the values of row after row stand in an array that holds the chosen ones and then the rejected ones."""
    return pa.array(np.arange(2 * rows).reshape(2, rows).T.ravel())
