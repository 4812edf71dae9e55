"""Means with intervals: how sure the numbers of a report are.

Values that belong together, such as pairs of one prompt, are a group; groups are independent, values of one need not
be. So the spread is taken between groups: the mean over all values is a ratio of group totals, with the linearised
variance of one (Cochran 1977, chapter 6), which is the textbook's where every group has one value.

Legend: n values, k groups.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raydpo.evaluate.student import student_quantile


@dataclass(frozen=True)
class Interval:
    """A mean of n values and the bounds of its confidence interval, all in the unit of the values."""

    mean: float
    low: float
    high: float
    n: int
    groups: int  # independent ones among the values; the width rests on them


def mean_interval(
    values: Sequence[float], groups: Sequence[Hashable] | None = None, confidence: float = 0.95
) -> Interval:
    """Mean ± t standard errors, t being Student's quantile for k - 1 degrees of freedom.

    groups[i] is the group of values[i]; without them each value is one of its own. The interval is exact for normal
    values and close for hundreds of any distribution (central limit theorem), has a closed form and needs no seed.

    Raises ValueError for fewer than two groups, which say nothing about their spread, and for a value that is not
    finite.
    """
    array = _finite(values)
    totals = _GroupTotals.of(array, groups)
    if totals.k < 2:
        raise ValueError(f"an interval needs at least 2 independent values, got {totals.k}")
    margin = student_quantile(confidence, totals.k - 1) * math.sqrt(totals.variance)
    return Interval(totals.mean, totals.mean - margin, totals.mean + margin, len(array), totals.k)


def share_interval(
    hits: Sequence[float], groups: Sequence[Hashable] | None = None, confidence: float = 0.95
) -> Interval:
    """Share of hits, 0..1, with Wilson's score interval (Wilson 1927) for as many trials as the hits are worth.

    A hit is 1 or True, a miss 0 or False; a half is a tie, which spreads less and so is given no less width.

    Hits of one group repeat each other, so n of them are worth fewer independent ones: as many as give the variance
    between groups (their effective number, Korn and Graubard 1998). Where there is none, because all or none of the
    trials hit, a group is worth one. Unlike `mean_interval` the bounds stay inside 0..1, and 12 hits out of 12 do not
    make a certainty. One group alone does not say how far others are from it: its bounds are 0 and 1.
    """
    n = len(hits)
    if n == 0:
        raise ValueError("a share of no trials is undefined")
    totals = _GroupTotals.of(np.asarray(hits, dtype=np.float64), groups)
    share = totals.mean
    k = totals.k
    if k == 1:
        return Interval(share, 0.0, 1.0, n, k)
    t = student_quantile(confidence, k - 1)
    trials = _worth(totals, n)
    shrink = 1 + t * t / trials
    centre = (share + t * t / (2 * trials)) / shrink
    margin = t * math.sqrt(share * (1 - share) / trials + (t / (2 * trials)) ** 2) / shrink
    # At a share of 0 or 1 a bound equals it up to rounding: keep low <= mean <= high exact.
    return Interval(share, max(0.0, min(share, centre - margin)), min(1.0, max(share, centre + margin)), n, k)


def paired_difference(
    before: Sequence[float],
    after: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> Interval:
    """Interval of the mean of after - before; the i-th values of both belong to the same prompt.

    Pairing removes the spread between prompts, so it is the sharper comparison of two evaluations.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} values before and {len(after)} after cannot be paired")
    return mean_interval((_finite(after) - _finite(before)).tolist(), groups, confidence)


@dataclass(frozen=True)
class _GroupTotals:
    """A mean over grouped values, and its variance."""

    mean: float
    variance: float  # of the mean; 0 where k is 1, which is no estimate
    k: int

    @classmethod
    def of(cls, values: NDArray[np.float64], groups: Sequence[Hashable] | None) -> _GroupTotals:
        names: Sequence[Hashable] = range(len(values)) if groups is None else groups
        if len(names) != len(values):
            raise ValueError(f"{len(values)} values and {len(names)} groups; give each value one")
        mean = float(values.mean()) if len(values) else math.nan
        numbers: dict[Hashable, int] = {}
        member = [numbers.setdefault(name, len(numbers)) for name in names]
        k = len(numbers)
        if k < 2:
            return cls(mean, 0.0, k)
        errors = np.zeros(k)
        np.add.at(errors, member, values - mean)
        # k / (k - 1), because the errors are from a mean of the same groups and so too small.
        return cls(mean, float(k / (k - 1) * (errors**2).sum() / len(values) ** 2), k)


def _worth(totals: _GroupTotals, n: int) -> float:
    """Independent trials that would give the variance; never more than the n that there were."""
    spread = totals.mean * (1 - totals.mean)
    if not spread:
        return totals.k
    return min(n, spread / totals.variance) if totals.variance else n


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64).reshape(-1)
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise ValueError(f"value {bad[0]} is {array[bad[0]]}, not a finite number")
    return array
