"""Laws of the statistics: intervals cover what they promise and refuse what has no mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.evaluate.stats import Interval, mean_interval, paired_difference, share_interval
from raydpo.evaluate.student import student_quantile, student_within

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
    intervals = [mean_interval(values, confidence=confidence) for values in sets]
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
    narrow, wide = (mean_interval([0.0, 1.0, 2.0], confidence=share) for share in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_pairing_is_sharper_when_prompts_differ_more_than_models() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(0, 1, 200).tolist()
    after = [value + 0.1 + rng.normal(0, 0.05) for value in before]
    assert mean_interval(before).high > mean_interval(after).low, "the intervals overlap"
    assert paired_difference(before, after).low > 0


@given(VALUES)
def test_the_difference_of_a_model_to_itself_is_exactly_zero(values: list[float]) -> None:
    assert paired_difference(values, values) == Interval(0, 0, 0, len(values), len(values))


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
    with pytest.raises(ValueError, match=f"at least 2 independent values, got {len(values)}"):
        mean_interval(values)


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no trials"):
        share_interval([])


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_a_confidence_is_a_probability(confidence: float) -> None:
    with pytest.raises(ValueError, match=f"confidence={confidence}"):
        mean_interval([0.0, 1.0], confidence=confidence)


# The two-sided quantiles of the usual tables.
TABLE = {(0.95, 1): 12.7062, (0.95, 2): 4.3027, (0.95, 9): 2.2622, (0.95, 255): 1.9693, (0.99, 4): 4.6041}


@pytest.mark.parametrize(("confidence", "df"), TABLE)
def test_students_quantiles_are_those_of_the_tables(confidence: float, df: int) -> None:
    assert student_quantile(confidence, df) == pytest.approx(TABLE[confidence, df], abs=1e-4)


@given(st.floats(0.01, 0.999), st.integers(1, 400))
def test_a_quantile_undoes_the_distribution(confidence: float, df: int) -> None:
    assert student_within(student_quantile(confidence, df), df) == pytest.approx(confidence, abs=1e-7)


@pytest.mark.parametrize("n", [2, 5, 10])
def test_few_normal_values_are_covered_as_often_as_many(n: int) -> None:
    sets = np.random.default_rng(0).normal(0.3, 1.0, (2000, n))
    intervals = [mean_interval(values) for values in sets]
    assert sum(each.low <= 0.3 <= each.high for each in intervals) / 2000 == pytest.approx(0.95, abs=0.015)


def pairs_of_prompts(rng: np.random.Generator, prompts: int, share: float) -> tuple[list[bool], list[int]]:
    """Hits whose chance is drawn anew for each prompt, with an intraclass correlation of 0.3; 1 to 6 a prompt."""
    sizes = rng.choice([1, 2, 3, 6], prompts)
    chance = rng.beta(share * 7 / 3, (1 - share) * 7 / 3, prompts)
    groups = np.repeat(np.arange(prompts), sizes)
    return (rng.random(len(groups)) < chance[groups]).tolist(), groups.tolist()


@pytest.mark.parametrize("share", [0.5, 0.67, 0.9])
@pytest.mark.parametrize("prompts", [10, 60])
def test_pairs_that_share_prompts_are_covered_as_often_as_promised(share: float, prompts: int) -> None:
    rng = np.random.default_rng(0)
    drawn = [pairs_of_prompts(rng, prompts, share) for _ in range(600)]
    covered = [share_interval(*each) for each in drawn]
    as_if_independent = [share_interval(hits) for hits, _ in drawn]
    assert sum(each.low <= share <= each.high for each in covered) / 600 >= 0.925
    assert sum(each.low <= share <= each.high for each in as_if_independent) / 600 < 0.925, "no test"


@given(st.lists(st.booleans(), min_size=200, max_size=300))
def test_groups_of_one_are_the_plain_interval(hits: list[bool]) -> None:
    assert share_interval(hits, list(range(len(hits)))) == share_interval(hits)
    n, share, z = len(hits), sum(hits) / len(hits), 1.96
    half_width = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2) / (1 + z * z / n)  # Wilson's
    interval = share_interval(hits)
    assert interval.high - interval.low == pytest.approx(2 * half_width, rel=0.02)


@given(st.lists(st.booleans(), min_size=2, max_size=30), st.integers(2, 4))
def test_a_hit_that_is_counted_several_times_makes_nothing_surer(hits: list[bool], times: int) -> None:
    once = share_interval(hits)
    groups = [prompt for prompt in range(len(hits)) for _ in range(times)]
    again = share_interval([hits[prompt] for prompt in groups], groups)
    assert (again.low, again.high) == pytest.approx((once.low, once.high), abs=1e-9)
    assert (again.n, again.groups) == (times * len(hits), len(hits))


@given(VALUES, st.integers(2, 4))
def test_a_value_that_is_counted_several_times_makes_no_mean_surer(values: list[float], times: int) -> None:
    once, again = mean_interval(values), mean_interval(values * times, [*range(len(values))] * times)
    width = once.high - once.low
    assert again.high - again.low == pytest.approx(width, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("hits", [[True] * 12, [False] * 12])
def test_equal_hits_are_worth_one_trial_a_prompt(hits: list[bool]) -> None:
    few, many = share_interval(hits, [0, 1, 2] * 4), share_interval(hits)
    assert few.high - few.low > 2 * (many.high - many.low)


@pytest.mark.parametrize("hits", [[True], [True, False, True], [False] * 5])
def test_one_prompt_says_nothing_of_others(hits: list[bool]) -> None:
    assert share_interval(hits, ["the same"] * len(hits)) == Interval(sum(hits) / len(hits), 0, 1, len(hits), 1)


def test_every_value_has_a_group() -> None:
    with pytest.raises(ValueError, match="3 values and 2 groups"):
        mean_interval([0.0, 1.0, 2.0], ["a", "b"])
