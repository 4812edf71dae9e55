"""What a format is: how its rows are recognised, and a function from such a row to one of ours.

A format reads some columns and writes those of raydpo.data.rows: prompt, chosen, rejected, margin, completion, label,
completions, ranks, scores, system, tools, chat_template_kwargs. Columns that it does not read it hands on as they are,
so that the one check of raydpo.data.meaning names those that would be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raydpo.data.messages import CONTENT, ROLE, short
from raydpo.data.rows import Kind
from raydpo.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Raw = dict[str, Any]
ASSISTANT = "assistant"
USER = "user"


@dataclass(frozen=True)
class Format:
    """A format of other people's rows.

    matches: whether columns and the first values there are say that rows are of it; convert: (row, where it stands) →
    our row. Both take rows of any content; convert raises UserError for one that is not of the format.
    """

    name: str  # the run file's
    kind: Kind
    columns: str  # what such a row has, in words
    matches: Callable[[Raw], bool]
    convert: Callable[[Raw, str], Raw]


def has(row: Raw, *columns: str) -> bool:
    """Whether a row has values in all of these columns."""
    return all(row.get(column) is not None for column in columns)


def lacks(row: Raw, *columns: str) -> bool:
    """Whether a row has values in none of these columns."""
    return all(row.get(column) is None for column in columns)


def is_text(*values: Any) -> bool:
    """Whether all values are text."""
    return all(isinstance(value, str) for value in values)


def is_dicts(value: Any, *keys: str) -> TypeIs[list[dict[str, Any]]]:
    """Whether a value is a list of objects, not empty, each with these keys."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(each, dict) and has(each, *keys) for each in value)


def is_texts(value: Any) -> bool:
    """Whether a value is a list of texts, not empty."""
    return isinstance(value, list) and bool(value) and is_text(*value)


def take(row: Raw, column: str, place: str) -> Any:
    """Remove a column from a row and return its value. UserError where there is none."""
    value = row.pop(column, None)
    if value is None:
        raise UserError(
            f"{place} has no value in the column {column!r}, which its format needs; mend the row, or name the format "
            "of the rows in data.format."
        )
    return value


def take_dicts(row: Raw, column: str, place: str) -> list[dict[str, Any]]:
    """Remove a column that holds a list of objects. UserError where it holds something else."""
    value = take(row, column, place)
    if not is_dicts(value):
        raise UserError(f"{place}, column {column!r}, is {short(value)}; its format has a list of objects there.")
    return list(value)


def put(row: Raw, place: str, **values: Any) -> Raw:
    """A row with further columns of ours. UserError where it has one of that name, which would be lost."""
    for column in values:
        if row.get(column) is not None:
            raise UserError(
                f"{place} has a column {column!r}, {short(row[column])}, and its format makes one of others; set "
                f"data.ignore: [{column}] to leave it out knowingly, or name another format in data.format."
            )
    return row | values


def said_by(role: str, text: Any) -> list[dict[str, Any]]:
    """A text as the message of somebody. What is no text is checked with the message."""
    return [{ROLE: role, CONTENT: text}]


def answer(text: Any) -> list[dict[str, Any]]:
    """A text as the assistant's answer."""
    return said_by(ASSISTANT, text)


def as_turn(value: Any) -> Any:
    """An answer that is given as text, as one message or as a list of them, as a list of messages."""
    if isinstance(value, str):
        return answer(value)
    return [value] if isinstance(value, dict) else value


def same_prompt(chosen: Sequence[Any], rejected: Sequence[Any], place: str) -> tuple[list[Any], list[Any], list[Any]]:
    """(the turns before the last one, the last one chosen, the last one rejected) of two whole conversations.

    UserError where the turns before differ, since an answer is only better than another one to the same prompt.
    """
    prompt = list(chosen[:-1])
    if prompt != list(rejected[:-1]):
        turns = zip(prompt, rejected[:-1], strict=False)
        at = next((i for i, (one, other) in enumerate(turns, start=1) if one != other), None)
        where = f"from message {at} on" if at else "in their number of messages"
        raise UserError(
            f"{place}: chosen and rejected are whole conversations, and differ {where}, before their last one; an "
            "answer can only be compared with another one to the same prompt. Mend the row, or remove it."
        )
    return prompt, list(chosen[-1:]), list(rejected[-1:])


def asked(row: Raw, text: Any) -> list[Any]:
    """A prompt of one question; the row's system message, which is taken out of it, stands in front."""
    return [*system_of(row), *said_by(USER, text)]


def system_of(row: Raw) -> list[dict[str, Any]]:
    """The row's system message, taken out of it; none where it is empty."""
    text = row.pop("system", None)
    return said_by("system", text) if text else []


def as_flag(value: Any) -> Any:
    """A label that a format writes as 1 and 0; anything else is checked with the row."""
    return bool(value) if type(value) in (int, float) and value in (0, 1) else value


_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_rating", "rejected_rating"),
    ("chosen_avg_rating", "rejected_avg_rating"),
)


def with_margin(row: Raw) -> Raw:
    """A pair whose completions have scores, with the margin that is their difference."""
    for better, worse in _SCORES:
        scores = row.get(better), row.get(worse)
        if all(type(score) in (int, float) for score in scores) and lacks(row, "margin"):
            row.pop(better)
            row.pop(worse)
            row["margin"] = scores[0] - scores[1]  # type: ignore[operator]  # both are numbers
            return row
    return row
