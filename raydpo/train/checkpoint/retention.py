"""Which commits stay."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Retention:
    """The newest `last` commits stay, those at multiples of `every`, and the one that evaluated best.

    scores() maps evaluated steps to a figure, the higher the better. Evaluation runs beside training and comes late:
    where it is due at multiples of `evaluated_every`, a commit stays until its figure, or that of a later step, is in.
    """

    last: int
    every: int | None = None  # steps
    scores: Callable[[], Mapping[int, float]] = dict
    evaluated_every: int | None = None  # steps; None when the best is not asked for

    def kept(self, steps: Collection[int]) -> set[int]:
        """Those of the steps that stay; the highest always does."""
        kept = set(sorted(steps)[-self.last :])
        if self.every:
            kept |= {step for step in steps if step % self.every == 0}
        if self.evaluated_every:
            scores = self.scores()
            measured = [step for step in steps if step in scores]
            kept |= {max(measured, key=lambda step: (scores[step], step))} if measured else set()
            awaited_after = max(scores, default=0)
            kept |= {step for step in steps if step > awaited_after and step % self.evaluated_every == 0}
        return kept
