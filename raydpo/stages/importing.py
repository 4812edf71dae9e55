"""Reference log-probs that another program has computed: matched by content, kept as unverified.

A file's row is a pair with ref_chosen_logps and ref_rejected_logps, as TRL names them, whose completions are the run's
when they are tokenised to the same ids; or it is one completion, by the `completion_id` and `ref_logps` that `raydpo
reference export` writes. A value is the sum over a completion's tokens, or a list with the value of every token.

Legend: K values of the file.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydpo.config.schema import Data
from raydpo.data.completions import completion_ids
from raydpo.data.lengths import completion_lengths
from raydpo.data.reading import raw_rows
from raydpo.data.rows import Field, canonical_row, pair_fields
from raydpo.data.shards import read_shard
from raydpo.data.tokenizer import RowTokenizer
from raydpo.data.tokens import TokenSettings, completion_id, tokenize_pair
from raydpo.errors import UserError
from raydpo.model.tokenizer import load_row_tokenizer
from raydpo.reference.dataset import Dataset
from raydpo.reference.index import Asked, Bools, as_numpy
from raydpo.reference.shard import SCHEMA
from raydpo.reference.store import Store
from raydpo.reference.unconverted import check_converted
from raydpo.workspace.prepared import prepared_datasets
from raydpo.workspace.rows import RowSettings

PAIR = ("ref_chosen", "ref_rejected")  # what the columns of a pair's values begin with
ALONE = "ref"  # and of one completion's
_NO_COMPLETION = bytes(16)  # stands for one of a row that prepare drops: too long, or equal completions
_UNKNOWN = -1  # how many tokens a sum is over, where the file does not say


@dataclass(frozen=True)
class Imported:
    """What became of the completions, each counted once."""

    imported: int
    known: int  # the store had a value already, and keeps it
    unmatched: int  # the file's, not among the run's
    lacking: int  # the run's, still without a value
    store: str


@dataclass(frozen=True)
class _Given:
    """A file's values, in its order."""

    file: str
    ids: pa.FixedSizeBinaryArray  # [K]
    sums: NDArray[np.float32]  # [K]
    tokens: NDArray[np.int32]  # [K], _UNKNOWN where it does not say
    rows: NDArray[np.int32]  # [K], the row of the file, from 1
    columns: list[str]  # [K], where the value stood


def import_values(rows: RowSettings, store: Store, file: str) -> Imported:
    """Fill the store of the run's reference from a file, where it lacks values. UserError names file, row and value.

    Takes no cluster: one process reads and tokenises.
    """
    datasets = prepared_datasets(rows)
    check_converted(store, datasets)
    given = _read(file, _Identify(rows.data, rows.layout.start_model))
    asked = Asked(given.ids)
    ids = pa.concat_arrays([dataset.completion_ids for dataset in datasets])
    missing = store.missing(ids)
    matched = int(Asked(ids).find(asked.ids)[1].sum())
    if not matched:
        raise UserError(
            f"none of the {len(asked)} completions of {file} is among the run's prepared rows; is it another data "
            "set, or was `raydpo prepare` run with another tokenizer, template or data.max_length?"
        )
    _check_consistent(given, asked, rows.train.step0_tolerance)
    # All shards are made before the first is committed: a file with a mistake changes nothing.
    shards = list(_shards(datasets, missing, given, asked))
    store.claim()
    for shard in shards:
        store.commit(shard, "imported")
    imported = sum(shard.num_rows for shard in shards)
    return Imported(
        imported=imported,
        known=matched - imported,
        unmatched=len(asked) - matched,
        lacking=int(missing.sum()) - imported,
        store=store.address,
    )


def _check_consistent(given: _Given, asked: Asked, tolerance: float) -> None:
    """Raise UserError where a file gives one completion two values. Below `tolerance` nats rounding explains it."""
    first = asked.first[asked.place]
    differs = np.abs(given.sums - given.sums[first]) > tolerance
    differs &= as_numpy(given.ids) != np.bytes_(_NO_COMPLETION)
    for i in np.flatnonzero(differs)[:1]:
        j = first[i]
        raise UserError(
            f"{given.file} row {given.rows[i]}: {given.columns[i]} is {given.sums[i]:g}, but {given.columns[j]} of row "
            f"{given.rows[j]} is {given.sums[j]:g} for the same completion of the same prompt, and "
            f"train.step0_tolerance allows {tolerance:g}; remove the wrong row."
        )


def _shards(datasets: list[Dataset], missing: Bools, given: _Given, asked: Asked) -> Iterator[pa.Table]:
    """What the file gives of the missing completions, a shard for each token shard; missing is over all datasets."""
    ends = np.cumsum([len(dataset.completion_ids) for dataset in datasets])
    for dataset, wanted in zip(datasets, np.split(missing, ends[:-1]), strict=True):
        _, found = asked.find(as_numpy(dataset.completion_ids))
        for path, completions in dataset.where(np.flatnonzero(wanted & found)):
            yield _shard(read_shard(path), completions, given, asked)


def _shard(prepared: pa.Table, completions: NDArray[np.int32], given: _Given, asked: Asked) -> pa.Table:
    """Prepared completions with their values as a shard. UserError where the numbers of tokens differ."""
    ids = completion_ids(prepared).take(pa.array(completions))
    tokens = completion_lengths(prepared)[completions]
    at, _ = asked.find(as_numpy(ids))
    values = asked.first[at]
    said = given.tokens[values]
    for i in np.flatnonzero((said != _UNKNOWN) & (said != tokens))[:1]:
        raise UserError(
            f"{given.file} row {given.rows[values[i]]}: {given.columns[values[i]]} is over {said[i]} tokens, but the "
            f"completion has {tokens[i]}; the values come from another tokenizer, template or truncation."
        )
    not_kept = pa.nulls(len(ids), SCHEMA.field("token_logps").type)
    return pa.table([ids, pa.array(given.sums[values]), pa.array(tokens, pa.int32()), not_kept], schema=SCHEMA)


def _read(file: str, identify: _Identify) -> _Given:
    ids = bytearray()
    sums = array("f")
    tokens = array("i")
    rows = array("i")
    columns: list[str] = []
    for number, raw in enumerate(raw_rows(file, identify.fields_to_read), start=1):
        place = f"{file} row {number}"
        for prefix, name in identify(raw, place):
            total, count = _value(raw, prefix, place)
            ids += name
            sums.append(total)
            tokens.append(count)
            rows.append(number)
            columns.append(f"{prefix}_logps")
    if not sums:
        raise UserError(f"{file} holds no rows; give a file with rows.")
    return _Given(
        file,
        pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(sums), [None, pa.py_buffer(bytes(ids))]),
        np.asarray(sums, dtype=np.float32),
        np.asarray(tokens, dtype=np.int32),
        np.asarray(rows, dtype=np.int32),
        columns,
    )


class _Identify:
    """From a raw row to its completions."""

    def __init__(self, data: Data, model: str) -> None:
        self._fields = pair_fields(data.columns.prompt, data.columns.chosen, data.columns.rejected)
        self._ignore = data.ignore
        self._settings = TokenSettings(data.max_length, data.truncation, append_eos=data.append_eos)
        self._tokenizer: RowTokenizer = load_row_tokenizer(model, data.date, data.chat_template)

    @property
    def fields_to_read(self) -> list[Field]:
        """The columns of a pair, those of values, and the name of a completion; which are there is seen row by row."""
        values = [f"{prefix}_{what}" for prefix in (*PAIR, ALONE) for what in ("logps", "tokens")]
        return [*_optional(self._fields), *(Field(name, name, optional=True) for name in ("completion_id", *values))]

    def __call__(self, raw: dict[str, Any], place: str) -> list[tuple[str, bytes]]:
        """For each completion of a row, what the columns of its value begin with, and its completion_id."""
        name = raw.get("completion_id")
        if isinstance(name, bytes) and len(name) == 16:
            return [(ALONE, name)]
        pair = canonical_row(raw, self._fields, place, self._ignore)
        try:
            row = tokenize_pair(pair, self._tokenizer, self._settings).row
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
        if row is None:
            return [(prefix, _NO_COMPLETION) for prefix in PAIR]
        return [(p, completion_id(row.prompt_ids, c)) for p, c in zip(PAIR, row.completions, strict=True)]


def _optional(fields: tuple[Field, ...]) -> Iterator[Field]:
    return (Field(field.name, field.column, optional=True) for field in fields)


def _value(raw: dict[str, Any], prefix: str, place: str) -> tuple[float, int]:
    """A sum in nats, and over how many tokens it is, or _UNKNOWN."""
    column = f"{prefix}_logps"
    value = raw.get(column)
    count = raw.get(f"{prefix}_tokens")
    parts: list[Any] = value if isinstance(value, list) else [value]
    if not parts or not all(type(part) in (int, float) and math.isfinite(part) for part in parts):
        raise UserError(
            f"{place}: {column} is {value!r}; it must be a finite number, or a list with one for every token. Mend the "
            "row or remove it: `raydpo precompute` scores what is missing."
        )
    if isinstance(value, list):
        count = len(value)
    return math.fsum(parts), _UNKNOWN if count is None else int(count)
