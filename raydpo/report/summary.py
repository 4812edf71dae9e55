"""The run in a few lines: reference against policy, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from raydpo.evaluate.records import Evaluation, RatedSample
from raydpo.evaluate.stats import Interval, paired_difference
from raydpo.evaluate.text import distinct, self_bleu

DIGITS = {"reward": 3, "summed_kl": 2, "length": 1, "cut": 3, "pair_accuracy": 3}  # the table's rows
NAMES = {
    "reward": "reward",
    "length": "length (tokens)",
    "cut": "cut at max_tokens (share)",
    "pair_accuracy": "pair accuracy",
}
COMPARED = ("reward", "length")  # not the KL: the reference's is 0 by definition, so any interval excludes it


@dataclass(frozen=True)
class SummaryRow:
    """One quantity before and after training, ready to print."""

    name: str
    before: str
    after: str
    change: str  # from prompt to prompt, and whether it may be none; empty for what is not compared


def reference_and_policy(evaluations: Sequence[Evaluation]) -> tuple[Evaluation | None, Evaluation | None]:
    """The evaluation of step 0 and the last one after it; None for the one that is missing."""
    before = next((evaluation for evaluation in evaluations if evaluation.step == 0), None)
    after = evaluations[-1] if evaluations and evaluations[-1].step > 0 else None
    return before, after


def kl_name(evaluations: Sequence[Evaluation]) -> str:
    """What the summed KLs are: the sequence KL where all samples come from π, else no more than what they are."""
    exact = all(evaluation.sequence_kl for evaluation in evaluations)
    return "sequence KL (nats)" if exact else "summed token KL (nats)"


def summary_rows(evaluations: Sequence[Evaluation]) -> list[SummaryRow]:
    """Reward, KL, length, completions that were cut, pair accuracy and how alike the samples are, in this order."""
    before, after = reference_and_policy(evaluations)
    names = NAMES | {"summed_kl": kl_name(evaluations)}
    measured = [
        SummaryRow(
            name=names[quantity],
            before=format_interval(_interval(before, quantity), digits),
            after=format_interval(_interval(after, quantity), digits),
            change=_change(before, after, quantity) if before and after and quantity in COMPARED else "",
        )
        for quantity, digits in DIGITS.items()
    ]
    return [*measured, *_likeness_rows(before, after)]


def _likeness_rows(before: Evaluation | None, after: Evaluation | None) -> list[SummaryRow]:
    """Of all samples of a model together: a policy that has collapsed repeats itself."""
    measures = {"distinct-2": _distinct_2, "self-BLEU": _self_bleu}
    return [SummaryRow(name, measure(before), measure(after), change="") for name, measure in measures.items()]


def _distinct_2(evaluation: Evaluation | None) -> str:
    return _number(distinct(_texts(evaluation), 2), 3) if evaluation else "not measured"


def _self_bleu(evaluation: Evaluation | None) -> str:
    return _number(fmean(self_bleu(_texts(evaluation))), 3) if evaluation else "not measured"


def _texts(evaluation: Evaluation) -> list[str]:
    return [sample.completion for sample in evaluation.samples]


def reward_gain(evaluations: Sequence[Evaluation]) -> Interval | None:
    """Interval of the reward's change, prompt by prompt; None unless both ends saw the same prompts."""
    before, after = reference_and_policy(evaluations)
    return difference(before, after, "reward") if before and after else None


def difference(before: Evaluation, after: Evaluation, quantity: str) -> Interval | None:
    """Interval of the mean change of a quantity of the samples, prompt by prompt; None where the prompts differ."""
    prompts = [sample.prompt for sample in before.samples]
    if prompts != [sample.prompt for sample in after.samples]:
        return None
    return paired_difference(_values(before.samples, quantity), _values(after.samples, quantity), prompts)


def summary_table(evaluations: Sequence[Evaluation]) -> str:
    """The table that the terminal shows, one quantity a line, with 95 % intervals in brackets."""
    if not evaluations:
        return "No evaluations: the run file has no evaluate section, its stage has not run, or all are left out."
    before, after = reference_and_policy(evaluations)
    head = SummaryRow(
        "", "reference", f"policy, step {after.step}" if after else "policy", "change on the same prompts"
    )
    rows = [head, *summary_rows(evaluations)]
    width = [max(len(text) for text in column) for column in zip(*map(_cells, rows), strict=True)]
    lines = [
        "  ".join(cell.ljust(size) for cell, size in zip(_cells(row), width, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([*lines, basis(after or before or evaluations[0])])


def basis(evaluation: Evaluation) -> str:
    """What the intervals of an evaluation rest on, in half a sentence."""
    pairs = evaluation.pair_accuracy
    held_out = f", {pairs.n} held-out pairs of {pairs.groups} prompts" if pairs else ""
    reward = evaluation.reward
    return (
        f"95 % intervals over {reward.n} samples of {reward.groups} prompts{held_out}; {evaluation.made_from.decoding}"
    )


def format_interval(interval: Interval | None, digits: int) -> str:
    """`0.503 [0.470, 0.536]`, or the value alone where it has no spread, or `not measured`."""
    if interval is None:
        return "not measured"
    mean, low, high = (_number(value, digits) for value in (interval.mean, interval.low, interval.high))
    return mean if interval.low == interval.high else f"{mean} [{low}, {high}]"


def format_change(change: Interval, digits: int) -> str:
    """A change with its interval, each with its sign: `+0.319 [+0.281, +0.357]`."""
    mean, low, high = (f"{value:+.{digits}f}" for value in (change.mean, change.low, change.high))
    return f"{mean} [{low}, {high}]"


def _change(before: Evaluation, after: Evaluation, quantity: str) -> str:
    change = difference(before, after, quantity)
    if change is None:
        return "other prompts: not compared"
    certain = change.low > 0 or change.high < 0
    return f"{format_change(change, DIGITS[quantity])}: {'not 0' if certain else 'may be 0'}"


def _interval(evaluation: Evaluation | None, quantity: str) -> Interval | None:
    interval: Interval | None = getattr(evaluation, quantity) if evaluation else None
    return interval


def _values(samples: Sequence[RatedSample], quantity: str) -> list[float]:
    return [getattr(sample, quantity) for sample in samples]


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"


def _cells(row: SummaryRow) -> tuple[str, str, str, str]:
    arrow = "→ " if row.name else "  "
    return row.name, row.before, arrow + row.after, row.change
