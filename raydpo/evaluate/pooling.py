"""Several seeds in one figure, and other ways to an interval than Student's: the bootstrap and the sign test.

Two questions are asked of prompts and seeds. What another training with another seed would give on these prompts:
`over_seeds`. What it would give on other prompts as well: `over_seeds_and_prompts`, whose interval holds both spreads.
Prompts of one seed are never counted as if they were seeds: a training that went well went well on all of them.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from raydpo.evaluate.stats import Interval, mean_interval
from raydpo.evaluate.student import student_quantile

DRAWS = 2000  # of the bootstrap


def over_seeds(seeds: Sequence[int], values: Sequence[Sequence[float]], confidence: float = 0.95) -> Interval:
    """Mean over seeds of their means, with Student's interval over these; values[i] are those of seeds[i].

    The prompts are taken as given. Raises ValueError for seeds that coincide and for fewer than two.
    """
    _check_seeds(seeds, values)
    return mean_interval([float(np.mean(of_seed)) for of_seed in values], seeds, confidence)


def over_seeds_and_prompts(
    seeds: Sequence[int], values: Sequence[Sequence[float]], confidence: float = 0.95
) -> Interval:
    """The same for other seeds and other prompts; values[i][j] is that of seed i on prompt j.

    Every seed has seen every prompt, so the variance of the mean is that of two crossed random effects, (MS_seeds +
    MS_prompts - MS_rest) / (S P), with Satterthwaite's degrees of freedom, rounded down (Cornfield and Tukey 1956;
    Satterthwaite 1946). Where chance makes the sum smaller than its larger part alone, that part stands. Raises
    ValueError as over_seeds does, for seeds with different numbers of prompts and for fewer than two prompts.
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


def bootstrap_interval(
    values: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> Interval:
    """Mean with the percentile bootstrap over groups (Efron 1979): a second way beside mean_interval.

    It assumes no shape, and is too narrow for few groups. For a paired comparison give the differences. The same seed
    gives the same interval. Raises ValueError as mean_interval does.
    """
    usual = mean_interval(values, groups, confidence)
    names: Sequence[Hashable] = range(len(values)) if groups is None else groups
    numbers: dict[Hashable, int] = {}
    member = [numbers.setdefault(name, len(numbers)) for name in names]
    totals = np.bincount(member, weights=np.asarray(values, dtype=np.float64))
    sizes = np.bincount(member)
    chosen = np.random.default_rng(seed).integers(usual.groups, size=(draws, usual.groups))
    means: NDArray[np.float64] = totals[chosen].sum(axis=1) / sizes[chosen].sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(usual.mean, float(low), float(high), usual.n, usual.groups)


def sign_test(before: Sequence[float], after: Sequence[float]) -> float:
    """Two-sided p that as many of the differences would go one way by chance; the i-th values are of one prompt.

    The exact test on the differences that are not 0, which for values 0 and 1 is McNemar's (1947). 1 where there are
    none. Raises ValueError for numbers of values that differ.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} values before and {len(after)} after cannot be paired")
    ups = sum(b < a for b, a in zip(before, after, strict=True))
    downs = sum(b > a for b, a in zip(before, after, strict=True))
    n = ups + downs
    tail = sum(math.comb(n, k) for k in range(min(ups, downs) + 1))
    return min(1.0, 2 * tail / 2**n)


def _check_seeds(seeds: Sequence[int], values: Sequence[Sequence[float]]) -> None:
    if len(seeds) != len(values):
        raise ValueError(f"{len(seeds)} seeds and values of {len(values)}; give each seed its own")
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise ValueError(f"seeds {twice} come more than once: the same training twice is no second one")
    if len(seeds) < 2:
        raise ValueError(f"{len(seeds)} seeds say nothing about the spread between them; give at least 2")
