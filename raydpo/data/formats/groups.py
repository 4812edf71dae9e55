"""Answers to one prompt that stand in a list of objects, with what says how good each is.

Ties: answers of equal rank, or equal score, stay in their group and are no pair; see raydpo.data.ranked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raydpo.data.messages import short
from raydpo.errors import UserError

Group = Sequence[dict[str, Any]]


def texts_in(group: Group, key: str, place: str) -> list[Any]:
    """The answer of every object. UserError for one that has none."""
    return [_value(each, (key,), f"{place}, answer {i},") for i, each in enumerate(group, start=1)]


def ranks_in(group: Group, key: str, place: str) -> list[Any]:
    """The rank of every object, 1.0 as 1. UserError for one that has none."""
    values = [_value(each, (key,), f"{place}, answer {i},") for i, each in enumerate(group, start=1)]
    return [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]


def scores_in(group: Group, keys: Sequence[str], place: str) -> list[Any]:
    """The score of every object, from the first of the keys that it has. UserError for one that has none."""
    return [_value(each, keys, f"{place}, answer {i},") for i, each in enumerate(group, start=1)]


def _value(each: dict[str, Any], keys: Sequence[str], place: str) -> Any:
    for key in keys:
        if each.get(key) is not None:
            return each[key]
    raise UserError(f"{place} has no {' or '.join(map(repr, keys))}: {short(each)}; mend the row, or remove it.")
