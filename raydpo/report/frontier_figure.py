"""The frontier's figure: true reward against sequence KL, a colour a method."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raydpo.evaluate.frontier import BestOf, Curves, Point
from raydpo.evaluate.stats import Interval
from raydpo.report.figures import GREY, INK

# Okabe and Ito's colours, told apart with any colour vision, and a marker each for whoever prints in grey.
STYLES = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#56B4E9", "P"),
    ("#000000", "X"),
    ("#8A8F98", "*"),
)
RUNAWAY = 10  # times the median KL; a point beyond would press all others into a corner
Line = Sequence[tuple[float, float]]


def reward_against_kl(comparison: Curves, reference: Interval, optimum: Line) -> Figure:
    """All points with intervals both ways, Best-of-N hollow at its bound, and the attainable optimum.

    A point that has run away is named at the edge, at the height of its reward. Thin lines are the evaluations on the
    way to a point.
    """
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    end = _end_of_axis(comparison, optimum)
    axes.axhline(reference.mean, color=GREY, linewidth=0.8)
    _note(axes, "reference", 0, reference.mean)
    if optimum:
        axes.plot(*zip(*optimum, strict=True), color=GREY, linestyle="--", label="attainable optimum")
    for method, (color, marker) in zip(comparison.methods, cycle(STYLES), strict=False):
        points = sorted((p for p in comparison.points if p.method == method), key=lambda p: p.kl.mean)
        near = [point for point in points if point.kl.mean <= end]
        if near:
            _curve(axes, near, method, color, marker)
        for point in points:
            if point.kl.mean > end:
                text = f"{point.label}: {point.kl.mean:.0f} nats →"
                axes.annotate(text, (end, point.reward.mean), ha="right", fontsize=8, color=color)
        best = [each for each in comparison.best if each.method == method]
        if best:
            _at_bounds(axes, best, method, color, marker)
    axes.set_xlim(0, 1.05 * end)
    axes.set_xlabel("sequence KL to the reference (nats)")
    axes.set_ylabel("true reward")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _end_of_axis(comparison: Curves, optimum: Line) -> float:
    """The largest KL that is not a runaway's."""
    kls = sorted(point.kl.mean for point in comparison.points)
    median = kls[len(kls) // 2]
    near = [kl for kl in kls if kl <= RUNAWAY * max(median, 1.0)]
    return max([*near, *(each.kl for each in comparison.best), *(kl for kl, _ in optimum)])


def _curve(axes: Axes, points: Sequence[Point], method: str, color: str, marker: str) -> None:
    kls = [point.kl for point in points]
    rewards = [point.reward for point in points]
    x = [kl.mean for kl in kls]
    y = [reward.mean for reward in rewards]
    axes.errorbar(
        x, y, xerr=_errors(kls), yerr=_errors(rewards), color=color, marker=marker, linewidth=1.2, label=method
    )
    for point in points:
        axes.plot(*zip(*point.course, strict=True), color=color, linewidth=0.6, alpha=0.4)
        _note(axes, point.strength, point.kl.mean, point.reward.mean)


def _at_bounds(axes: Axes, best: Sequence[BestOf], method: str, color: str, marker: str) -> None:
    x = [each.kl for each in best]
    y = [each.reward.mean for each in best]
    axes.errorbar(
        x,
        y,
        yerr=_errors([each.reward for each in best]),
        color=color,
        marker=marker,
        markerfacecolor="none",
        linestyle=":",
        label=f"{method}, at the most that its KL can be",
    )
    for each in best:
        _note(axes, each.strength, each.kl, each.reward.mean)


def _errors(intervals: Sequence[Interval]) -> list[list[float]]:
    return [[each.mean - each.low for each in intervals], [each.high - each.mean for each in intervals]]


def _note(axes: Axes, text: str, x: float, y: float) -> None:
    axes.annotate(text, (x, y), xytext=(5, 5), textcoords="offset points", fontsize=7, color=INK)
