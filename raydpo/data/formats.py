"""Input files → canonical rows, streaming: .jsonl, .jsonl.gz and .parquet, on any filesystem pyarrow reaches.

A canonical row maps a field's name to a value, and a value's type says what it is: text (str), chat messages (a list
of {"role", "content"}) or token ids (a list of int, from the columns prompt_ids, chosen_ids, ...; they win over text).
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raydpo.config.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Messages = list[dict[str, str]]
Value = str | list[int] | Messages
Row = dict[str, Value]

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
MAX_LINE_BYTES = 1 << 24
# A parquet file of a few hundred bytes can expand to gigabytes: read few rows at a time, and look at their size.
PARQUET_BATCH_ROWS = 64
MAX_BATCH_BYTES = 1 << 28


@dataclass(frozen=True)
class Field:
    """A canonical name and the column that holds it; only a prompt may be empty, and only an optional one absent."""

    name: str
    column: str
    optional: bool = False

    @property
    def ids_column(self) -> str:
        """Where exact token ids stand, if there are any."""
        return f"{self.name}_ids"


@dataclass(frozen=True)
class Chunk:
    """Consecutive canonical rows of one file; first_row counts from 1."""

    path: str
    first_row: int
    rows: list[Row]


def pair_fields(prompt: str = "prompt", chosen: str = "chosen", rejected: str = "rejected") -> tuple[Field, ...]:
    """The fields of a preference pair; arguments are column names."""
    return Field("prompt", prompt), Field("chosen", chosen), Field("rejected", rejected)


def sft_fields(prompt: str = "prompt", completion: str = "completion") -> tuple[Field, ...]:
    """The fields of a supervised row; arguments are column names."""
    return Field("prompt", prompt, optional=True), Field("completion", completion)


def prompt_fields(prompt: str = "prompt") -> tuple[Field, ...]:
    """The field of a prompt without completions; the argument is its column's name."""
    return (Field("prompt", prompt),)


def expand_paths(patterns: Sequence[str]) -> list[str]:
    """Absolute paths (or URIs) of the files that the patterns name, sorted, each once. `*` stays within a folder.

    Raises UserError for a pattern without a match, an unknown suffix, a directory, or a file without bytes.
    """
    return sorted({path for pattern in patterns for path in _expand(pattern)})


def read_chunks(path: str, fields: Sequence[Field], rows_per_chunk: int) -> Iterator[Chunk]:
    """Canonical rows of one file in chunks of rows_per_chunk, the last one shorter; memory is that of one chunk.

    Raises UserError naming file, row, value and remedy at the first thing that is wrong.
    """
    rows = enumerate(raw_rows(path, fields), start=1)
    canonical = (canonical_row(raw, fields, f"{path} row {number}") for number, raw in rows)
    first_row = 1
    while chunk := list(islice(canonical, rows_per_chunk)):
        yield Chunk(path, first_row, chunk)
        first_row += len(chunk)
    if first_row == 1:
        raise UserError(f"{path} holds no rows; give a file with rows, or leave it out.")


def raw_rows(path: str, fields: Sequence[Field]) -> Iterator[dict[str, Any]]:
    """Rows of one file as they stand, unchecked; of a parquet file only the columns of the fields.

    Raises UserError where the file cannot be read, or a parquet file lacks a column that is not optional.
    """
    return _parquet_rows(path, fields) if path.endswith(".parquet") else _json_rows(path)


def canonical_row(raw: dict[str, Any], fields: Sequence[Field], place: str) -> Row:
    """One raw row, checked. UserError that begins with `place` at the first thing that is wrong."""
    row: Row = {}
    for field in fields:
        _require_column(field, list(raw), place)
        ids, value = raw.get(field.ids_column), raw.get(field.column)
        if ids is not None:
            row[field.name] = _ids(ids, f"{place}, column {field.ids_column!r},")
        elif value is None and field.optional:
            row[field.name] = ""
        else:
            row[field.name] = _text_or_messages(value, field, f"{place}, column {field.column!r},")
    return row


def check_first_rows(path: str, fields: Sequence[Field], rows: int = 8) -> None:
    """Read a file's first rows and raise what read_chunks raises: seconds, before any model loads."""
    next(read_chunks(path, fields, rows))


def is_ids(value: Value) -> TypeIs[list[int]]:
    """Whether a canonical value is token ids."""
    return not isinstance(value, str) and not (value and isinstance(value[0], dict))


def _filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    if "://" not in path:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))
    try:
        filesystem, inner = pafs.FileSystem.from_uri(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be reached ({error}); check the address and the credentials.") from error
    return filesystem, inner


def _expand(pattern: str) -> list[str]:
    filesystem, path = _filesystem(pattern)
    try:
        found = filesystem.get_file_info(_selector(path)) if "*" in path else [filesystem.get_file_info(path)]
    except OSError as error:
        raise UserError(f"{pattern} cannot be read ({error}); check the path and its permissions.") from error
    files = [info for info in found if info.is_file and _matches(info.path, path)]
    if not files:
        is_folder = any(info.path == path and info.type == pafs.FileType.Directory for info in found)
        remedy = f"it is a folder: give {pattern}/*.jsonl" if is_folder else "check the path in the run file"
        raise UserError(f"{pattern} matches no file; {remedy}.")
    for info in files:
        if not info.path.endswith(SUFFIXES):
            raise UserError(f"{info.path} is none of {', '.join(SUFFIXES)}; convert it, or narrow the pattern.")
        if info.size == 0:
            raise UserError(f"{info.path} is empty; give a file with rows, or leave it out.")
    return [pattern.replace(path, info.path) if "://" in pattern else info.path for info in files]


def _selector(path: str) -> pafs.FileSelector:
    parts = path.split("/")
    fixed = next(i for i, part in enumerate(parts) if "*" in part)
    return pafs.FileSelector("/".join(parts[:fixed]) or "/", recursive=len(parts) - fixed > 1, allow_not_found=True)


def _matches(path: str, pattern: str) -> bool:
    parts, patterns = path.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(
        fnmatchcase(part, wanted) and part.startswith(".") <= wanted.startswith(".")
        for part, wanted in zip(parts, patterns, strict=True)
    )


def _json_rows(path: str) -> Iterator[dict[str, Any]]:
    filesystem, inner = _filesystem(path)
    blank = 0
    try:
        with io.BufferedReader(filesystem.open_input_stream(inner)) as stream:
            number = 0
            while line := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                if blank and line.strip():
                    raise UserError(f"{path} row {blank} is blank; remove the line.")
                if line.strip():
                    yield _json_object(line, f"{path} row {number}")
                else:
                    blank = blank or number  # fine at the end of a file
    except (OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}); is it whole, and what its suffix says?") from error


def _json_object(line: bytes, place: str) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise UserError(f"{place} is longer than {MAX_LINE_BYTES >> 20} MiB; is it one JSON object a line?")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON ({error}): {_short(line)}; write one JSON object a line.") from error
    if not isinstance(value, dict):
        raise UserError(f"{place} is {_short(value)}, not a JSON object; write one JSON object a line.")
    return value


def _parquet_rows(path: str, fields: Sequence[Field]) -> Iterator[dict[str, Any]]:
    filesystem, inner = _filesystem(path)
    try:
        with filesystem.open_input_file(inner) as stream, pq.ParquetFile(stream) as file:
            there = file.schema_arrow.names
            for field in fields:
                _require_column(field, there, path)
            columns = [name for field in fields for name in (field.column, field.ids_column) if name in there]
            for batch in file.iter_batches(PARQUET_BATCH_ROWS, columns=columns):
                if batch.nbytes > MAX_BATCH_BYTES:
                    raise UserError(
                        f"{path}: {batch.num_rows} rows expand to {batch.nbytes >> 20} MiB, over the "
                        f"{MAX_BATCH_BYTES >> 20} MiB that are allowed; shorten the rows."
                    )
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as parquet ({error}); is it whole?") from error


def _require_column(field: Field, there: Sequence[str], place: str) -> None:
    if not field.optional and field.column not in there and field.ids_column not in there:
        raise UserError(
            f"{place} has no column {field.column!r} for {field.name}; its columns are {', '.join(sorted(there))}; "
            "name the right one in the run file."
        )


def _ids(value: Any, place: str) -> list[int]:
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise UserError(f"{place} is {_short(value)}; give a list of whole numbers, or leave the column out.")
    return value


def _text_or_messages(value: Any, field: Field, place: str) -> Value:
    if isinstance(value, list) and value:
        return [_message(message, place) for message in value]
    if not isinstance(value, str) or (not value and field.name != "prompt"):
        raise UserError(f"{place} is {_short(value)}; give text or chat messages, or remove the row.")
    return _unicode(value, place)


def _message(message: Any, place: str) -> dict[str, str]:
    """Role and content alone; whatever else a row carries, the template would not know what to make of it."""
    role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
    if not isinstance(role, str) or not isinstance(content, str):
        raise UserError(f'{place} holds {_short(message)}; a chat message is {{"role": text, "content": text}}.')
    return {"role": role, "content": _unicode(content, place)}


def _unicode(text: str, place: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError(f"{place} holds half a surrogate pair: {_short(text)}; write the text as valid Unicode.")
    return text


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
