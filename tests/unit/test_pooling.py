"""Laws of pooling: intervals over seeds cover, hold the spread of prompts where they say so, and refuse twins."""

from __future__ import annotations

import numpy as np
import pytest

from raydpo.evaluate.pooling import over_seeds_and_prompts

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


def test_seeds_that_coincide_or_are_alone_are_refused() -> None:
    with pytest.raises(ValueError, match=r"seeds \[1\] come more than once"):
        over_seeds_and_prompts([1, 2, 1], [[0.0, 1.0]] * 3)
    with pytest.raises(ValueError, match="1 seeds say nothing"):
        over_seeds_and_prompts([1], [[0.0, 1.0]])


def test_seeds_that_saw_other_prompts_do_not_cross() -> None:
    with pytest.raises(ValueError, match=r"seeds have \[2, 3\] prompts"):
        over_seeds_and_prompts([0, 1], [[0.0, 1.0], [0.0, 1.0, 2.0]])
