"""Which completions stand against each other: samples of evaluations, and others on the same prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from raydpo.errors import UserError
from raydpo.evaluate.judgements import Subject
from raydpo.evaluate.records import Evaluation

Cell = tuple[str, float]  # prompt set and temperature: samples of one cell can be compared


@dataclass(frozen=True)
class Texts:
    """A prompt, a sample, and what it stands against."""

    prompt: str
    sample: str
    other: str


@dataclass(frozen=True)
class Entry:
    """One contest before it is judged."""

    subject: Subject
    texts: list[Texts]


def cell_of(evaluation: Evaluation) -> Cell:
    """The set of prompts that an evaluation was made on, empty for the section's own, and the temperature."""
    return evaluation.prompt_set, evaluation.made_from.decoding.temperature


def against_samples(
    evaluations: Sequence[Evaluation], others: Sequence[Evaluation], against: str, limit: int | None
) -> list[Entry]:
    """Each evaluation against the other of its cell, on the first `limit` of the prompts that both have.

    A prompt that comes twice stands against its namesake of the same number. Evaluations without another are left
    out. Raises UserError where two share less than two prompts.
    """
    by_cell = {cell_of(other): other for other in others}
    entries = []
    for evaluation in evaluations:
        other = by_cell.get(cell_of(evaluation))
        if other is None:
            continue
        theirs = dict(_numbered(other))
        texts = [Texts(key[0], completion, theirs[key]) for key, completion in _numbered(evaluation) if key in theirs]
        entries.append(_entry(evaluation, texts, against, limit))
    return entries


def against_answers(
    evaluations: Sequence[Evaluation], answers: Mapping[str, Sequence[str]], limit: int | None
) -> list[Entry]:
    """Each evaluation against the given answer to each of its prompts, in their order, by the set of prompts."""
    entries = []
    for evaluation in evaluations:
        given = answers[cell_of(evaluation)[0]]
        samples = evaluation.samples
        if len(given) != len(samples):
            raise UserError(
                f"step {evaluation.step} was evaluated on {len(samples)} prompts and there are {len(given)} answers "
                "to compare with; evaluate again."
            )
        texts = [Texts(s.prompt, s.completion, answer) for s, answer in zip(samples, given, strict=True)]
        entries.append(_entry(evaluation, texts, "chosen", limit))
    return entries


def _entry(evaluation: Evaluation, texts: list[Texts], against: str, limit: int | None) -> Entry:
    prompt_set, temperature = cell_of(evaluation)
    different = len({each.prompt for each in texts[:limit]})
    if different < 2:
        raise UserError(
            f"judge: {different} prompts that step {evaluation.step} and {against} share give no interval; compare on "
            "at least 2 (judge.limit says how many are taken)."
        )
    subject = Subject(evaluation.step, temperature, evaluation.made_from.weights, against, prompt_set)
    return Entry(subject, texts[:limit])


def _numbered(evaluation: Evaluation) -> Iterator[tuple[tuple[str, int], str]]:
    """Completions by prompt and how often that has come before."""
    seen: Counter[str] = Counter()
    for sample in evaluation.samples:
        yield (sample.prompt, seen[sample.prompt]), sample.completion
        seen[sample.prompt] += 1
