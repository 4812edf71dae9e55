"""The course of a metric over the steps of a run: its beginning, its end, and what lies between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Metrics = Sequence[Mapping[str, Any]]
"""Lines of metrics.jsonl by rising step; a line may lack any metric, or have null for it."""

FLOAT32_MAX = 3.4e38  # what training computes in; a larger number is no measurement
MIN_STEPS = 10  # fewer show no course
WINDOW_SHARE = 0.1  # of the steps: beginning and end are a tenth each, as in the report's facts
WINDOW_LEAST = 3  # steps: the spread of fewer says nothing


@dataclass(frozen=True)
class Course:
    """A metric's values by rising step, those that are numbers."""

    steps: tuple[int, ...]
    values: NDArray[np.float64]  # one a step, at least one

    @property
    def first(self) -> float:
        """The first value."""
        return float(self.values[0])

    @property
    def mean(self) -> float:
        """The mean over all steps."""
        return float(self.values.mean())

    @property
    def span(self) -> str:
        """The first and the last step in words: `steps 91 to 101`."""
        return f"steps {self.steps[0]} to {self.steps[-1]}"

    @property
    def window(self) -> int:
        """Steps that count as the beginning or the end."""
        return max(WINDOW_LEAST, int(WINDOW_SHARE * len(self.values)))

    @property
    def begin(self) -> Course:
        """The first tenth of the course."""
        return self.part(0, self.window)

    @property
    def end(self) -> Course:
        """The last tenth of the course."""
        return self.part(len(self.values) - self.window, len(self.values))

    def part(self, first: int, stop: int) -> Course:
        """The course over the steps from place `first` up to `stop`, which is left out."""
        return Course(self.steps[first:stop], self.values[first:stop])


def course_of(metrics: Metrics, name: str) -> Course | None:
    """A metric over the run; None where fewer than MIN_STEPS steps have it."""
    found = [(row["step"], row[name]) for row in metrics if _is_number(row.get("step")) and _is_number(row.get(name))]
    if len(found) < MIN_STEPS:
        return None
    steps, values = zip(*found, strict=True)
    return Course(steps, np.asarray(values, dtype=np.float64))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < FLOAT32_MAX  # NaN is not
