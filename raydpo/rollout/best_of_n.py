"""Best-of-N and the attainable optimum, both worked out from M samples of the reference a prompt: arithmetic alone.

Best-of-N draws N completions of the reference and keeps the one that a selecting reward likes best; what it is worth is
measured by the true reward of the kept one. M samples, M ≥ N, hold C(M, N) such draws, and their mean has a closed form
(Nakano et al. 2021, "WebGPT", appendix I). So one draw of M samples gives every N up to M, without further sampling.

Legend: P prompts, M samples of each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MIN_EFFECTIVE = 10.0  # samples; with fewer, a few of the best stand for all of π*, and its KL comes out too low
_FIRST_BETA = 4.0  # in spreads of the reward: π* is the reference to within 0.04 nats there
_MOST_POINTS = 24  # of the line, which has no end of its own where ten samples tie at the top


def kl_bound(n: int) -> float:
    """log N - (N - 1)/N, in nats: KL(Best-of-N ‖ reference) is never more (Beirami et al. 2024, theorem 3.1).

    It is an upper bound, which a reward without ties reaches over a reference whose completions are all improbable.
    """
    return math.log(n) - (n - 1) / n


def selection_probabilities(selecting: Sequence[float] | Floats, n: int) -> Floats:
    """How likely each of M samples is kept, over all subsets of n of them; shape [M], sums to 1.

    Sample number k from the lowest is the best of a subset where the other n - 1 are below it: C(k-1, n-1) of C(M, n)
    times. Equal rewards share what they have together, which is a tie broken by lot. Raises ValueError unless
    1 ≤ n ≤ M.
    """
    rewards = np.asarray(selecting, dtype=np.float64)
    by_rank = _rank_probabilities(len(rewards), n)
    _, level, counts = np.unique(rewards, return_inverse=True, return_counts=True)
    of_rank = np.repeat(np.arange(len(counts)), counts)  # the level that each rank has
    shares = np.bincount(of_rank, weights=by_rank) / counts
    return shares[level]


def expected_best(selecting: Floats, measured: Floats, n: int) -> Floats:
    """The mean `measured` reward of what Best-of-n keeps by the `selecting` one, by prompt: [P, M], [P, M] → [P].

    Unbiased for every n ≤ M; where both rewards are the same it is the mean of the highest of n.
    """
    rows = zip(np.atleast_2d(selecting), np.atleast_2d(measured), strict=True)
    return np.asarray([selection_probabilities(chooses, n) @ counts for chooses, counts in rows])


def measured_kl(selecting: Floats, n: int) -> Floats:
    """KL(Best-of-n ‖ reference) by prompt, in nats: [P, M] → [P].

    It is exact for the empirical reference, which has the M samples with 1/M each: the best of n draws from it, with
    replacement and ties broken by lot, has a reward of level g with probability F(g)^n - F(g-)^n, and within a level
    completions are as probable as in the reference, so the KL of completions is that of levels.

    As an estimate of the reference's own it comes out low: M samples show at most M levels. Where no two rewards are
    equal it is strict_kl(M, n) whatever they are, so kl_bound(n) - strict_kl(M, n) is what M samples cannot show.
    """
    return np.asarray([_kl_of_levels(rewards, n) for rewards in np.atleast_2d(selecting)])


def strict_kl(m: int, n: int) -> float:
    """What measured_kl gives for m samples without ties, in nats: the most that it can; kl_bound(n) as m grows."""
    return _kl_of_levels(np.arange(m, dtype=np.float64), n)


@dataclass(frozen=True)
class Optimum:
    """π* ∝ π_ref · exp(r / beta), which maximises E[r] - beta · KL(π ‖ π_ref), as M samples of π_ref show it."""

    beta: float
    reward: Floats  # [P], mean reward under π*
    kl: Floats  # [P], KL(π* ‖ π_ref), nats
    effective: Floats  # [P], samples that the weights are worth, 1 / Σ p²


def attainable(rewards: Floats, beta: float) -> Optimum:
    """The optimum at one beta by self-normalised importance sampling over [P, M] rewards.

    Sample i has weight p_i ∝ exp(r_i / beta); the reward is Σ p_i r_i and the KL Σ p_i log(M p_i). Both are low where
    few samples carry the weight: the KL cannot exceed log M.
    """
    scaled = np.atleast_2d(rewards) / beta
    log_p = scaled - _logsumexp(scaled)
    p = np.exp(log_p)
    return Optimum(
        beta=beta,
        reward=(p * np.atleast_2d(rewards)).sum(axis=1),
        kl=(p * (log_p + math.log(scaled.shape[1]))).sum(axis=1),
        effective=1 / (p * p).sum(axis=1),
    )


def optimum_line(rewards: Floats) -> list[Optimum]:
    """Optima of falling beta, from almost the reference to where fewer than MIN_EFFECTIVE samples are left on average.

    beta goes down by √2 from _FIRST_BETA times the spread within prompts, so the line is the same in any unit of the
    reward. Empty where all rewards of each prompt are equal, or where M is too small to show any.
    """
    spread = float(np.sqrt(np.atleast_2d(rewards).var(axis=1).mean()))
    if not spread:
        return []
    line: list[Optimum] = []
    for i in range(_MOST_POINTS):
        point = attainable(rewards, _FIRST_BETA * spread * 2 ** (-i / 2))
        if point.effective.mean() < MIN_EFFECTIVE:
            break
        line.append(point)
    return line


def attainable_reward(rewards: Floats, line: Sequence[Optimum], kl: float) -> float | None:
    """The mean reward of the optimum at a KL, between the line's points; None beyond its end.

    The line begins at the reference: the mean of `rewards` at a KL of 0.
    """
    reached = [0.0, *(float(point.kl.mean()) for point in line)]
    mean = [float(np.mean(rewards)), *(float(point.reward.mean()) for point in line)]
    return float(np.interp(kl, reached, mean)) if kl <= reached[-1] else None


def _rank_probabilities(m: int, n: int) -> Floats:
    """C(k-1, n-1) / C(m, n) for k = 1..m.

    From the highest rank down each is the one above times a ratio below 1, so no factorial is met.
    """
    if not 1 <= n <= m:
        raise ValueError(f"the best of n={n} cannot be had from {m} samples")
    k = np.arange(m, 1, -1)
    ratios = np.maximum(k - n, 0) / (k - 1)  # C(k-2, n-1) / C(k-1, n-1); 0 from the rank on that no subset has on top
    falling = n / m * np.cumprod(np.concatenate(([1.0], ratios)))
    return falling[::-1]


def _kl_of_levels(rewards: Floats, n: int) -> float:
    _, counts = np.unique(rewards, return_counts=True)
    cdf = np.concatenate(([0.0], np.cumsum(counts) / len(rewards)))
    reference = np.diff(cdf)
    best = np.diff(cdf**n)
    seen = best > 0  # far below the top a power is less than any float: 0 log 0 is 0
    return float((best[seen] * np.log(best[seen] / reference[seen])).sum())


def _logsumexp(values: Floats) -> Floats:
    """By row, shape [P, 1]; safe for any size of the values."""
    highest = values.max(axis=1, keepdims=True)
    return highest + np.log(np.exp(values - highest).sum(axis=1, keepdims=True))
