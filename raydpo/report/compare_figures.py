"""The pictures of a comparison: every run has one colour, and one line style, in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raydpo.evaluate.contests import Cell
from raydpo.evaluate.stats import Interval
from raydpo.report.compared import ComparedRun, is_number
from raydpo.report.comparison import in_cell
from raydpo.report.figures import BLUE, FULL, GREEN, INK, ORANGE, _by_step, _curve, _dress, _errors, _panels
from raydpo.report.summary import called, measures_of

CURVES = {  # of metrics.jsonl: name -> title, unit
    "loss": ("Loss", "mean of the batch"),
    "rewards/accuracies": ("Pairs ranked right", "share of the batch"),
    "rewards/margins": ("Reward margin of chosen over rejected", "nats"),
    "rewards/chosen": ("Implicit reward of chosen", "nats"),
    "logps/chosen": ("Log-probs of chosen", "nats"),
    "grad_norm": ("Norm of the gradient", ""),
}
COLOURS = [BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", INK]  # Okabe and Ito's
STYLES = ["-", "--", ":"]  # of neighbours they differ, so that of two curves at one place both show
Look = tuple[str, str]  # colour and line style


def looks(runs: Sequence[ComparedRun]) -> list[Look]:
    """How each run is drawn."""
    return list(islice(zip(cycle(COLOURS), cycle(STYLES), strict=False), len(runs)))


def metric_curves(runs: Sequence[ComparedRun]) -> Figure | None:
    """Each metric that any run has, by step; None where no run has trained."""
    shown = [name for name in CURVES if any(name in row for run in runs for row in run.metrics)]
    if not shown:
        return None
    figure, panels = _panels(len(shown))
    for name, axes in zip(shown, panels, strict=True):
        for run, (colour, style) in zip(runs, looks(runs), strict=True):
            rows = [row for row in run.metrics if is_number(row.get(name))]
            if rows:
                _curve(axes, rows, name, colour, label=run.name, style=style)
        title, unit = CURVES[name]
        _dress(axes, title, y=unit)
        _by_step(axes)
    _legend(figure, panels)
    return figure


def measure_curves(runs: Sequence[ComparedRun], cell: Cell) -> Figure | None:
    """Each measure that any run's evaluations have, by step and with 95 % intervals; None without evaluations."""
    shown = measures_of([each for run in runs for each in in_cell(run, cell)])
    if not shown:
        return None
    figure, panels = _panels(len(shown))
    for name, axes in zip(shown, panels, strict=True):
        for run, look in zip(runs, looks(runs), strict=True):
            found = [(each.step, each.measures[name]) for each in in_cell(run, cell) if name in each.measures]
            _with_intervals(axes, [step for step, _ in found], [interval for _, interval in found], look, run.name)
        _dress(axes, called(name))
        _by_step(axes)
    _legend(figure, panels)
    return figure


def frontiers(runs: Sequence[ComparedRun], cell: Cell) -> Figure | None:
    """Reward against sequence KL, a line a run through its evaluations; None where no run has a sequence KL."""
    figure = Figure(figsize=(FULL, 4.6), layout="constrained")
    axes = figure.subplots()
    drawn = False
    for run, (colour, style) in zip(runs, looks(runs), strict=True):
        points = [(each.sequence_kl, each.measures["reward"]) for each in in_cell(run, cell) if each.sequence_kl]
        if not points:
            continue
        drawn = True
        kls = [kl for kl, _ in points]
        rewards = [reward for _, reward in points]
        axes.errorbar(
            [kl.mean for kl in kls],
            [reward.mean for reward in rewards],
            xerr=_errors(kls),
            yerr=_errors(rewards),
            color=colour,
            linestyle=style,
            marker="o",
            elinewidth=1,
            label=run.name,
        )
    if not drawn:
        return None
    _dress(axes, "Reward against distance", x="sequence KL to the run's reference (nats)", y="reward")
    axes.legend(frameon=False, fontsize=9)
    return figure


def _with_intervals(axes: Axes, steps: Sequence[int], intervals: Sequence[Interval], look: Look, label: str) -> None:
    colour, style = look
    if not steps:
        return
    means = [interval.mean for interval in intervals]
    axes.errorbar(
        steps,
        means,
        yerr=_errors(intervals),
        color=colour,
        linestyle=style,
        marker="o",
        markersize=4,
        elinewidth=1,
        capsize=2,
        label=label,
    )


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend over all panels, since a run that lacks a metric is missing in some of them."""
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
