"""Laws of packing: what lies where, and what each predicting position has seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.data.pack import Pack, pack_rows
from raydpo.data.tokens import TokenRow
from tests.models import make_row

pytestmark = pytest.mark.unit

TOKENS = st.lists(st.integers(0, 999), min_size=1, max_size=6)


@st.composite
def lists_of_rows(draw: st.DrawFn) -> list[TokenRow]:
    """Rows of one to four completions, each of its own number."""
    row = st.builds(lambda parts: make_row(*parts), st.lists(TOKENS, min_size=2, max_size=5))
    return draw(st.lists(row, min_size=1, max_size=5))


def test_the_worked_example() -> None:
    pack = pack_rows([make_row([10, 11, 12], [20, 21], [30, 31, 32])])
    assert pack.input_ids.tolist() == [10, 11, 12, 20, 21, 30, 31, 32]
    assert pack.position_ids.tolist() == [0, 1, 2, 3, 4, 3, 4, 5]
    assert pack.bounds == ((0, 3, 5, 8),)
    assert pack.target.tolist() == [20, 21, 30, 31, 32]
    assert pack.source.tolist() == [2, 3, 2, 5, 6]
    assert pack.owner.tolist() == [0, 0, 1, 1, 1]
    assert pack.completion_row.tolist() == [0, 0]


def test_a_second_row_starts_behind_the_first_and_counts_its_positions_anew() -> None:
    pack = pack_rows([make_row([10], [20, 21]), make_row([11, 12], [22])])
    assert pack.input_ids.tolist() == [10, 20, 21, 11, 12, 22]
    assert pack.position_ids.tolist() == [0, 1, 2, 0, 1, 2]
    assert pack.bounds == ((0, 1, 3), (3, 5, 6))
    assert pack.source.tolist() == [0, 1, 4]
    assert pack.owner.tolist() == [0, 0, 1]
    assert pack.completion_row.tolist() == [0, 1]


@given(lists_of_rows())
def test_the_targets_are_the_completions_in_order(rows: list[TokenRow]) -> None:
    pack = pack_rows(rows)
    assert pack.target.tolist() == [token for row in rows for completion in row.completions for token in completion]


@given(lists_of_rows())
def test_every_prompt_is_laid_once_with_its_completions_behind_it(rows: list[TokenRow]) -> None:
    pack = pack_rows(rows)
    assert pack.num_rows == len(rows)
    assert [bounds[0] for bounds in pack.bounds] == [0, *(bounds[-1] for bounds in pack.bounds[:-1])]
    assert len(pack.input_ids) == len(pack.position_ids) == pack.bounds[-1][-1]
    for row, bounds in zip(rows, pack.bounds, strict=True):
        pieces = np.split(pack.input_ids[: bounds[-1]], bounds[:-1])[1:]
        assert [piece.tolist() for piece in pieces] == [row.prompt_ids, *row.completions]


@given(lists_of_rows())
def test_a_predicting_position_has_seen_the_prompt_and_its_own_completion_so_far(rows: list[TokenRow]) -> None:
    pack = pack_rows(rows)
    targets = (
        (i, j, row.prompt_ids + completion[:t])
        for i, row in enumerate(rows)
        for j, completion in enumerate(row.completions)
        for t in range(len(completion))
    )
    for m, (i, j, context) in enumerate(targets):
        assert pack.owner[m] == sum(len(row.completions) for row in rows[:i]) + j
        assert pack.completion_row[pack.owner[m]] == i
        seen = _seen_by(pack, i, int(pack.source[m]))
        assert pack.input_ids[seen].tolist() == context
        assert pack.position_ids[seen].tolist() == list(range(len(context)))


@given(lists_of_rows())
def test_the_lengths_are_those_of_the_completions(rows: list[TokenRow]) -> None:
    expected = [len(completion) for row in rows for completion in row.completions]
    assert pack_rows(rows).lengths.tolist() == expected


@pytest.mark.parametrize(
    "rows",
    [[make_row([], [1])], [make_row([1], [])], [make_row([1])]],
    ids=["empty prompt", "empty completion", "no completion"],
)
def test_rows_that_ingest_would_never_make_are_refused(rows: list[TokenRow]) -> None:
    with pytest.raises(AssertionError):
        pack_rows(rows)


def _seen_by(pack: Pack, row: int, position: int) -> list[int]:
    """Packed positions that the segment rule shows to one position: the prompt's and its own segment's, up to it."""
    prompt, first, *_ = starts = pack.bounds[row]
    segment = max(start for start in starts if start <= position)
    return [*range(prompt, min(first, position + 1)), *(range(segment, position + 1) if segment >= first else ())]
