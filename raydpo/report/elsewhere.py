"""Evaluations on all sets of prompts and at all temperatures, beside each other."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from matplotlib.figure import Figure

from raydpo.evaluate.contests import cell_of
from raydpo.evaluate.records import Evaluation
from raydpo.report.figures import BLUE, FULL, GREY, HALF, _dress, _errors
from raydpo.report.summary import reference_and_policy, summary_rows
from raydpo.report.win_rates import Table

Everywhere = Sequence[Sequence[Evaluation]]
"""By set of prompts and temperature, the section's own first; of each the evaluations by rising step."""


def table_by_set(everywhere: Everywhere, measures: Collection[str] = ()) -> Table:
    """Reference and last policy on each set at each temperature. measures: the rows' names; all by default."""
    rows: list[Sequence[str]] = []
    for evaluations in filter(None, everywhere):
        prompt_set, temperature = cell_of(evaluations[0])
        for row in summary_rows(evaluations):
            if not measures or row.name in measures:
                rows.append([prompt_set or "own", f"{temperature:g}", row.name, row.before, row.after, row.change])
    head = ["set", "temperature", "", "reference", "policy", "change on the same prompts"]
    return Table("By set of prompts and temperature", head, rows)


def reward_by_temperature(everywhere: Everywhere) -> Figure | None:
    """The reward of reference and last policy by temperature with 95 % intervals, a panel for each set of prompts.

    None where no set was sampled at two temperatures.
    """
    by_set: dict[str, dict[float, Sequence[Evaluation]]] = {}
    for evaluations in filter(None, everywhere):
        prompt_set, temperature = cell_of(evaluations[0])
        by_set.setdefault(prompt_set, {})[temperature] = evaluations
    shown = {name: by_temperature for name, by_temperature in by_set.items() if len(by_temperature) > 1}
    if not shown:
        return None
    figure = Figure(figsize=(FULL if len(shown) > 1 else HALF, 3.7 * -(-len(shown) // 2)), layout="constrained")
    panels = figure.subplots(-(-len(shown) // 2), min(2, len(shown)), squeeze=False, sharey=True).flat
    for (name, by_temperature), axes in zip(shown.items(), panels, strict=False):
        for place, (label, colour, style) in enumerate((("reference", GREY, "--"), ("policy", BLUE, "-"))):
            found = {at: reference_and_policy(each)[place] for at, each in sorted(by_temperature.items())}
            intervals = {at: each.measures["reward"] for at, each in found.items() if each}
            means = [interval.mean for interval in intervals.values()]
            errors = _errors(list(intervals.values()))
            axes.errorbar(list(intervals), means, yerr=errors, color=colour, linestyle=style, marker="o", label=label)
        _dress(axes, f"{name or 'own'} prompts", x="temperature", y="reward")
        axes.legend(frameon=False, fontsize=9)
    for unused in figure.axes[len(shown) :]:
        unused.remove()
    return figure
