"""Input files → canonical rows, streaming: .jsonl, .jsonl.gz and .parquet, on any filesystem pyarrow reaches.

A canonical row maps a field's name to what stands there. A prompt or a completion is a value whose type says what it
is: text (str), chat messages (a list of {"role", "content"}) or token ids (a list of int, from the columns prompt_ids,
chosen_ids, ...; they win over text). The forms of a row:

    pairs      {"prompt", "chosen", "rejected"}, and "margin" where there is one: a float
    unpaired   {"prompt", "completion", "label"}: a bool
    ranked     {"prompt", "completions", "ranks"}: a list of values, and as many ints; 0 is the best
    sft        {"prompt", "completion"}

All but the last have "source" where the run file names its column: a str.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from raydpo.data.annotations import flag, name, number, numbers, ranks_of, whole_numbers
from raydpo.data.jsonlines import json_rows
from raydpo.data.meaning import meaning, refuse_lost_columns
from raydpo.data.messages import Value, check_completion, check_prompt_is_not_repeated, short, text_or_messages
from raydpo.data.paths import filesystem_of
from raydpo.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Kind = Literal["sft", "pair", "unpaired", "ranked"]
"""What the rows of a data set are."""

Holds = Literal["text", "texts", "flag", "number", "ranks", "scores", "name"]
Row = dict[str, Any]

# A parquet file of a few hundred bytes can expand to gigabytes: read few rows at a time, and look at their size.
PARQUET_BATCH_ROWS = 64
MAX_BATCH_BYTES = 1 << 28


@dataclass(frozen=True)
class Field:
    """A canonical name and the column that holds it; only a prompt may be empty."""

    name: str
    column: str
    optional: bool = False  # the column may be absent
    nullable: bool = False  # a value may be null, which is an empty text
    holds: Holds = "text"

    @property
    def ids_column(self) -> str:
        """Where exact token ids stand, if there are any."""
        return f"{self.name}_ids"


@dataclass(frozen=True)
class RowFormat:
    """What a row of some files is."""

    name: str  # the run file's
    kind: Kind
    fields: tuple[Field, ...]

    @property
    def columns(self) -> list[str]:
        """What such rows say of every completion beside its tokens, see raydpo.data.shards."""
        holds = {field.holds for field in self.fields}
        names = {"ranks": "rank", "flag": "label", "number": "margin"}
        return [name for what, name in names.items() if what in holds]


@dataclass(frozen=True)
class Chunk:
    """Consecutive canonical rows of one file; first_row counts from 1."""

    path: str
    first_row: int
    rows: list[Row]


def pair_fields(
    prompt: str = "prompt",
    chosen: str = "chosen",
    rejected: str = "rejected",
    margin: str | None = None,
    source: str | None = None,
) -> tuple[Field, ...]:
    """The fields of a preference pair; arguments are column names."""
    fields = Field("prompt", prompt), Field("chosen", chosen), Field("rejected", rejected)
    margins = (Field("margin", margin, holds="number"),) if margin else ()
    return (*fields, *margins, *_source_field(source))


def unpaired_fields(
    prompt: str = "prompt", completion: str = "completion", label: str = "label", source: str | None = None
) -> tuple[Field, ...]:
    """The fields of a completion that is wanted or not; arguments are column names."""
    fields = Field("prompt", prompt), Field("completion", completion), Field("label", label, holds="flag")
    return (*fields, *_source_field(source))


def ranked_fields(
    prompt: str = "prompt",
    completions: str = "completions",
    ranks: str = "ranks",
    scores: str = "scores",
    source: str | None = None,
) -> tuple[Field, ...]:
    """The fields of several completions in order; arguments are column names. Of the last two, one is enough."""
    return (
        Field("prompt", prompt),
        Field("completions", completions, holds="texts"),
        Field("ranks", ranks, optional=True, holds="ranks"),
        Field("scores", scores, optional=True, holds="scores"),
        *_source_field(source),
    )


def _source_field(column: str | None) -> tuple[Field, ...]:
    return (Field("source", column, holds="name"),) if column else ()


def sft_fields(prompt: str = "prompt", completion: str = "completion") -> tuple[Field, ...]:
    """The fields of a supervised row; arguments are column names. The column "prompt" may be absent."""
    return Field("prompt", prompt, optional=prompt == "prompt", nullable=True), Field("completion", completion)


def prompt_fields(prompt: str = "prompt") -> tuple[Field, ...]:
    """The field of a prompt without completions; the argument is its column's name."""
    return (Field("prompt", prompt),)


def row_format(name: str, columns: Mapping[str, Any] = MappingProxyType({})) -> RowFormat:
    """A format by the run file's name for it; columns: names of the columns of its fields, where they are others."""
    match name:
        case "pairs":
            return RowFormat(name, "pair", pair_fields(**columns))
        case "unpaired":
            return RowFormat(name, "unpaired", unpaired_fields(**columns))
        case "ranked":
            return RowFormat(name, "ranked", ranked_fields(**columns))
    raise ValueError(f"{name!r} is no format of rows")


def read_chunks(
    path: str, fields: Sequence[Field], rows_per_chunk: int, ignore: Collection[str] = ()
) -> Iterator[Chunk]:
    """Canonical rows of one file in chunks of rows_per_chunk, the last one shorter; memory is that of one chunk.

    A file without rows has no chunks; whether that is a mistake depends on the other files.
    ignore: columns and keys of messages that are left out knowingly; others that have a meaning are refused.
    Raises UserError naming file, row, value and remedy at the first thing that is wrong.
    """
    rows = enumerate(raw_rows(path, fields), start=1)
    canonical = (canonical_row(raw, fields, f"{path} row {number}", ignore) for number, raw in rows)
    first_row = 1
    while chunk := list(islice(canonical, rows_per_chunk)):
        yield Chunk(path, first_row, chunk)
        first_row += len(chunk)


def raw_rows(path: str, fields: Sequence[Field]) -> Iterator[dict[str, Any]]:
    """Rows of one file as they stand, unchecked; of a parquet file only columns of the fields or with a meaning.

    Raises UserError where the file cannot be read, or a parquet file lacks a column that is not optional.
    """
    if _size(path) == 0:
        return iter(())
    return _parquet_rows(path, fields) if path.endswith(".parquet") else json_rows(path)


def canonical_row(raw: dict[str, Any], fields: Sequence[Field], place: str, ignore: Collection[str] = ()) -> Row:
    """One raw row, checked. UserError that begins with `place` at the first thing that is wrong."""
    row: Row = {}
    for field in fields:
        _require_column(field, list(raw), place)
        row[field.name] = _READ[field.holds](field, raw, place, ignore)
    # Ranks and scores are two ways to say one order; from here on there are ranks alone.
    if "completions" in row:
        row["ranks"] = ranks_of(len(row["completions"]), row["ranks"], row.pop("scores"), place)
    read = {column for field in fields for column in (field.column, field.ids_column)}
    refuse_lost_columns(raw, read, {field.name for field in fields}, ignore, place)
    _check_completions(row, fields, place)
    return row


def _text(field: Field, raw: dict[str, Any], place: str, ignore: Collection[str]) -> Value:
    ids = raw.get(field.ids_column)
    value = raw.get(field.column)
    if ids is not None:
        return _ids(ids, f"{place}, column {field.ids_column!r},")
    if value is None and (field.optional or field.nullable):
        return ""
    where = f"{place}, column {field.column!r},"
    return text_or_messages(value, where, may_be_empty=field.name == "prompt", ignore=ignore)


def _texts(field: Field, raw: dict[str, Any], place: str, ignore: Collection[str]) -> list[Value]:
    exact = raw.get(field.ids_column) is not None
    column = field.ids_column if exact else field.column
    values = raw.get(column)
    where = f"{place}, column {column!r},"
    if not isinstance(values, list) or not values:
        raise UserError(f"{where} is {short(values)}; give a list of completions, or remove the row.")
    numbered = [(value, f"{where} completion {i},") for i, value in enumerate(values, start=1)]
    if exact:
        return [_ids(value, at) for value, at in numbered]
    return [text_or_messages(value, at, may_be_empty=False, ignore=ignore) for value, at in numbered]


def _annotation(check: Callable[[Any, str], Any]) -> Callable[[Field, dict[str, Any], str, Collection[str]], Any]:
    def read(field: Field, raw: dict[str, Any], place: str, _: Collection[str]) -> Any:
        value = raw.get(field.column)
        return None if value is None and field.optional else check(value, f"{place}, column {field.column!r},")

    return read


_READ: Mapping[Holds, Callable[[Field, dict[str, Any], str, Collection[str]], Any]] = {
    "text": _text,
    "texts": _texts,
    "flag": _annotation(flag),
    "number": _annotation(number),
    "ranks": _annotation(whole_numbers),
    "scores": _annotation(numbers),
    "name": _annotation(name),
}


def _check_completions(row: Row, fields: Sequence[Field], place: str) -> None:
    completions: list[tuple[Value, str]] = []
    for field in fields:
        if field.holds == "texts":
            at = f"{place}, column {field.column!r}, completion"
            completions += [(value, f"{at} {i},") for i, value in enumerate(row[field.name], start=1)]
        elif field.holds == "text" and field.name != "prompt":
            completions.append((row[field.name], f"{place}, column {field.column!r},"))
    if not completions:
        return
    for value, at in completions:
        check_completion(row["prompt"], value, at)
    check_prompt_is_not_repeated(row["prompt"], [value for value, _ in completions], place)


def check_files(
    paths: Sequence[str], fields: Sequence[Field], ignore: Collection[str] = (), rows: int = 8
) -> list[str]:
    """Read the files' first rows and raise what read_chunks raises: seconds, before any model loads.

    Returns the files without rows, which are no mistake as long as another one has some. UserError where none has.
    """
    empty = [path for path in paths if next(read_chunks(path, fields, rows, ignore), None) is None]
    if paths and len(empty) == len(paths):
        raise UserError(f"{', '.join(empty[:3])} holds no rows; give a file with rows, or leave it out.")
    return empty


def is_ids(value: Value) -> TypeIs[list[int]]:
    """Whether a canonical value is token ids."""
    return not isinstance(value, str) and not (value and isinstance(value[0], dict))


def _size(path: str) -> int | None:
    filesystem, inner = filesystem_of(path)
    try:
        size: int | None = filesystem.get_file_info(inner).size
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); check the path and its permissions.") from error
    return size


def _parquet_rows(path: str, fields: Sequence[Field]) -> Iterator[dict[str, Any]]:
    filesystem, inner = filesystem_of(path)
    try:
        with filesystem.open_input_file(inner) as stream, pq.ParquetFile(stream) as file:
            there = file.schema_arrow.names
            for field in fields:
                _require_column(field, there, path)
            wanted = {column for field in fields for column in (field.column, field.ids_column)}
            names = {field.name for field in fields}
            # Columns with a meaning are read although no field asks for them, so that losing them is refused.
            columns = [name for name in there if name in wanted or meaning(name, names)]
            read = 0
            for batch in file.iter_batches(PARQUET_BATCH_ROWS, columns=columns):
                if batch.nbytes > MAX_BATCH_BYTES:
                    raise UserError(
                        f"{path}: {batch.num_rows} rows expand to {batch.nbytes >> 20} MiB, over the "
                        f"{MAX_BATCH_BYTES >> 20} MiB that are allowed; shorten the rows."
                    )
                yield from batch.to_pylist()
                read += batch.num_rows
            # A reader that stops early must not look like a short file.
            if read != file.metadata.num_rows:
                raise UserError(
                    f"{path} says that it has {file.metadata.num_rows} rows and gives {read}; write it anew."
                )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as parquet ({error}); is it whole?") from error


def _require_column(field: Field, there: Sequence[str], place: str) -> None:
    if not field.optional and field.column not in there and field.ids_column not in there:
        raise UserError(
            f"{place} has no column {field.column!r} for {field.name}; its columns are {', '.join(sorted(there))}; "
            "name the right one in the run file, or say in data.format what a row is."
        )


def _ids(value: Any, place: str) -> list[int]:
    # Not isinstance, for which true is the number 1.
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise UserError(f"{place} is {short(value)}; give a list of whole numbers, or leave the column out.")
    return value
