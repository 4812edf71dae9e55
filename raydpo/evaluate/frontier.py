"""Methods compared at equal distance: what reward each reaches at a sequence KL, and how sure that is.

All policies answer the same prompts, and the runs of a seed learn from the same rows. So differences are taken within
prompts and seeds: both are drawn anew together (a paired bootstrap), and everything is worked out on each draw. With
few seeds the bootstrap takes their spread for somewhat smaller than it is, by (S - 1)/S of the variance.

Legend: S seeds, P prompts, B draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raydpo.errors import UserError
from raydpo.evaluate.pooling import over_seeds_and_prompts
from raydpo.evaluate.records import Evaluation
from raydpo.evaluate.stats import Interval, mean_interval

DRAWS = 2000
CONFIDENCE = 0.95
Floats = NDArray[np.float64]
Decision = Literal["below", "above", "not decided"]


@dataclass(frozen=True)
class Run:
    """A training: a method at one strength with one seed, and its evaluations by rising step, the reference's first."""

    method: str
    strength: str  # such as "beta=0.1", or empty
    seed: int
    evaluations: Sequence[Evaluation]


@dataclass(frozen=True)
class Point:
    """What a method reaches at one strength: rewards and KLs (nats a completion) of all seeds and prompts, [S, P]."""

    method: str
    strength: str
    rewards: Floats
    kls: Floats
    course: Sequence[tuple[float, float]] = ()  # (KL, reward) of its evaluations by rising step, means over seeds

    @property
    def label(self) -> str:
        """For tables and messages."""
        return f"{self.method} {self.strength}".strip()

    @property
    def reward(self) -> Interval:
        """Its mean, see interval_of."""
        return interval_of(self.rewards)

    @property
    def kl(self) -> Interval:
        """Its mean, see interval_of."""
        return interval_of(self.kls)


@dataclass(frozen=True)
class BestOf:
    """Best-of-N at its KL bound, in nats, which is more than its KL. `reward` is the mean over seeds."""

    method: str
    n: int
    kl: float
    reward: Interval

    @property
    def strength(self) -> str:
        """As that of a point."""
        return f"n={self.n}"


@dataclass(frozen=True)
class Verdict:
    """Where a point lies against the curve of another method at the same KL."""

    method: str
    strength: str
    kl: float
    reward: float
    against: str
    gap: Interval  # what the other method reaches at this KL, less the point's reward
    decision: Decision  # of the point: below the curve, above it, or not decided


@dataclass(frozen=True)
class Neighbours:
    """How a method's neighbouring strengths differ, from the one nearest the reference outwards."""

    pairs: Sequence[tuple[str, str]]  # strengths
    kl: Sequence[Interval]  # differences
    reward: Sequence[Interval]


def interval_of(values: Floats) -> Interval:
    """The mean of [S, P] values, for other seeds and other prompts; of one seed's, for other prompts."""
    if len(values) == 1:
        return mean_interval(values[0].tolist())
    return over_seeds_and_prompts(range(len(values)), values.tolist())


def points_of(runs: Sequence[Run]) -> tuple[Floats, list[Point], list[int]]:
    """The reference's rewards [S, P], the methods' points and the seeds that all of them have.

    A run's last evaluation is its point. Raises UserError where runs were evaluated on different prompts, and where no
    seed is common to all points.
    """
    seeds = _common_seeds(runs)
    _check_same_prompts(runs)
    by_point: dict[tuple[str, str], dict[int, Run]] = {}
    for run in runs:
        by_point.setdefault((run.method, run.strength), {})[run.seed] = run
    points = []
    for (method, strength), by_seed in by_point.items():
        members = [by_seed[seed] for seed in seeds]
        last = [run.evaluations[-1] for run in members]
        points.append(
            Point(
                method,
                strength,
                rewards=np.asarray([found.column("reward") for found in last]),
                kls=np.asarray([found.column("kl") for found in last]),
                course=_course(members),
            )
        )
    first = next(iter(by_point.values()))
    reference = [first[seed].evaluations[0].column("reward") for seed in seeds]
    return np.asarray(reference), points, seeds


def _common_seeds(runs: Sequence[Run]) -> list[int]:
    labels = {(run.method, run.strength) for run in runs}
    seeds = list(dict.fromkeys(run.seed for run in runs))
    common = [seed for seed in seeds if len({(r.method, r.strength) for r in runs if r.seed == seed}) == len(labels)]
    if not common:
        raise UserError(
            f"no seed has been trained and evaluated with all of {', '.join(' '.join(label) for label in labels)}; "
            "give the same command again, it goes on with what is left."
        )
    return common


def _check_same_prompts(runs: Sequence[Run]) -> None:
    expected = [sample.prompt for sample in runs[0].evaluations[0].samples]
    for run in runs:
        for found in run.evaluations:
            if [sample.prompt for sample in found.samples] != expected:
                raise UserError(
                    f"{run.method} {run.strength}, seed {run.seed}: step {found.step} was evaluated on other prompts "
                    "than the first run; remove its evaluations and give the same command again."
                )


def _course(runs: Sequence[Run]) -> list[tuple[float, float]]:
    steps = [found.step for found in runs[0].evaluations]
    by_step = [{found.step: found.measures for found in run.evaluations} for run in runs]
    shared = [step for step in steps if all(step in found for found in by_step)]
    return [
        (
            float(np.mean([found[step]["kl"].mean for found in by_step])),
            float(np.mean([found[step]["reward"].mean for found in by_step])),
        )
        for step in shared
    ]


def envelope(kls: Sequence[float] | Floats, rewards: Sequence[float] | Floats, at: float) -> float:
    """The highest reward that a method reaches without going beyond a KL of `at`.

    kls, rewards: its points, the reference (KL 0) among them. Between two of them it reaches what lies on the straight
    line, which a mixture of the two policies would: the KL is convex, so the mixture's is no larger.
    """
    order = np.argsort(kls)
    k = np.asarray(kls, dtype=np.float64)[order]
    r = np.asarray(rewards, dtype=np.float64)[order]
    within = r[k <= at]
    best = float(within.max()) if len(within) else -np.inf
    if at < k[-1]:
        best = max(best, float(np.interp(at, k, r)))
    return best


class Curves:
    """Points and the curves of methods, on all prompts and seeds and on B draws of them."""

    def __init__(
        self, reference: Floats, points: Sequence[Point], best: Sequence[BestOf] = (), *, draws: int = DRAWS
    ) -> None:
        """reference: rewards [S, P] of the reference, whose KL is 0. Raises ValueError for fewer than two prompts."""
        self._reference = reference
        self.points = list(points)
        self.best = list(best)
        rng = np.random.default_rng(0)
        seeds, prompts = reference.shape
        if prompts < 2:
            raise ValueError(f"an interval needs at least 2 prompts, got {prompts}")
        # The first draw is the data themselves.
        self._of_seeds = np.vstack([np.ones(seeds), rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws)]) / seeds
        self._of_prompts = (
            np.vstack([np.ones(prompts), rng.multinomial(prompts, np.full(prompts, 1 / prompts), draws)]) / prompts
        )
        self._noise = rng.standard_normal((len(self.best), draws + 1))
        self._noise[:, 0] = 0

    @cached_property
    def methods(self) -> list[str]:
        """In the order of the points; Best-of-N last."""
        return list(dict.fromkeys([*(p.method for p in self.points), *(b.method for b in self.best)]))

    def verdicts(self, of: str, against: str) -> list[Verdict]:
        """Every point of a method against the curve of another."""
        kls, rewards = self._curve(against)
        found = []
        for name, strength, kl, reward in self._drawn_points(of):
            gaps = [envelope(kls[:, b], rewards[:, b], kl[b]) - reward[b] for b in range(len(kl))]
            gap = _percentiles(gaps, self._reference.size)
            decision: Decision = "below" if gap.low > 0 else "above" if gap.high < 0 else "not decided"
            found.append(Verdict(name, strength, float(kl[0]), float(reward[0]), against, gap, decision))
        return found

    def order(self, method: str) -> Neighbours:
        """A method's strengths by rising mean KL, each against the one before."""
        points = sorted((p for p in self.points if p.method == method), key=lambda p: p.kls.mean())
        kls = [self._means(p.kls) for p in points]
        rewards = [self._means(p.rewards) for p in points]
        n = self._reference.size
        return Neighbours(
            pairs=[(a.strength, b.strength) for a, b in pairwise(points)],
            kl=[_percentiles(b - a, n) for a, b in pairwise(kls)],
            reward=[_percentiles(b - a, n) for a, b in pairwise(rewards)],
        )

    def share_of_attainable(self, method: str, optimum: Sequence[tuple[float, float]], at: float) -> Interval | None:
        """(R - R_ref) / (R* - R_ref) at a KL, R* being the attainable optimum's reward.

        optimum: (KL, reward) by rising KL, the reference first. None beyond its end, or beyond the method's own points.
        """
        k_star, r_star = (np.asarray(values) for values in zip(*optimum, strict=True))
        kls, rewards = self._curve(method)
        if at > k_star[-1] or at > kls[:, 0].max():
            return None
        attainable = float(np.interp(at, k_star, r_star)) - float(r_star[0])
        reference = self._means(self._reference)
        shares = [(envelope(kls[:, b], rewards[:, b], at) - reference[b]) / attainable for b in range(len(reference))]
        return _percentiles(shares, self._reference.size)

    def _means(self, values: Floats) -> Floats:
        """[S, P] → [B + 1], the first of them on the data themselves."""
        return ((self._of_seeds @ values) * self._of_prompts).sum(axis=1)

    def _curve(self, method: str) -> tuple[Floats, Floats]:
        """KLs and rewards of the reference and of a method's points, [1 + points, B + 1] each."""
        drawn = self._drawn_points(method)
        reference = self._means(self._reference)
        kls = np.vstack([np.zeros(len(reference)), *(kl for _, _, kl, _ in drawn)])
        return kls, np.vstack([reference, *(reward for _, _, _, reward in drawn)])

    def _drawn_points(self, method: str) -> list[tuple[str, str, Floats, Floats]]:
        """Method, strength, KLs [B + 1] and rewards [B + 1]. Best-of-N's own noise is that of its interval."""
        drawn = [
            (p.method, p.strength, self._means(p.kls), self._means(p.rewards))
            for p in self.points
            if p.method == method
        ]
        for i, each in enumerate(self.best):
            if each.method == method:
                spread = (each.reward.high - each.reward.low) / (2 * 1.96)
                kls = np.full(self._noise.shape[1], each.kl)
                drawn.append((each.method, each.strength, kls, each.reward.mean + spread * self._noise[i]))
        return drawn


def mean_line(lines: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """One line out of those of the seeds: mean rewards on a common grid of KLs, as far as all of them reach."""
    end = min(line[-1][0] for line in lines)
    grid = np.linspace(0, end, 33)
    of_seeds = []
    for line in lines:
        kls, rewards = np.asarray(line).T
        of_seeds.append(np.interp(grid, kls, rewards))
    return list(zip(grid.tolist(), np.mean(of_seeds, axis=0).tolist(), strict=True))


def pooled(intervals: Sequence[Interval]) -> Interval:
    """The mean of seeds' intervals on the same prompts, as wide as theirs on average: prompts do not differ by seed."""
    return Interval(
        mean=float(np.mean([each.mean for each in intervals])),
        low=float(np.mean([each.low for each in intervals])),
        high=float(np.mean([each.high for each in intervals])),
        n=sum(each.n for each in intervals),
        groups=intervals[0].groups,
    )


def _percentiles(values: Sequence[float] | Floats, n: int) -> Interval:
    """The first value, which is of the data, between the percentiles of the others."""
    array = np.asarray(values, dtype=np.float64)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(array[1:], [tail, 1 - tail])
    mean = float(array[0])
    return Interval(mean, min(mean, float(low)), max(mean, float(high)), n, n)
