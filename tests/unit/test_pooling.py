"""Laws of pooling: intervals over seeds cover, hold the spread of prompts where they say so, and refuse twins."""

from __future__ import annotations

import numpy as np
import pytest

from raydpo.evaluate.pooling import bootstrap_interval, over_seeds, over_seeds_and_prompts, sign_test
from raydpo.evaluate.stats import mean_interval

pytestmark = pytest.mark.unit


def crossed(rng: np.random.Generator, seeds: int, prompts: int) -> np.ndarray:
    return (
        0.3 + rng.normal(0, 0.2, (seeds, 1)) + rng.normal(0, 0.8, (1, prompts)) + rng.normal(0, 0.5, (seeds, prompts))
    )


def test_an_interval_over_seeds_and_prompts_covers_the_mean() -> None:
    rng = np.random.default_rng(0)
    intervals = [over_seeds_and_prompts(range(4), crossed(rng, 4, 30).tolist()) for _ in range(1000)]
    covered = sum(each.low <= 0.3 <= each.high for each in intervals) / 1000
    assert 0.93 <= covered <= 0.99


def test_an_interval_over_seeds_is_over_their_means() -> None:
    assert over_seeds([0, 1, 2], [[1.0, 3.0], [2.0, 2.0], [4.0, 4.0]]) == mean_interval([2.0, 2.0, 4.0])


@pytest.mark.parametrize("pool", [over_seeds, over_seeds_and_prompts])
def test_seeds_that_coincide_or_are_alone_are_refused(pool) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"seeds \[1\] come more than once"):
        pool([1, 2, 1], [[0.0, 1.0]] * 3)
    with pytest.raises(ValueError, match="1 seeds say nothing"):
        pool([1], [[0.0, 1.0]])


def test_seeds_that_saw_other_prompts_do_not_cross() -> None:
    with pytest.raises(ValueError, match=r"seeds have \[2, 3\] prompts"):
        over_seeds_and_prompts([0, 1], [[0.0, 1.0], [0.0, 1.0, 2.0]])


def test_the_bootstrap_agrees_with_student_on_many_prompts_and_repeats_itself() -> None:
    values = np.random.default_rng(0).normal(0.3, 1.0, 400).tolist()
    groups = [i // 2 for i in range(400)]
    usual = mean_interval(values, groups)
    found = bootstrap_interval(values, groups)
    assert (found.low, found.high) == pytest.approx((usual.low, usual.high), abs=0.02)
    assert found == bootstrap_interval(values, groups)
    assert found != bootstrap_interval(values, groups, seed=1)


@pytest.mark.parametrize(
    ("before", "after", "p"),
    [([0] * 6, [1] * 6, 2 / 64), ([0, 1], [1, 0], 1.0), ([1, 1], [1, 1], 1.0), ([0] * 5 + [1], [1] * 5 + [0], 14 / 64)],
)
def test_the_sign_test_by_hand(before: list[float], after: list[float], p: float) -> None:
    assert sign_test(before, after) == pytest.approx(p)
