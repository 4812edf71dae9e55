"""Means with intervals: how sure the numbers of a report are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean of n values and the bounds of its confidence interval, all in the unit of the values."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean ± z standard errors, z being the normal quantile.

    Evaluations average hundreds of samples, where this covers as promised whatever the values' distribution (central
    limit theorem), has a closed form and needs no seed. A bootstrap would give the same bounds there. Below about 30
    values both are too narrow: at n = 10 a nominal 95 % covers about 92 %. Values must be independent, one a prompt.

    Raises ValueError for fewer than two values, which say nothing about their spread, and for a value that is not
    finite.
    """
    array = _finite(values)
    if len(array) < 2:
        raise ValueError(f"an interval needs at least 2 values, got {len(array)}")
    mean = float(array.mean())
    margin = _quantile(confidence) * float(array.std(ddof=1)) / math.sqrt(len(array))
    return Interval(mean, mean - margin, mean + margin, len(array))


def share_interval(hits: Sequence[bool], confidence: float = 0.95) -> Interval:
    """Share of hits, 0..1, with Wilson's score interval (Wilson 1927).

    Unlike `mean_interval` it stays inside 0..1, and 12 hits out of 12 do not make a certainty.
    """
    n = len(hits)
    if n == 0:
        raise ValueError("a share of no trials is undefined")
    share, z = sum(hits) / n, _quantile(confidence)
    shrink = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    margin = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2) / shrink
    # At a share of 0 or 1 a bound equals it up to rounding: keep low <= mean <= high exact.
    return Interval(share, max(0.0, min(share, centre - margin)), min(1.0, max(share, centre + margin)), n)


def paired_difference(before: Sequence[float], after: Sequence[float], confidence: float = 0.95) -> Interval:
    """Interval of the mean of after - before; the i-th values of both belong to the same prompt.

    Pairing removes the spread between prompts, so it is the sharper comparison of two evaluations.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} values before and {len(after)} after cannot be paired")
    return mean_interval((_finite(after) - _finite(before)).tolist(), confidence)


def overlap(a: Interval, b: Interval) -> bool:
    """Whether two closed intervals share a point."""
    return a.low <= b.high and b.low <= a.high


def _finite(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    array = np.asarray(values, dtype=np.float64).reshape(-1)
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise ValueError(f"value {bad[0]} is {array[bad[0]]}, not a finite number")
    return array


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} is not between 0 and 1")
    return NormalDist().inv_cdf((1 + confidence) / 2)
