"""Texts beside prompts: a preferred answer in a column of the prompts' files, and labels that people gave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, cast

from raydpo.data.messages import CONTENT, Value, short
from raydpo.data.paths import expand_paths
from raydpo.data.reading import raw_rows, read_chunks
from raydpo.data.rows import Field
from raydpo.errors import UserError

Label = Literal["first", "second", "tie"]
_LABELS = ("first", "second", "tie")


@dataclass(frozen=True)
class LabelledPair:
    """Two completions of a prompt, and which of them somebody prefers."""

    prompt: str
    first: str
    second: str
    label: Label


def read_answers(
    patterns: Sequence[str], prompt: str, answer: str, *, limit: int | None, ignore: Sequence[str] = ()
) -> list[str]:
    """The text of the column `answer` beside each of the first `limit` prompts, in order. UserError names file and row.

    Of chat messages it is the content of the last one.
    """
    fields = (Field("prompt", prompt), Field("completion", answer))
    rows = (
        _text(row["completion"], f"{path} row {number}, column {answer!r},")
        for path in expand_paths(patterns)
        for chunk in read_chunks(path, fields, 256, ignore)
        for number, row in enumerate(chunk.rows, start=chunk.first_row)
    )
    return list(islice(rows, limit))


def read_labels(patterns: Sequence[str]) -> list[LabelledPair]:
    """Rows with the columns prompt, first, second and label. UserError names file, row and value."""
    return [pair for path in expand_paths(patterns) for pair in _labels(path)]


def _labels(path: str) -> Iterator[LabelledPair]:
    fields = [Field(name, name) for name in ("prompt", "first", "second", "label")]
    for number, raw in enumerate(raw_rows(path, fields), start=1):
        place = f"{path} row {number}"
        prompt, first, second = (_plain(raw, name, place) for name in ("prompt", "first", "second"))
        label = raw.get("label")
        if label not in _LABELS:
            raise UserError(f"{place}, column 'label', is {short(label)}; write one of {', '.join(_LABELS)}.")
        yield LabelledPair(prompt, first, second, cast(Label, label))


def _plain(raw: dict[str, Any], name: str, place: str) -> str:
    value = raw.get(name)
    if not isinstance(value, str):
        raise UserError(f"{place}, column {name!r}, is {short(value)}; give text.")
    return value


def _text(value: Value, place: str) -> str:
    if isinstance(value, str):
        return value
    last = value[-1]
    if isinstance(last, dict):
        return last[CONTENT] or ""
    raise UserError(f"{place} holds token ids, which are no text to compare; give text.")
