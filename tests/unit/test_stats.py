"""Laws of the statistics: intervals cover what they promise and refuse what has no mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.evaluate.stats import Interval, mean_interval, overlap, paired_difference, share_interval

pytestmark = pytest.mark.unit

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50)


@pytest.mark.parametrize("draw", ["normal", "exponential", "two_points"])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_mean_interval_covers_the_mean_as_often_as_it_says(draw: str, confidence: float) -> None:
    rng = np.random.default_rng(0)
    sets = {
        "normal": rng.normal(0.3, 1.0, (2000, 256)),
        "exponential": rng.exponential(0.3, (2000, 256)),
        "two_points": rng.choice([0.0, 1.0], (2000, 256), p=[0.7, 0.3]),
    }[draw]
    intervals = [mean_interval(values, confidence) for values in sets]
    covered = sum(each.low <= 0.3 <= each.high for each in intervals) / len(intervals)
    assert covered == pytest.approx(confidence, abs=0.025)


@pytest.mark.parametrize("share", [0.5, 0.7, 0.97])
@pytest.mark.parametrize("n", [12, 200])
def test_the_share_interval_covers_the_share_even_near_one(share: float, n: int) -> None:
    trials = np.random.default_rng(0).random((2000, n)) < share
    intervals = [share_interval(hits.tolist()) for hits in trials]
    covered = sum(each.low <= share <= each.high for each in intervals) / len(intervals)
    assert covered >= 0.92


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_a_share_interval_holds_its_mean_and_stays_a_share(hits: list[bool]) -> None:
    interval = share_interval(hits)
    assert 0 <= interval.low <= interval.mean <= interval.high <= 1
    assert interval.low < interval.high


@given(VALUES)
def test_the_mean_lies_inside_its_interval(values: list[float]) -> None:
    interval = mean_interval(values)
    assert interval.low <= interval.mean <= interval.high
    assert interval.mean == pytest.approx(math.fsum(values) / len(values), abs=1e-6)
    assert interval.n == len(values)


def test_a_higher_confidence_gives_a_wider_interval() -> None:
    narrow, wide = mean_interval([0.0, 1.0, 2.0], 0.8), mean_interval([0.0, 1.0, 2.0], 0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_pairing_is_sharper_when_prompts_differ_more_than_models() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(0, 1, 200).tolist()
    after = [value + 0.1 + rng.normal(0, 0.05) for value in before]
    assert overlap(mean_interval(before), mean_interval(after))
    assert paired_difference(before, after).low > 0


@given(VALUES)
def test_the_difference_of_a_model_to_itself_is_exactly_zero(values: list[float]) -> None:
    assert paired_difference(values, values) == Interval(0, 0, 0, len(values))


def test_values_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="2 values before and 3 after"):
        paired_difference([0.0, 1.0], [0.0, 1.0, 2.0])


@given(VALUES, st.sampled_from([math.nan, math.inf, -math.inf]), st.data())
def test_a_value_that_is_not_finite_is_refused_by_its_index(
    values: list[float], bad: float, data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, len(values) - 1))
    values[index] = bad
    with pytest.raises(ValueError, match=rf"value {index} is {bad}"):
        mean_interval(values)


@pytest.mark.parametrize("values", [[], [0.5]])
def test_fewer_than_two_values_have_no_interval(values: list[float]) -> None:
    with pytest.raises(ValueError, match=f"at least 2 values, got {len(values)}"):
        mean_interval(values)


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no trials"):
        share_interval([])


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_a_confidence_is_a_probability(confidence: float) -> None:
    with pytest.raises(ValueError, match=f"confidence={confidence}"):
        mean_interval([0.0, 1.0], confidence)


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(2, 3, False), (1, 3, True), (0.2, 0.4, True), (-3, 5, True), (-3, -1, False)]
)
def test_overlap_is_symmetric_and_counts_a_shared_end(low: float, high: float, expected: bool) -> None:
    unit, other = Interval(0.5, 0, 1, 10), Interval((low + high) / 2, low, high, 10)
    assert overlap(unit, other) is overlap(other, unit) is expected
