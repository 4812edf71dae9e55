"""How many pairs a row has: every two of its completions of which one is better."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.data.pairs import count_pairs
from raydpo.data.shards import to_table
from raydpo.data.tokens import TokenRow

pytestmark = pytest.mark.unit

RANKS = st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=7), min_size=1, max_size=8)


def row_of(completions: int, **columns: list[int] | list[bool]) -> TokenRow:
    return TokenRow(bytes(16), [1], tuple([2, i] for i in range(completions)), columns)


@given(RANKS)
def test_every_two_completions_of_other_ranks_are_a_pair(ranks: list[list[int]]) -> None:
    table = to_table([row_of(len(of_row), rank=of_row) for of_row in ranks])
    expected = [sum(a != b for a, b in combinations(of_row, 2)) for of_row in ranks]
    assert count_pairs(table, "ranked").tolist() == expected


def test_without_ranks_the_completions_of_a_pair_stand_best_first_and_others_are_not_compared() -> None:
    assert count_pairs(to_table([row_of(2)] * 3), "pair").tolist() == [1, 1, 1]
    assert count_pairs(to_table([row_of(1)] * 3), "sft").tolist() == [0, 0, 0]
    assert count_pairs(to_table([row_of(1, label=[True])] * 3), "unpaired").tolist() == [0, 0, 0]
