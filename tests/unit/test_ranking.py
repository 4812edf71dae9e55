"""Pair accuracy on held-out rows of every kind: over their pairs, as the objective compares completions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from raydpo.data.tokens import TokenRow
from raydpo.evaluate.ranking import ranked_pairs
from raydpo.evaluate.records import RankedPair
from raydpo.objective.contract import ScoredRows

pytestmark = pytest.mark.unit


def row_of(prompt: list[int], completions: int, **columns: Any) -> TokenRow:
    return TokenRow(bytes(16), prompt, tuple([1] for _ in range(completions)), columns)


def ranked(rows: list[TokenRow], logps: list[list[float]], ref_logps: list[float] | None = None) -> list[RankedPair]:
    scored = [[np.asarray([value], dtype=np.float32) for value in of_row] for of_row in logps]
    ref = None if ref_logps is None else np.asarray(ref_logps, dtype=np.float32)
    return ranked_pairs(rows, scored, ref, ScoredRows.logps if ref is None else ScoredRows.log_ratios)


def test_every_pair_of_a_ranked_row_counts_and_a_tie_of_ranks_is_none() -> None:
    rows = [row_of([7], 3, rank=[0, 1, 1]), row_of([8], 2, rank=[0, 1])]
    found = ranked(rows, [[-2.0, -1.0, -3.0], [-1.0, -5.0]])
    assert found == [RankedPair((7,), False), RankedPair((7,), True), RankedPair((8,), True)]


def test_a_pair_is_compared_as_the_objective_does_and_a_tie_of_values_is_wrong() -> None:
    rows = [row_of([7], 2), row_of([8], 2)]
    assert ranked(rows, [[-1.0, -2.0], [-3.0, -3.0]]) == [RankedPair((7,), True), RankedPair((8,), False)]
    by_ratio = ranked(rows, [[-1.0, -2.0], [-3.0, -3.0]], [-0.5, -9.0, -4.0, -3.0])
    assert by_ratio == [RankedPair((7,), False), RankedPair((8,), True)]


def test_rows_of_one_completion_have_no_pair() -> None:
    assert ranked([row_of([7], 1, label=[True]), row_of([8], 1, label=[False])], [[-1.0], [-2.0]]) == []
