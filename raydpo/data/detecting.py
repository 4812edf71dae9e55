"""What the rows of files are, from the first of them: a format by name, or the one that they match."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from raydpo.data.formats import FORMATS, detect, first_values
from raydpo.data.formats.contract import Format, Raw
from raydpo.data.reading import rows_or_errors
from raydpo.data.rows import (
    Field,
    Kind,
    Row,
    RowFormat,
    pair_fields,
    ranked_fields,
    sft_fields,
    unpaired_fields,
)
from raydpo.errors import UserError

Before = Callable[[Row, str], Row]
"""A function of the user's own: (raw row, where it stands) → raw row of some format."""


class Reading:
    """A row of a format as one of ours; where the columns are no longer the file's, messages say what it was read as.

    It travels to the readers.
    """

    def __init__(self, format: Format, before: Before | None = None) -> None:
        """before: what is made of a row first, by a function of the user's own."""
        self._format = format
        self._before = before

    def __call__(self, raw: Row, place: str) -> tuple[Row, str]:
        """Raises UserError for a row that is not of the format."""
        if self._before:
            raw = self._before(raw, place)
        row = self._format.convert(dict(raw), place)
        return row, place if row.keys() <= raw.keys() else f"{place}, read as {self._format.name},"


def rows_of_files(
    paths: Sequence[str], name: str | None, ignore: Collection[str] = (), before: Before | None = None
) -> RowFormat:
    """The rows of files, by the name of their format or, without one, by the first rows of the first that has some.

    Raises UserError where a file cannot be read, or its rows are of no format that is known.
    """
    values, place = first_values_of(paths, ignore, before)
    format = FORMATS[name] if name else detect(values, place)
    return read_as(format, values, place, before)


def first_values_of(
    paths: Sequence[str], ignore: Collection[str] = (), before: Before | None = None
) -> tuple[Raw, str]:
    """The first value of every column, see first_values, and the file that they are from: the first that has rows.

    UserError where none has rows that can be read.
    """
    errors: list[UserError] = []
    for path in paths:
        seen: list[UserError] = []
        if values := first_values(_first(path, before, seen), ignore):
            return values, path
        errors += seen
    if errors:
        raise errors[0]
    raise UserError(f"{', '.join(paths[:3])} holds no rows; give a file with rows, or leave it out.")


def read_as(format: Format, values: Raw, place: str, before: Before | None = None) -> RowFormat:
    """The rows of a format whose first values are these: whether they have margins, and prompts of their own."""
    # A row that cannot be converted is named when all are read; here it only does not tell what there is.
    try:
        found = format.convert(dict(values), place) if values else {}
    except UserError:
        found = {}
    return RowFormat(format.name, format.kind, fields_of(format, found), Reading(format, before))


def fields_of(format: Format, found: Mapping[str, object]) -> tuple[Field, ...]:
    """The fields of the rows that a format gives, if they are as this one."""
    margin = "margin" if "margin" in found else None
    fields: Mapping[Kind, tuple[Field, ...]] = {
        "pair": pair_fields(margin=margin),
        "unpaired": unpaired_fields(),
        "ranked": ranked_fields(),
        "sft": sft_fields(),
    }
    whole_texts = format.name == "implicit" and "prompt" not in found and "chosen" in found
    return fields[format.kind][1:] if whole_texts else fields[format.kind]


def _first(path: str, before: Before | None, errors: list[UserError]) -> Iterator[Raw]:
    """Rows that can be read; what is wrong with the others is named when all are."""
    for number, raw in enumerate(rows_or_errors(path), start=1):
        if isinstance(raw, UserError):
            errors.append(raw)
            continue
        try:
            row = before(raw, f"{path} row {number}") if before else raw
        except UserError as error:
            errors.append(error)
        else:
            yield row
