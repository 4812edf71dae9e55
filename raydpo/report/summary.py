"""The run in a few lines: reference against policy, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raydpo.evaluate.records import Evaluation, RatedSample
from raydpo.evaluate.stats import Interval, paired_difference

_NAMES = {  # of measures whose own name says too little
    "kl": "summed token KL (nats)",
    "length": "length (tokens)",
    "cut": "cut at max_tokens (share)",
    "distinct_2": "distinct-2",
    "self_bleu": "self-BLEU",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
}
_DIGITS = {"kl": 2, "length": 1}


@dataclass(frozen=True)
class SummaryRow:
    """One quantity before and after training, ready to print."""

    name: str
    before: str
    after: str
    change: str  # from prompt to prompt, and whether it may be none; empty for what is not compared


def called(measure: str) -> str:
    """A measure as tables and figures call it."""
    return _NAMES.get(measure, measure.replace("_", " "))


def digits_of(measure: str) -> int:
    """Decimals that it is shown with."""
    return _DIGITS.get(measure, 3)


def measures_of(evaluations: Sequence[Evaluation]) -> list[str]:
    """The measures that any of the evaluations has; those of the last, which may have more, in its order first."""
    return list(dict.fromkeys(name for each in reversed(evaluations) for name in each.measures))


def reference_and_policy(evaluations: Sequence[Evaluation]) -> tuple[Evaluation | None, Evaluation | None]:
    """The evaluation of step 0 and the last one after it; None for the one that is missing."""
    before = next((evaluation for evaluation in evaluations if evaluation.step == 0), None)
    after = evaluations[-1] if evaluations and evaluations[-1].step > 0 else None
    return before, after


def kl_name(evaluations: Sequence[Evaluation]) -> str:
    """What the summed KLs are: the sequence KL where all samples come from π, else no more than what they are."""
    exact = all(evaluation.sequence_kl for evaluation in evaluations)
    return "sequence KL (nats)" if exact else called("kl")


def summary_rows(evaluations: Sequence[Evaluation]) -> list[SummaryRow]:
    """A row for each measure of the reference and of the last policy."""
    before, after = reference_and_policy(evaluations)
    ends = [each for each in (before, after) if each]
    return [
        SummaryRow(
            name=kl_name(evaluations) if measure == "kl" else called(measure),
            before=_shown(before, measure),
            after=_shown(after, measure),
            change=_change(before, after, measure) if before and after else "",
        )
        for measure in measures_of(ends)
    ]


def reward_gain(evaluations: Sequence[Evaluation]) -> Interval | None:
    """Interval of the reward's change, prompt by prompt; None unless both ends saw the same prompts."""
    before, after = reference_and_policy(evaluations)
    return difference(before, after, "reward") if before and after else None


def difference(before: Evaluation, after: Evaluation, measure: str) -> Interval | None:
    """Interval of the mean change of a measure of the samples, prompt by prompt; None where the prompts differ."""
    prompts = [sample.prompt for sample in before.samples]
    if prompts != [sample.prompt for sample in after.samples]:
        return None
    return paired_difference(before.column(measure), after.column(measure), prompts)


def sample_line(sample: RatedSample) -> str:
    """What is measured of one sample: `reward 0.312 · kl 1.2 · length 34`."""
    parts = [f"{name.replace('_', ' ')} {round(value, 3):g}" for name, value in sample.numbers.items()]
    return " · ".join([*parts, "cut at the token limit"] if sample.finish_reason == "length" else parts)


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
    pairs = evaluation.measures.get("pair_accuracy")
    held_out = f", {pairs.n} held-out pairs of {pairs.groups} prompts" if pairs else ""
    reward = evaluation.measures["reward"]
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


def _change(before: Evaluation, after: Evaluation, measure: str) -> str:
    """Empty for what is no number of single samples, and for the KL: any interval of it excludes the reference's 0."""
    of_both = set(before.samples[0].numbers) & set(after.samples[0].numbers)
    if measure == "kl" or measure not in of_both:
        return ""
    change = difference(before, after, measure)
    if change is None:
        return "other prompts: not compared"
    certain = change.low > 0 or change.high < 0
    return f"{format_change(change, digits_of(measure))}: {'not 0' if certain else 'may be 0'}"


def _shown(evaluation: Evaluation | None, measure: str) -> str:
    return format_interval(evaluation.measures.get(measure) if evaluation else None, digits_of(measure))


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"


def _cells(row: SummaryRow) -> tuple[str, str, str, str]:
    arrow = "→ " if row.name else "  "
    return row.name, row.before, arrow + row.after, row.change
