"""Canonical rows: what a row of any file becomes before it becomes tokens, and how its values are checked.

A canonical row maps a field's name to what stands there. A prompt or a completion is a value whose type says what it
is: text (str), chat messages (a list of {"role", "content"}) or token ids (a list of int, from the columns prompt_ids,
chosen_ids, ...; they win over text). The forms of a row:

    pairs      {"prompt", "chosen", "rejected"}, and "margin" where there is one: a float; without "prompt" both texts
               begin with it, see raydpo.data.implicit
    unpaired   {"prompt", "completion", "label"}: a bool
    ranked     {"prompt", "completions", "ranks"}: a list of values, and as many ints; 0 is the best
    sft        {"prompt", "completion"}

All but the last have "source" where the run file names its column: a str.
Rows of messages may have more for their template: "tools", a list, and "chat_template_kwargs", a dict by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from raydpo.data.annotations import flag, name, number, numbers, ranks_of, whole_numbers
from raydpo.data.context import with_context
from raydpo.data.meaning import refuse_lost_columns
from raydpo.data.messages import Value, check_completion, check_prompt_is_not_repeated, short, text_or_messages
from raydpo.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Kind = Literal["sft", "pair", "unpaired", "ranked"]
"""What the rows of a data set are."""

Holds = Literal["text", "texts", "flag", "number", "ranks", "scores", "name"]
Row = dict[str, Any]
Convert = Callable[[Row, str], tuple[Row, str]]
"""(raw row, where it stands) → (raw row with the columns of the fields, how messages name it). Raises UserError."""


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
    convert: Convert | None = None  # makes a row with these fields of a raw one, where the columns are others

    @property
    def columns(self) -> list[str]:
        """What such rows say of every completion beside its tokens, see raydpo.data.shards."""
        holds = {field.holds for field in self.fields}
        names = {"ranks": "rank", "flag": "label", "number": "margin"}
        return [name for what, name in names.items() if what in holds]


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


def canonical_row(raw: dict[str, Any], fields: Sequence[Field], place: str, ignore: Collection[str] = ()) -> Row:
    """One raw row, checked. UserError that begins with `place` at the first thing that is wrong."""
    row: Row = {}
    for field in fields:
        require_column(field, list(raw), place)
        row[field.name] = _READ[field.holds](field, raw, place, ignore)
    # Ranks and scores are two ways to say one order; from here on there are ranks alone.
    if "completions" in row:
        row["ranks"] = ranks_of(len(row["completions"]), row["ranks"], row.pop("scores"), place)
    read = {column for field in fields for column in (field.column, field.ids_column)}
    read.update(with_context(row, raw, ignore, place))
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
    prompt = row.get("prompt", "")
    for value, at in completions:
        check_completion(prompt, value, at)
    check_prompt_is_not_repeated(prompt, [value for value, _ in completions], place)


def is_ids(value: Value) -> TypeIs[list[int]]:
    """Whether a canonical value is token ids."""
    return not isinstance(value, str) and not (value and isinstance(value[0], dict))


def require_column(field: Field, there: Sequence[str], place: str) -> None:
    """Raise UserError where a field that must be there has no column."""
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
