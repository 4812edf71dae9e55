"""Student's t: how wide an interval must be whose spread was estimated from few values."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np


@lru_cache
def student_quantile(confidence: float, df: int) -> float:
    """The t with P(|T| <= t) = confidence, by bisection; df degrees of freedom, at least 1."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} is not between 0 and 1")
    low = 0.0
    high = 1.0
    while student_within(high, df) < confidence:
        low = high
        high = 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if student_within(middle, df) < confidence else (low, middle)
    return high


def student_within(t: float, df: int) -> float:
    """P(|T| <= t), in closed form (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(df))
    odd = df % 2
    # The sums' terms are powers of the cosine, each the one before times a ratio.
    k = np.arange(1, (df - odd) // 2)
    ratios = (2 * k / (2 * k + 1) if odd else (2 * k - 1) / (2 * k)) * math.cos(angle) ** 2
    total = 1 + float(np.cumprod(ratios).sum())
    if not odd:
        return math.sin(angle) * total
    beyond_one = math.sin(angle) * math.cos(angle) * total if df > 1 else 0.0
    return 2 / math.pi * (angle + beyond_one)
