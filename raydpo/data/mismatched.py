"""Completions of other prompts, which KTO asks for: from them it estimates how far the policy is from the reference.

A row gets one of them, behind its own completions. It is scored as they are, and stands in no pair and in no loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from raydpo.data.tokens import TokenRow, row_id

MISMATCHED = "mismatched"


def with_others(rows: Sequence[TokenRow], max_length: int) -> list[TokenRow]:
    """Every row with the first completion of the next row, in a circle, that has another prompt.

    What goes over max_length tokens together with the prompt is cut off. Rows of a single prompt get nothing; a column
    says of every completion whether it belongs to another prompt.
    """
    return [_with_one(row, _next_of_another_prompt(rows, at), max_length) for at, row in enumerate(rows)]


def _next_of_another_prompt(rows: Sequence[TokenRow], at: int) -> TokenRow | None:
    behind = (rows[(at + ahead) % len(rows)] for ahead in range(1, len(rows)))
    return next((row for row in behind if row.prompt_ids != rows[at].prompt_ids), None)


def _with_one(row: TokenRow, other: TokenRow | None, max_length: int) -> TokenRow:
    own = len(row.completions)
    if other is None:
        return replace(row, columns={**row.columns, MISMATCHED: [False] * own})
    room = max_length - len(row.prompt_ids)
    completions = (*row.completions, other.completions[0][:room])
    columns = {name: [*values, _of_the_other(name, values)] for name, values in row.columns.items()}
    return replace(
        row,
        row_id=row_id(row.prompt_ids, completions),
        completions=completions,
        columns={**columns, MISMATCHED: [False] * own + [True]},
    )


def _of_the_other(column: str, values: Sequence[Any]) -> Any:
    """What a column says of a completion that no loss looks at: a rank of its own, no label, no margin."""
    return {"rank": max(values) + 1, "label": False, "margin": 0.0}[column]
