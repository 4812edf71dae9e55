"""Input files → canonical rows, streaming: .jsonl, .jsonl.gz and .parquet, on any filesystem pyarrow reaches."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydpo.data.bad_rows import BAD
from raydpo.data.jsonlines import json_rows_or_errors
from raydpo.data.meaning import meaning
from raydpo.data.paths import filesystem_of
from raydpo.data.rows import Convert, Field, Row, canonical_row, require_column
from raydpo.errors import UserError

# A parquet file of a few hundred bytes can expand to gigabytes: read few rows at a time, and look at their size.
PARQUET_BATCH_ROWS = 64
MAX_BATCH_BYTES = 1 << 28


@dataclass(frozen=True)
class Chunk:
    """Consecutive canonical rows of one file; first_row counts from 1."""

    path: str
    first_row: int
    rows: list[Row]


def read_chunks(
    path: str,
    fields: Sequence[Field],
    rows_per_chunk: int,
    ignore: Collection[str] = (),
    convert: Convert | None = None,
    *,
    keep_bad: bool = False,
) -> Iterator[Chunk]:
    """Canonical rows of one file in chunks of rows_per_chunk, the last one shorter; memory is that of one chunk.

    A file without rows has no chunks; whether that is a mistake depends on the other files.
    ignore: columns and keys of messages that are left out knowingly; others that have a meaning are refused.
    convert: makes a row with the columns of the fields of a raw one; it does not see what is ignored.
    Raises UserError naming file, row, value and remedy at the first thing that is wrong; with keep_bad only where the
    file cannot be read, and a row that is wrong is {"bad": reason}.
    """
    canonical = _canonical(path, fields, ignore, convert, keep_bad=keep_bad)
    first_row = 1
    while chunk := list(islice(canonical, rows_per_chunk)):
        yield Chunk(path, first_row, chunk)
        first_row += len(chunk)


def _canonical(
    path: str, fields: Sequence[Field], ignore: Collection[str], convert: Convert | None, *, keep_bad: bool
) -> Iterator[Row]:
    for number, raw in enumerate(rows_or_errors(path, None if convert else fields), start=1):
        place = f"{path} row {number}"
        try:
            if isinstance(raw, UserError):
                raise raw
            if convert:
                raw, place = convert({column: raw[column] for column in raw if column not in ignore}, place)
            row = canonical_row(raw, fields, place, ignore)
        except UserError as error:
            if not keep_bad:
                raise
            row = {BAD: str(error)}
        yield row


def raw_rows(path: str, fields: Sequence[Field] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of one file as they stand, unchecked; of a parquet file only columns of the fields or with a meaning.

    Without fields all columns are read.

    Raises UserError where the file cannot be read, or a parquet file lacks a column that is not optional.
    """
    for found in rows_or_errors(path, fields):
        if isinstance(found, UserError):
            raise found
        yield found


def rows_or_errors(path: str, fields: Sequence[Field] | None = None) -> Iterator[dict[str, Any] | UserError]:
    """Rows as raw_rows gives them, and in place of one that cannot be read the error that names it."""
    if _size(path) == 0:
        return iter(())
    return _parquet_rows(path, fields) if path.endswith(".parquet") else json_rows_or_errors(path)


def check_files(
    paths: Sequence[str],
    fields: Sequence[Field],
    ignore: Collection[str] = (),
    convert: Convert | None = None,
    rows: int = 8,
    *,
    keep_bad: bool = False,
) -> list[str]:
    """Read the files' first rows and raise what read_chunks raises: seconds, before any model loads.

    Returns the files without rows, which are no mistake as long as another one has some. UserError where none has.
    """
    empty = [
        path
        for path in paths
        if next(read_chunks(path, fields, rows, ignore, convert, keep_bad=keep_bad), None) is None
    ]
    if paths and len(empty) == len(paths):
        raise UserError(f"{', '.join(empty[:3])} holds no rows; give a file with rows, or leave it out.")
    return empty


def _size(path: str) -> int | None:
    filesystem, inner = filesystem_of(path)
    try:
        size: int | None = filesystem.get_file_info(inner).size
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); check the path and its permissions.") from error
    return size


def _parquet_rows(path: str, fields: Sequence[Field] | None) -> Iterator[dict[str, Any]]:
    filesystem, inner = filesystem_of(path)
    try:
        with filesystem.open_input_file(inner) as stream, pq.ParquetFile(stream) as file:
            there = file.schema_arrow.names
            columns = there if fields is None else _columns(fields, there, path)
            read = 0
            for batch in file.iter_batches(PARQUET_BATCH_ROWS, columns=columns):
                if batch.nbytes > MAX_BATCH_BYTES:
                    raise UserError(
                        f"{path}: {batch.num_rows} rows expand to {batch.nbytes >> 20} MiB, over the "
                        f"{MAX_BATCH_BYTES >> 20} MiB that are allowed; shorten the rows."
                    )
                yield from map(_without_nulls, batch.to_pylist())
                read += batch.num_rows
            # A reader that stops early must not look like a short file.
            if read != file.metadata.num_rows:
                raise UserError(
                    f"{path} says that it has {file.metadata.num_rows} rows and gives {read}; write it anew."
                )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as parquet ({error}); is it whole?") from error


def _columns(fields: Sequence[Field], there: Sequence[str], path: str) -> list[str]:
    """The columns of a file that are read: those of the fields, and those that mean something.

    The latter are read although no field asks for them, so that losing them is refused.
    """
    for field in fields:
        require_column(field, there, path)
    wanted = {column for field in fields for column in (field.column, field.ids_column)}
    names = {field.name for field in fields}
    return [name for name in there if name in wanted or meaning(name, names)]


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose objects have the keys that they were written with: in parquet each has the keys of all others."""
    return {column: _bare(value) for column, value in row.items()}


def _bare(value: Any) -> Any:
    if isinstance(value, list):
        return [_bare(each) for each in value] if value and isinstance(value[0], list | dict) else value
    if isinstance(value, dict):
        return {key: _bare(each) for key, each in value.items() if each is not None}
    return value
