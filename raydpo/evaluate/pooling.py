"""Several seeds in one figure.

Prompts of one seed are never counted as if they were seeds: a training that went well went well on all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from raydpo.evaluate.stats import Interval
from raydpo.evaluate.student import student_quantile


def over_seeds_and_prompts(
    seeds: Sequence[int], values: Sequence[Sequence[float]], confidence: float = 0.95
) -> Interval:
    """The mean with its interval for other seeds and other prompts; values[i][j] is that of seed i on prompt j.

    Every seed has seen every prompt, so the variance of the mean is that of two crossed random effects, (MS_seeds +
    MS_prompts - MS_rest) / (S P), with Satterthwaite's degrees of freedom, rounded down (Cornfield and Tukey 1956;
    Satterthwaite 1946). Where chance makes the sum smaller than its larger part alone, that part stands. Raises
    ValueError for seeds that coincide, for fewer than two, for seeds with different numbers of prompts and for fewer
    than two prompts.
    """
    _check_seeds(seeds, values)
    counts = {len(of_seed) for of_seed in values}
    if len(counts) > 1 or counts < {2}:
        raise ValueError(f"seeds have {sorted(counts)} prompts; give each the same, and at least 2")
    table = np.asarray(values, dtype=np.float64)
    num_seeds, num_prompts = table.shape
    mean = float(table.mean())
    by_seed = table.mean(axis=1)
    by_prompt = table.mean(axis=0)
    rest = table - by_seed[:, None] - by_prompt + mean
    of_seeds = num_prompts * float(by_seed.var(ddof=1))
    of_prompts = num_seeds * float(by_prompt.var(ddof=1))
    of_rest = float((rest**2).sum()) / ((num_seeds - 1) * (num_prompts - 1))
    total = of_seeds + of_prompts - of_rest
    total = max(total, of_seeds, of_prompts)
    parts = [
        (of_seeds, num_seeds - 1),
        (of_prompts, num_prompts - 1),
        (of_rest, (num_seeds - 1) * (num_prompts - 1)),
    ]
    spread = sum(part**2 / df for part, df in parts)
    df = max(1, min(num_prompts - 1, int(total**2 / spread))) if spread else num_seeds - 1
    margin = student_quantile(confidence, df) * math.sqrt(total / table.size)
    return Interval(mean, mean - margin, mean + margin, table.size, num_seeds)


def _check_seeds(seeds: Sequence[int], values: Sequence[Sequence[float]]) -> None:
    if len(seeds) != len(values):
        raise ValueError(f"{len(seeds)} seeds and values of {len(values)}; give each seed its own")
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise ValueError(f"seeds {twice} come more than once: the same training twice is no second one")
    if len(seeds) < 2:
        raise ValueError(f"{len(seeds)} seeds say nothing about the spread between them; give at least 2")
