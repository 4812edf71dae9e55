"""The pictures of a run; each function returns a matplotlib Figure of its own and touches no global state.

Colours are Okabe and Ito's, told apart with any colour vision; where two meanings share an axis they also differ in
line style or label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from raydpo.evaluate.records import Evaluation
from raydpo.evaluate.reward_model import Bin
from raydpo.evaluate.stats import Interval
from raydpo.report.best_of_n import BestOfNRecord
from raydpo.report.summary import called, kl_name, measures_of

BLUE = "#0072B2"
ORANGE = "#D55E00"
GREEN = "#009E73"
GREY = "#8A8F98"
INK = "#2B2F36"
# Widths in inches: half a page and a whole one, so that type has one size in both
HALF = 5.0
FULL = 10.0
ROUND = [1, 2, 5, 10]  # ticks fall on multiples of these
LONG_RUN = 30  # steps, from which on a running mean is drawn over the single steps


def training_curves(metrics: Sequence[Mapping[str, Any]], *, at_reference: float | None) -> Figure:
    """What `train/metrics.jsonl` says by step: the loss, and implicit rewards or else log-probs where it has them.

    metrics: its rows; of single completions a row has what is of wanted ones, and of others, where its batch had some.
    at_reference: the loss while policy and reference are the same.
    """
    panels: list[Callable[[Axes, Sequence[Mapping[str, Any]]], None]] = [partial(_loss_panel, at_reference)]
    measured = {name for row in metrics for name in row}
    if "rewards/margins" in measured:
        panels += [_margin_panel, _accuracy_panel, _rewards_panel]
    else:
        panels += [_rewards_panel] if "rewards/chosen" in measured else []
        panels += [_logps_panel] if "logps/chosen" in measured else []
    figure, places = _panels(len(panels))
    for panel, axes in zip(panels, places, strict=True):
        panel(axes, metrics)
        _by_step(axes)
    return figure


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure of two columns with so many axes."""
    rows = math.ceil(count / 2)
    figure = Figure(figsize=(FULL, 3.3 * rows), layout=ConstrainedLayoutEngine(h_pad=0.12))
    panels = list(figure.subplots(rows, 2, squeeze=False).flat)
    for unused in panels[count:]:
        unused.remove()
    return figure, panels[:count]


def _loss_panel(at_reference: float | None, axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> None:
    _curve(axes, metrics, "loss", BLUE)
    if at_reference is not None:
        _level(axes, at_reference, f"{at_reference:.3g}: policy = reference")
    _dress(axes, "Loss", y="mean of the batch")


def _margin_panel(axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> None:
    _curve(axes, metrics, "rewards/margins", BLUE)
    _level(axes, 0, "")
    _dress(axes, "Reward margin of chosen over rejected", y="nats")


def _accuracy_panel(axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> None:
    _curve(axes, metrics, "rewards/accuracies", BLUE)
    _level(axes, 0.5, "chance")
    _in_percent(axes)
    _dress(axes, "Pairs ranked right", y="share of the batch")


def _rewards_panel(axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> None:
    _chosen_and_rejected(axes, metrics, "rewards")
    _level(axes, 0, "")
    _dress(axes, "Implicit rewards", y="nats")


def _logps_panel(axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> None:
    _chosen_and_rejected(axes, metrics, "logps")
    _dress(axes, "Log-probs of the completions", y="nats")


def _chosen_and_rejected(axes: Axes, metrics: Sequence[Mapping[str, Any]], name: str) -> None:
    _curve(axes, metrics, f"{name}/chosen", BLUE, label="chosen")
    _curve(axes, metrics, f"{name}/rejected", ORANGE, label="rejected", style="--")
    axes.legend(frameon=False, fontsize=9)


def measures_by_step(evaluations: Sequence[Evaluation]) -> Figure:
    """Every measure that any of the evaluations has, by step and with 95 % bands."""
    shown = measures_of(evaluations)
    figure, panels = _panels(len(shown))
    for name, axes in zip(shown, panels, strict=True):
        having = [each for each in evaluations if name in each.measures]
        _band(axes, [each.step for each in having], [each.measures[name] for each in having], BLUE)
        title = kl_name(evaluations) if name == "kl" else called(name)
        _dress(axes, title[:1].upper() + title[1:])
        _by_step(axes)
    return figure


def rewards_by_kl(evaluations: Sequence[Evaluation]) -> Figure | None:
    """Reward against sequence KL: one point an evaluation, in the order of the steps, with 95 % intervals.

    None unless every evaluation has a sequence KL.
    """
    kls = [evaluation.sequence_kl for evaluation in evaluations if evaluation.sequence_kl]
    if len(kls) < len(evaluations):
        return None
    figure = Figure(figsize=(HALF, 3.7), layout="constrained")
    axes = figure.subplots()
    rewards = [evaluation.measures["reward"] for evaluation in evaluations]
    x = [kl.mean for kl in kls]
    y = [reward.mean for reward in rewards]
    axes.plot(x, y, color=GREY, linewidth=1, zorder=1)
    axes.errorbar(x, y, xerr=_errors(kls), yerr=_errors(rewards), fmt="o", color=BLUE, elinewidth=1, markersize=6)
    for evaluation, at in zip(evaluations, zip(x, y, strict=True), strict=True):
        label = f"step {evaluation.step}" if evaluation.step else "reference"
        axes.annotate(label, at, xytext=(7, -12), textcoords="offset points", fontsize=9, color=INK)
    axes.margins(x=0.15, y=0.15)
    _dress(axes, "Reward against distance", x="sequence KL to the reference (nats)", y="scorer's reward")
    return figure


def best_of_n_against_kl(record: BestOfNRecord, evaluations: Sequence[Evaluation]) -> Figure:
    """True reward against KL: Best-of-N by each reward, filled where measured and hollow at the bound, and π*.

    evaluations: those of policies that may stand beside it; each has a sequence KL.
    """
    figure = Figure(figsize=(FULL, 4.2), layout="constrained")
    axes = figure.subplots()
    start = record.reference.mean
    optimum = [(0.0, start), *((point.kl.mean, point.reward.mean) for point in record.optimum)]
    axes.plot(*zip(*optimum, strict=True), color=GREY, linestyle="--", label="attainable: π* ∝ π_ref · exp(r/β)")
    names = list(dict.fromkeys(row.selected_by for row in record.selections))
    for name, colour in zip(names, cycle((ORANGE, GREEN, INK)), strict=False):
        rows = [row for row in record.selections if row.selected_by == name]
        x = [row.kl.mean for row in rows]
        y = [row.reward.mean for row in rows]
        axes.errorbar(
            x, y, yerr=_errors([row.reward for row in rows]), fmt="s-", color=colour, label=f"best of N by {name}"
        )
        axes.plot([row.kl_bound for row in rows], y, "s", color=colour, fillstyle="none", markersize=9)
        for row, at in zip(rows, zip(x, y, strict=True), strict=True):
            axes.annotate(f"{row.n}", at, xytext=(7, -12), textcoords="offset points", fontsize=9, color=INK)
    kls = [evaluation.sequence_kl for evaluation in evaluations if evaluation.sequence_kl]
    rewards = [evaluation.measures["reward"] for evaluation in evaluations]
    if kls:
        where = [kl.mean for kl in kls]
        what = [reward.mean for reward in rewards]
        axes.errorbar(
            where, what, xerr=_errors(kls), yerr=_errors(rewards), fmt="o", color=BLUE, label="this run's policies"
        )
    axes.legend(frameon=False, fontsize=9)
    _dress(axes, "Best-of-N", x="KL to the reference (nats)", y=f"{record.true_reward} reward")
    return figure


def reliability_plot(bins: Sequence[Bin]) -> Figure:
    """How often a reward model is right, by the probability that it gives the completion that it prefers.

    The area of a dot is the share of the pairs that it stands for; on the line sureness and accuracy are equal.
    """
    figure = Figure(figsize=(HALF, 3.7), layout="constrained")
    axes = figure.subplots()
    some = [
        (each.confidence, each.accuracy, each.pairs) for each in bins if each.confidence and each.accuracy is not None
    ]
    x, y, pairs = zip(*some, strict=True)
    axes.plot([0.5, 1], [0.5, 1], color=GREY, linestyle="--", linewidth=1, zorder=1)
    axes.plot(x, y, color=BLUE, linewidth=1, zorder=2)
    axes.scatter(x, y, s=[12 + 600 * each / sum(pairs) for each in pairs], color=BLUE, alpha=0.6, zorder=3)
    axes.set_xlim(0.48, 1.02)
    axes.set_ylim(bottom=min(0.48, min(y) - 0.04), top=1.04)
    _in_percent(axes)
    _dress(axes, "Sureness against accuracy", x="σ(|difference of rewards|)", y="pairs ranked right")
    return figure


def reward_distribution(evaluations: Sequence[Evaluation]) -> Figure:
    """Histogram of the samples' rewards in the first and the last evaluation."""
    rewards = {_name(each): each.column("reward") for each in _ends(evaluations)}
    bins = np.histogram_bin_edges(np.concatenate(list(rewards.values())), bins=24)
    return _histograms(rewards, bins.tolist(), "Rewards of the samples", "scorer's reward")


def length_distribution(evaluations: Sequence[Evaluation]) -> Figure:
    """Histogram of the completions' lengths in the first and the last evaluation."""
    lengths = {_name(each): each.column("length") for each in _ends(evaluations)}
    low = min(map(min, lengths.values()))
    high = max(map(max, lengths.values()))
    width = max(1, math.ceil((high - low + 1) / 24))  # whole tokens: every bar holds the same number of lengths
    bins = np.arange(low - 0.5, high + width, width)
    return _histograms(lengths, bins.tolist(), "Lengths of the completions", "tokens")


def stage_seconds(stages: Mapping[str, float]) -> Figure:
    """Horizontal bars of where the seconds went, in the order of the stages."""
    figure = Figure(figsize=(FULL, 0.8 + 0.42 * len(stages)), layout="constrained")
    axes = figure.subplots()
    total = sum(stages.values()) or 1.0
    bars = axes.barh(list(stages), list(stages.values()), color=BLUE, height=0.62)
    labels = [f"{seconds:,.1f} s  ·  {seconds / total:.0%}" for seconds in stages.values()]
    axes.bar_label(bars, labels, padding=6, fontsize=9, color=INK)
    axes.invert_yaxis()
    axes.margins(x=0.16)
    _dress(axes, f"Where {total:,.0f} seconds went", x="seconds")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", labelsize=10, labelcolor=INK)
    return figure


def _curve(
    axes: Axes, metrics: Sequence[Mapping[str, Any]], key: str, colour: str, *, label: str = "", style: str = "-"
) -> None:
    measured = [row for row in metrics if key in row]
    steps = [row["step"] for row in measured]
    values = [row[key] for row in measured]
    # Over many steps markers would be a smear, and single batches hide the course.
    if len(values) < LONG_RUN:
        axes.plot(steps, values, color=colour, label=label, linestyle=style, linewidth=1.6, marker="o", markersize=4)
        return
    axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
    axes.plot(steps, _running_mean(values, len(values) // 15), color=colour, label=label, linestyle=style, linewidth=2)


def _running_mean(values: Sequence[float], reach: int) -> list[float]:
    """Mean over the values at most `reach` places away: the window shrinks at both ends instead of inventing data."""
    return [float(np.mean(values[max(0, i - reach) : i + reach + 1])) for i in range(len(values))]


def _band(axes: Axes, steps: Sequence[int], intervals: Sequence[Interval], colour: str) -> None:
    means = [interval.mean for interval in intervals]
    lows = [interval.low for interval in intervals]
    highs = [interval.high for interval in intervals]
    axes.fill_between(steps, lows, highs, color=colour, alpha=0.15, linewidth=0)
    axes.errorbar(steps, means, yerr=_errors(intervals), color=colour, marker="o", elinewidth=1, capsize=3)


def _errors(intervals: Sequence[Interval]) -> list[list[float]]:
    below = [interval.mean - interval.low for interval in intervals]
    return [below, [interval.high - interval.mean for interval in intervals]]


def _histograms(groups: Mapping[str, Sequence[float]], bins: Sequence[float], title: str, unit: str) -> Figure:
    """Draw at most two groups over each other, as shares of their samples, with the means marked."""
    figure = Figure(figsize=(HALF, 3.7), layout="constrained")
    axes = figure.subplots()
    for (name, values), colour, style in zip(groups.items(), (GREY, BLUE), ("--", "-"), strict=False):
        # Shares and not counts, because the two evaluations may have different numbers of samples.
        weights = np.full(len(values), 1 / len(values))
        axes.hist(values, bins, weights=weights, color=colour, alpha=0.35, label=name)
        axes.hist(values, bins, weights=weights, color=colour, histtype="step", linewidth=1.4, linestyle=style)
        axes.axvline(float(np.mean(values)), 0, 0.8, color=colour, linewidth=1.6, linestyle=style)
    _in_percent(axes)
    axes.set_ylim(top=1.32 * axes.get_ylim()[1])  # room for the legend above the bars
    axes.legend(loc="upper left", ncols=2, fontsize=9, frameon=False, title="vertical lines: means", alignment="left")
    _dress(axes, title, x=unit, y="share of samples")
    return figure


def _ends(evaluations: Sequence[Evaluation]) -> Sequence[Evaluation]:
    return [evaluations[0], evaluations[-1]] if len(evaluations) > 1 else evaluations


def _name(evaluation: Evaluation) -> str:
    return f"policy, step {evaluation.step}" if evaluation.step else "reference"


def _level(axes: Axes, value: float, label: str) -> None:
    """Mark a value that means something by a dotted line, named at its right end."""
    axes.axhline(value, color=GREY, linewidth=1, linestyle=":", zorder=0)
    axes.annotate(
        label,
        xy=(1, value),
        xycoords=("axes fraction", "data"),
        xytext=(-4, 2),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=8,
        color="#6B717C",
    )


def _in_percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=ROUND))


def _by_step(axes: Axes) -> None:
    axes.set_xlabel("step", fontsize=9, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=ROUND, min_n_ticks=1))


def _dress(axes: Axes, title: str, *, x: str = "", y: str = "") -> None:
    axes.set_title(title, fontsize=11, loc="left", color=INK, fontweight="bold")
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    axes.tick_params(labelsize=8.5, color=GREY, labelcolor="#555B66", length=3)
    axes.grid(color="#E6E8EC", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#C9CDD3")
