"""The comparison of runs: one HTML file that needs nothing beside it, and the same tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from raydpo.report.compare_figures import frontiers, measure_curves, metric_curves
from raydpo.report.compared import ComparedRun
from raydpo.report.comparison import (
    cells_of,
    difference_tables,
    differing_settings,
    judged_tables,
    measure_tables,
    samples_side_by_side,
)
from raydpo.report.rendering import Picture, make_picture, render
from raydpo.report.summary import sample_line
from raydpo.report.win_rates import Table, as_text
from raydpo.storage.files import write_text

SAMPLES = 16  # prompts of which the page shows what the runs made


@dataclass(frozen=True)
class Comparison:
    """All tables, ready to print."""

    differing: Table
    measures: list[Table]
    differences: list[Table]
    judged: list[Table]

    @classmethod
    def of(cls, runs: Sequence[ComparedRun]) -> Comparison:
        """Set the runs beside each other; the differences are from the first."""
        return cls(differing_settings(runs), measure_tables(runs), difference_tables(runs), judged_tables(runs))


def comparison_text(runs: Sequence[ComparedRun]) -> str:
    """What the terminal shows: tables first, then what is missing or damaged."""
    found = Comparison.of(runs)
    tables = [found.differing, *found.measures, *found.differences, *found.judged]
    parts = [as_text(table) for table in tables if table.rows]
    if not found.differing.rows:
        parts.insert(0, "No setting differs.")
    problems = [f"{run.name}: {problem}" for run in runs for problem in run.problems]
    return "\n\n".join([*parts, "\n".join(problems)] if problems else parts)


def write_comparison(runs: Sequence[ComparedRun], path: Path) -> None:
    """Write the page, whole or not at all."""
    page = render(
        "compare.html.j2",
        runs=runs,
        found=Comparison.of(runs),
        pictures={picture.name: picture for picture in _pictures(runs)},
        samples=samples_side_by_side(runs, SAMPLES),
        sample_line=sample_line,
    )
    write_text(path, page)


def _pictures(runs: Sequence[ComparedRun]) -> Iterator[Picture]:
    if curves := metric_curves(runs):
        yield make_picture("metrics", "Metrics of training by step", curves)
    for cell in cells_of(runs)[:1]:  # by temperature and prompt set the tables say it
        if measures := measure_curves(runs, cell):
            yield make_picture("measures", "Measures of the evaluations by step", measures)
        if points := frontiers(runs, cell):
            yield make_picture("frontier", "Reward against sequence KL", points)
