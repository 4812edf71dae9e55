"""The run in a few lines: reference against policy, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raydpo.evaluate.records import Evaluation
from raydpo.evaluate.stats import Interval, overlap, paired_difference

DIGITS = {"reward": 3, "sequence KL (nats)": 2, "length (tokens)": 1, "pair accuracy": 3}  # the table's rows


@dataclass(frozen=True)
class SummaryRow:
    """One quantity before and after training, ready to print."""

    name: str
    before: str
    after: str
    verdict: str  # whether the two intervals overlap; empty where there are not two


def reference_and_policy(evaluations: Sequence[Evaluation]) -> tuple[Evaluation | None, Evaluation | None]:
    """The evaluation of step 0 and the last one after it; None for the one that is missing."""
    before = next((evaluation for evaluation in evaluations if evaluation.step == 0), None)
    after = evaluations[-1] if evaluations and evaluations[-1].step > 0 else None
    return before, after


def summary_rows(evaluations: Sequence[Evaluation]) -> list[SummaryRow]:
    """Reward, sequence KL, length and pair accuracy, in this order."""
    before, after = (_measured(evaluation) for evaluation in reference_and_policy(evaluations))
    return [_row(name, before.get(name), after.get(name), digits) for name, digits in DIGITS.items()]


def reward_gain(evaluations: Sequence[Evaluation]) -> Interval | None:
    """Interval of the reward's change, prompt by prompt; None unless both ends saw the same prompts."""
    before, after = reference_and_policy(evaluations)
    if before is None or after is None:
        return None
    if [sample.prompt for sample in before.samples] != [sample.prompt for sample in after.samples]:
        return None
    return paired_difference(_rewards(before), _rewards(after))


def summary_table(evaluations: Sequence[Evaluation]) -> str:
    """The table that the terminal shows, one quantity a line, with 95 % intervals in brackets."""
    if not evaluations:
        return "No evaluations: the run file has no evaluate section, or its stage has not run."
    before, after = reference_and_policy(evaluations)
    head = SummaryRow("", "reference", f"policy, step {after.step}" if after else "policy", "95 % intervals")
    rows = [head, *summary_rows(evaluations)]
    width = [max(len(text) for text in column) for column in zip(*map(_cells, rows), strict=True)]
    lines = [
        "  ".join(cell.ljust(size) for cell, size in zip(_cells(row), width, strict=True)).rstrip() for row in rows
    ]
    samples = (after or before or evaluations[0]).reward.n
    gain = reward_gain(evaluations)
    change = f"; reward on the same prompts {format_gain(gain)}" if gain else ""
    return "\n".join([*lines, f"{samples} samples{change}"])


def format_interval(interval: Interval | None, digits: int) -> str:
    """`0.503 [0.470, 0.536]`, or the value alone where it has no spread, or `not measured`."""
    if interval is None:
        return "not measured"
    mean, low, high = (_number(value, digits) for value in (interval.mean, interval.low, interval.high))
    return mean if interval.low == interval.high else f"{mean} [{low}, {high}]"


def format_gain(gain: Interval) -> str:
    """`+0.319 [+0.281, +0.357]`."""
    return f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


def _measured(evaluation: Evaluation | None) -> dict[str, Interval | None]:
    """The intervals of an evaluation under the names of DIGITS; none of them for no evaluation."""
    if evaluation is None:
        return {}
    values = evaluation.reward, evaluation.kl, evaluation.length, evaluation.pair_accuracy
    return dict(zip(DIGITS, values, strict=True))


def _rewards(evaluation: Evaluation) -> list[float]:
    return [sample.reward for sample in evaluation.samples]


def _row(name: str, before: Interval | None, after: Interval | None, digits: int) -> SummaryRow:
    verdict = ""
    if before and after:
        verdict = "overlap" if overlap(before, after) else "do not overlap"
    return SummaryRow(name, format_interval(before, digits), format_interval(after, digits), verdict)


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"


def _cells(row: SummaryRow) -> tuple[str, str, str, str]:
    arrow = "→ " if row.name else "  "
    return row.name, row.before, arrow + row.after, row.verdict
