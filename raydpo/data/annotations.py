"""What a row says beside its texts: labels, margins, ranks and scores of its completions, its source; checked."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

from raydpo.data.messages import short
from raydpo.errors import UserError


def flag(value: Any, place: str) -> bool:
    """A label. UserError for everything but true and false: what 0, 1 and "yes" mean differs from place to place."""
    if not isinstance(value, bool):
        raise UserError(f"{place} is {short(value)}; write true for a completion that is wanted, false for others.")
    return value


def name(value: Any, place: str) -> str:
    """A source. UserError for everything but a text with letters in it."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place} is {short(value)}; write where the row comes from, or remove the row.")
    return value


def number(value: Any, place: str) -> float:
    """A finite number. UserError for everything else."""
    if not _is_number(value):
        raise UserError(f"{place} is {short(value)}; write a finite number, or remove the row.")
    return float(value)


def whole_numbers(value: Any, place: str) -> list[int]:
    """Ranks. UserError for everything but a list of whole numbers."""
    # Not isinstance, for which true is the number 1.
    if not isinstance(value, list) or not all(type(each) is int for each in value):
        raise UserError(f"{place} is {short(value)}; write a list of whole numbers: 1 for the best completion.")
    return value


def numbers(value: Any, place: str) -> list[float]:
    """Scores. UserError for everything but a list of finite numbers."""
    if not isinstance(value, list) or not all(_is_number(each) for each in value):
        raise UserError(f"{place} is {short(value)}; write a list of finite numbers, or remove the row.")
    return [float(each) for each in value]


def ranks_of(completions: int, ranks: list[int] | None, scores: list[float] | None, place: str) -> list[int]:
    """The rank of every completion of a row: 0, 1, ... without gaps; 0 is the best, equal ones are ties.

    ranks: the lower the better; scores: the higher the better. One of them is enough. Raises UserError where there is
    nothing to compare, where the numbers are not one a completion, and where ranks and scores say the opposite.
    """
    if completions < 2:
        raise UserError(
            f"{place} has one completion, which is better than none; give two or more, or remove the row. Rows of one "
            "completion that is wanted or not are data.format: unpaired."
        )
    for name, values in (("ranks", ranks), ("scores", scores)):
        if values is not None and len(values) != completions:
            raise UserError(f"{place} has {completions} completions and {len(values)} {name}; give one a completion.")
    if ranks is None:
        if scores is None:
            raise UserError(f"{place} has neither ranks nor scores; give one number a completion, or remove the row.")
        return dense([-score for score in scores])
    if scores is not None:
        _refuse_contradiction(ranks, scores, place)
    return dense(ranks)


def dense(keys: list[int] | list[float]) -> list[int]:
    """The place of every key among the different ones: 3, 1, 3, 7 become 1, 0, 1, 2."""
    places = {key: place for place, key in enumerate(sorted(set(keys)))}
    return [places[key] for key in keys]


def _refuse_contradiction(ranks: list[int], scores: list[float], place: str) -> None:
    """Raise UserError where a better rank has the lower score: most likely the ranks count from the worst."""
    for i, j in permutations(range(len(ranks)), 2):
        if ranks[i] < ranks[j] and scores[i] < scores[j]:
            raise UserError(
                f"{place}: by its rank, {ranks[i]} against {ranks[j]}, completion {i + 1} is better than completion "
                f"{j + 1}, and by its score, {scores[i]:g} against {scores[j]:g}, it is worse. Rank 1 is the best and "
                "the highest score; mend the row, or leave one of the columns out."
            )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
