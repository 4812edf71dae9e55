"""Laws of Best-of-N: its exact mean is that over all subsets, its KL keeps the bound, π* is the best at its KL."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.rollout.best_of_n import (
    MIN_EFFECTIVE,
    attainable,
    attainable_reward,
    expected_best,
    kl_bound,
    measured_kl,
    optimum_line,
    selection_probabilities,
    strict_kl,
)

pytestmark = pytest.mark.unit

few_values = st.sampled_from([-1.0, 0.0, 0.25, 2.0])  # few, so that ties are common


@st.composite
def samples(draw: st.DrawFn) -> tuple[list[float], list[float], int]:
    """Selecting rewards with ties, measured rewards, and N."""
    m = draw(st.integers(1, 7))
    selecting = draw(st.lists(few_values, min_size=m, max_size=m))
    measured = draw(st.lists(st.floats(-3, 3), min_size=m, max_size=m))
    return selecting, measured, draw(st.integers(1, m))


def over_all_subsets(selecting: list[float], measured: list[float], n: int) -> float:
    """What the best of every subset measures, a tie counting as the mean of those that tie."""
    kept = []
    for subset in combinations(range(len(selecting)), n):
        highest = max(selecting[i] for i in subset)
        kept.append(np.mean([measured[i] for i in subset if selecting[i] == highest]))
    return float(np.mean(kept))


@given(samples())
def test_the_exact_mean_is_that_over_all_subsets(drawn: tuple[list[float], list[float], int]) -> None:
    selecting, measured, n = drawn
    [found] = expected_best(np.asarray([selecting]), np.asarray([measured]), n)
    assert found == pytest.approx(over_all_subsets(selecting, measured, n), abs=1e-12)


@given(samples())
def test_the_measured_kl_is_that_of_all_draws_from_the_samples(drawn: tuple[list[float], list[float], int]) -> None:
    selecting, _, n = drawn
    m = len(selecting)
    n = min(n, 4)  # m ** n draws are counted
    kept = np.zeros(m)
    for draws in product(range(m), repeat=n):
        highest = max(selecting[i] for i in draws)
        tied = [i for i in draws if selecting[i] == highest]
        for i in tied:
            kept[i] += 1 / len(tied)
    p = kept / m**n
    exact = sum(each * math.log(each * m) for each in p if each)
    assert measured_kl(np.asarray([selecting]), n)[0] == pytest.approx(exact, abs=1e-12)


@given(st.lists(few_values, min_size=1, max_size=200), st.integers(1, 128))
def test_no_reward_takes_best_of_n_beyond_the_bound(rewards: list[float], n: int) -> None:
    [kl] = measured_kl(np.asarray([rewards]), n)
    assert -1e-12 <= kl <= strict_kl(len(rewards), n) + 1e-12
    assert kl <= kl_bound(n) + 1e-12


@pytest.mark.parametrize("n", [1, 4, 16, 64, 128])
def test_without_ties_the_kl_comes_to_the_bound_as_samples_grow(n: int) -> None:
    gaps = [kl_bound(n) - strict_kl(m, n) for m in (128, 512, 8192)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("n", [1, 3, 128, 512])
def test_probabilities_of_512_samples_add_up_and_rise_with_the_reward(n: int) -> None:
    p = selection_probabilities(np.arange(512.0), n)
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert np.isfinite(p).all()
    assert (np.diff(p) >= 0).all()
    assert p[-1] == pytest.approx(n / 512)


def test_the_best_of_one_is_the_mean_and_of_all_the_highest() -> None:
    rewards = np.random.default_rng(0).normal(size=(3, 9))
    assert expected_best(rewards, rewards, 1) == pytest.approx(rewards.mean(axis=1))
    assert expected_best(rewards, rewards, 9) == pytest.approx(rewards.max(axis=1))


def test_a_reward_that_says_nothing_selects_the_mean_at_no_kl() -> None:
    measured = np.random.default_rng(0).normal(size=(2, 8))
    assert expected_best(np.zeros((2, 8)), measured, 4) == pytest.approx(measured.mean(axis=1))
    assert measured_kl(np.zeros((2, 8)), 4) == pytest.approx(0)


@pytest.mark.parametrize("n", [0, 5])
def test_more_than_there_are_samples_cannot_be_chosen_from(n: int) -> None:
    with pytest.raises(ValueError, match=rf"n={n} cannot be had from 4 samples"):
        selection_probabilities([1.0, 2.0, 3.0, 4.0], n)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=40), st.floats(0.05, 10))
def test_the_optimum_has_the_log_partition_function_for_its_objective(rewards: list[float], beta: float) -> None:
    point = attainable(np.asarray([rewards]), beta)
    log_z = math.log(np.mean(np.exp((np.asarray(rewards) - max(rewards)) / beta))) + max(rewards) / beta
    assert point.reward[0] - beta * point.kl[0] == pytest.approx(beta * log_z, abs=1e-9)
    assert -1e-12 <= point.kl[0] <= math.log(len(rewards)) + 1e-12
    assert 1 - 1e-9 <= point.effective[0] <= len(rewards) + 1e-9


def test_the_optimum_of_a_normal_reward_is_the_one_in_closed_form() -> None:
    rewards = np.random.default_rng(1).normal(size=(400, 2000))
    point = attainable(rewards, 1.0)  # tilting N(0, 1) by exp(r) gives N(1, 1), at a KL of 1/2
    assert point.reward.mean() == pytest.approx(1, abs=0.01)
    assert point.kl.mean() == pytest.approx(0.5, abs=0.01)


def test_the_line_rises_ends_with_its_samples_and_has_no_unit() -> None:
    rewards = np.random.default_rng(2).normal(size=(32, 128))
    line = optimum_line(rewards)
    kls = [point.kl.mean() for point in line]
    values = [point.reward.mean() for point in line]
    assert kls == sorted(kls)
    assert values == sorted(values)
    assert kls[0] < 0.05
    assert min(point.effective.mean() for point in line) >= MIN_EFFECTIVE
    assert attainable(rewards, line[-1].beta / math.sqrt(2)).effective.mean() < MIN_EFFECTIVE
    assert [point.kl.mean() for point in optimum_line(1000 * rewards)] == pytest.approx(kls)


def test_no_selection_lies_above_the_attainable_at_its_kl() -> None:
    rewards = np.random.default_rng(3).normal(size=(64, 256))
    line = optimum_line(rewards)
    for n in (2, 4, 8):
        kl = float(measured_kl(rewards, n).mean())
        best = attainable_reward(rewards, line, kl)
        assert best is not None
        assert float(expected_best(rewards, rewards, n).mean()) <= best + 0.01


def test_the_attainable_begins_at_the_reference_and_ends_with_the_line() -> None:
    rewards = np.random.default_rng(4).normal(size=(16, 64))
    line = optimum_line(rewards)
    assert attainable_reward(rewards, line, 0) == pytest.approx(rewards.mean())
    assert attainable_reward(rewards, line, float(line[-1].kl.mean()) + 0.01) is None
    assert optimum_line(np.zeros((4, 64))) == []
