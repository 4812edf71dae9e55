"""Reference log-probs that another program has computed: matched by content, kept as unverified.

A file's row is one of the run's rows when it is tokenised to the same ids, or names them by the `row_id` that
`raydpo reference export` writes. The values are sums as TRL keeps them, ref_chosen_logps and ref_rejected_logps, or
lists with the value of every token.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raydpo.config.schema import RunFile
from raydpo.data.formats import Field, canonical_row, pair_fields, raw_rows
from raydpo.data.paths import expand_paths
from raydpo.data.shards import read_shard
from raydpo.data.tokenizer import RowTokenizer
from raydpo.data.tokens import TokenSettings, tokenize_pair
from raydpo.errors import UserError
from raydpo.model.tokenizer import load_row_tokenizer
from raydpo.reference.dataset import MANIFEST, Dataset, open_dataset
from raydpo.reference.index import Asked, as_numpy
from raydpo.reference.shard import SCHEMA
from raydpo.workspace.layout import Layout, reference_store
from raydpo.workspace.provenance import check_prepared

SIDES = ("chosen", "rejected")
_NO_ROW = bytes(16)  # stands for a row that prepare drops: too long, or equal completions
_UNKNOWN = -1  # how many tokens a sum is over, where the file does not say


@dataclass(frozen=True)
class Imported:
    """What became of the rows, each counted once."""

    imported: int
    known: int  # the store had a value already, and keeps it
    unmatched: int  # the file's, not among the run's
    lacking: int  # the run's, still without a value
    store: str


@dataclass(frozen=True)
class _Given:
    """A file's values; row i of the arrays is row i + 1 of the file."""

    file: str
    row_ids: pa.FixedSizeBinaryArray  # [M]
    sums: NDArray[np.float32]  # [M, 2]
    tokens: NDArray[np.int32]  # [M, 2], _UNKNOWN where it does not say


def import_values(run: RunFile, path: str) -> Imported:
    """Fill the run's reference store from a file, where it lacks values. UserError names file, row and value.

    Takes no cluster: one process reads and tokenises.
    """
    [file] = expand_paths([path])
    store, datasets = reference_store(run), prepared_datasets(run)
    given = _read(run, file)
    row_ids = pa.concat_arrays([dataset.row_ids for dataset in datasets])
    missing, asked = store.missing(row_ids), Asked(given.row_ids)
    matched = int(Asked(row_ids).find(asked.ids)[1].sum())
    if not matched:
        raise UserError(
            f"none of the {len(given.row_ids)} rows of {file} is among the run's prepared rows; is it another data "
            "set, or was `raydpo prepare` run with another tokenizer, template or data.max_length?"
        )
    shards = []  # all are made before the first is committed: a file with a mistake changes nothing
    for prepared, offsets in missing_rows(datasets, missing):
        table = read_shard(prepared).take(pa.array(offsets))
        at, found = asked.find(as_numpy(table["row_id"]))
        if found.any():
            shards.append(_shard(table.filter(pa.array(found)), given, asked.first[at[found]]))
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


def prepared_datasets(run: RunFile) -> list[Dataset]:
    """The train tokens and, where there are any, the held-out ones."""
    layout = Layout(run)
    check_prepared(run)
    held_out = [layout.held_out_tokens] if (layout.held_out_tokens / MANIFEST).exists() else []
    return [open_dataset(path) for path in (layout.train_tokens, *held_out)]


def missing_rows(datasets: Sequence[Dataset], missing: NDArray[np.bool_]) -> Iterator[tuple[str, NDArray[np.int32]]]:
    """Every token shard with missing rows, and their offsets in it.

    missing: over the rows of all datasets, in order.
    """
    ends = np.cumsum([len(dataset) for dataset in datasets])
    for dataset, wanted in zip(datasets, np.split(missing, ends[:-1]), strict=True):
        yield from dataset.where(np.flatnonzero(wanted))


def _shard(prepared: pa.Table, given: _Given, rows: NDArray[np.int64]) -> pa.Table:
    """Prepared rows with their values, given[rows], as a shard. UserError where the numbers of tokens differ."""
    columns: dict[str, Any] = {"row_id": prepared["row_id"]}
    for j, side in enumerate(SIDES):
        tokens = pc.list_value_length(prepared[f"{side}_ids"]).to_numpy()
        said = given.tokens[rows, j]
        for i in np.flatnonzero((said != _UNKNOWN) & (said != tokens))[:1]:
            raise UserError(
                f"{given.file} row {rows[i] + 1}: ref_{side}_logps is over {said[i]} tokens, but the {side} completion "
                f"has {tokens[i]}; the values come from another tokenizer, template or truncation."
            )
        columns[f"{side}_logps"] = given.sums[rows, j]
        columns[f"{side}_tokens"] = tokens
        columns[f"{side}_token_logps"] = pa.nulls(len(rows), SCHEMA.field(f"{side}_token_logps").type)
    return pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA)


def _read(run: RunFile, file: str) -> _Given:
    ids, sums, tokens = bytearray(), array("f"), array("i")
    identify = _Identify(run)
    for number, raw in enumerate(raw_rows(file, identify.fields_to_read), start=1):
        place = f"{file} row {number}"
        ids += identify(raw, place)
        for side in SIDES:
            total, count = _value(raw, side, place)
            sums.append(total)
            tokens.append(count)
    rows = len(ids) // 16
    if not rows:
        raise UserError(f"{file} holds no rows; give a file with rows.")
    return _Given(
        file,
        pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), rows, [None, pa.py_buffer(bytes(ids))]),
        np.asarray(sums, dtype=np.float32).reshape(rows, 2),
        np.asarray(tokens, dtype=np.int32).reshape(rows, 2),
    )


class _Identify:
    """From a raw row to its row id, as prepare would give it."""

    def __init__(self, run: RunFile) -> None:
        data = run.data
        self._fields = pair_fields(data.columns.prompt, data.columns.chosen, data.columns.rejected)
        self._ignore = data.ignore
        self._settings = TokenSettings(data.max_length, data.truncation, append_eos=data.append_eos)
        self._tokenizer: RowTokenizer = load_row_tokenizer(Layout(run).start_model, data.date)

    @property
    def fields_to_read(self) -> list[Field]:
        names = ["row_id", *(f"ref_{side}_{what}" for side in SIDES for what in ("logps", "tokens"))]
        return [*_optional(self._fields), *(Field(name, name, optional=True) for name in names)]

    def __call__(self, raw: dict[str, Any], place: str) -> bytes:
        name = raw.get("row_id")
        if isinstance(name, bytes) and len(name) == 16:
            return name
        pair = canonical_row(raw, self._fields, place, self._ignore)
        try:
            row = tokenize_pair(pair, self._tokenizer, self._settings).row
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
        return row.row_id if row else _NO_ROW


def _optional(fields: tuple[Field, ...]) -> Iterator[Field]:
    return (Field(field.name, field.column, optional=True) for field in fields)


def _value(raw: dict[str, Any], side: str, place: str) -> tuple[float, int]:
    """A sum in nats, and over how many tokens it is, or _UNKNOWN."""
    column = f"ref_{side}_logps"
    value, count = raw.get(column), raw.get(f"ref_{side}_tokens")
    parts: list[Any] = value if isinstance(value, list) else [value]
    if not parts or not all(type(part) in (int, float) and math.isfinite(part) for part in parts):
        raise UserError(
            f"{place}: {column} is {value!r}; it must be a finite number, or a list with one for every token. Mend the "
            "row or remove it: `raydpo precompute` scores what is missing."
        )
    if isinstance(value, list):
        count = len(value)
    return math.fsum(parts), _UNKNOWN if count is None else int(count)
