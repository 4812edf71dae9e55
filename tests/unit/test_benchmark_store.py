"""Laws of the figures in benchmarks/store.py."""

from __future__ import annotations

import pytest

from benchmarks.store import Stint, idle_share, tokens_per_second

pytestmark = pytest.mark.unit


def test_time_not_spent_scoring_is_that_between_the_units_of_each_scorer() -> None:
    """The first scorer rests 1 s of 10, the second, which began late and ended early, 1 s of 5."""
    stints = [Stint(1, 0, 4, 8), Stint(1, 5, 10, 10), Stint(2, 3, 5, 4), Stint(2, 6, 8, 4)]
    assert idle_share(stints) == pytest.approx(2 / 15)
    assert tokens_per_second(stints) == pytest.approx(26 / 10)


def test_a_scorer_that_never_waits_spends_all_its_time_scoring() -> None:
    assert idle_share([Stint(1, 0, 4, 1), Stint(1, 4, 9, 1)]) == 0
