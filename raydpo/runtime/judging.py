"""The judge stage: who wins, sample by sample, and how far the judges are to be trusted.

It reads what evaluations have left and writes beside them, so nothing that a judge does can touch a training. What an
endpoint has answered is kept reply by reply; a stage that was ended asks only for what it lacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Any

from raydpo.config.schema import AskedJudge
from raydpo.config.schema import Judge as JudgeSection
from raydpo.data.answers import LabelledPair, read_answers, read_labels
from raydpo.data.prompts import texts_hash
from raydpo.errors import UserError
from raydpo.evaluate.agreement import agreement
from raydpo.evaluate.contests import Entry, Texts, against_answers, against_samples
from raydpo.evaluate.judgements import (
    Between,
    Contest,
    Judged,
    Judgements,
    JudgeRecord,
    Outcome,
    Said,
    agreement_of_orders,
    between_judges,
    bias_of,
    unanswered_of,
    win_rate,
    write_judgements,
)
from raydpo.evaluate.records import Evaluation, folders_of, read_records
from raydpo.evaluate.stats import Interval
from raydpo.report.win_rates import judge_table
from raydpo.reward.judge import Orders, Preference, Winner
from raydpo.reward.ledger import Usage
from raydpo.reward.questions import read_question
from raydpo.runtime.pools.judges import OpenJudge, open_judge
from raydpo.track.say import say
from raydpo.workspace.asked import EvaluationSettings, OriginsToday

_OUTCOMES: dict[Winner, Outcome] = {"a": "win", "b": "loss", "tie": "tie"}
_LABELS: dict[Winner, str] = {"a": "first", "b": "second", "tie": "tie"}


@dataclass(frozen=True)
class JudgeSettings:
    """What a run file says of its judges, and of the evaluations whose samples they compare."""

    evaluations: EvaluationSettings
    judge: JudgeSection


@dataclass(frozen=True)
class _Heard:
    """All that one judge has said."""

    record: JudgeRecord
    contests: list[Contest]
    labels: list[str | None]  # of the labelled pairs, in their order


def judge_samples(settings: JudgeSettings) -> dict[str, Any]:
    """Have every judge compare the samples; writes judgements.json after each of them, and prints the table.

    Raises UserError where there is nothing to compare, and for a judge that cannot go on; what the judges before it
    have said is written, and what it has answered itself is kept for the next time.
    """
    asked = settings.judge
    entries = _entries(settings)
    pairs = read_labels(asked.labels) if asked.labels else []
    path = settings.evaluations.layout.judgements
    heard: list[_Heard] = []
    judgements = Judgements()
    for name, one in asked.judges.items():
        heard.append(_hear(settings, name, one, entries, pairs))
        judgements = _together(heard, pairs)
        write_judgements(judgements, path)
    say(judge_table(judgements))
    say(f"judgements: {path}")
    return _result(judgements)


def _entries(settings: JudgeSettings) -> list[Entry]:
    """What is compared with what. UserError where that is nothing."""
    asked = settings.judge
    policies: list[Evaluation] = []
    references: list[Evaluation] = []
    for each in _judged_settings(settings):
        records = OriginsToday(each).records()
        if records.left_out:
            say(records.notice())
        found = [evaluation for evaluation in records.valid if evaluation.step or asked.against != "reference"]
        policies += found[-1:] if asked.steps == "last" else found
        references += [evaluation for evaluation in records.valid if evaluation.step == 0]
    if not policies:
        raise UserError("judge: there are no evaluations of the run's exports to compare; run `raydpo evaluate` first.")
    if asked.against == "chosen":
        return against_answers(policies, _answers(settings), asked.limit)
    others, name = (references, "reference") if asked.against == "reference" else _of_another_run(asked.against)
    if entries := against_samples(policies, others, name, asked.limit):
        return entries
    raise UserError(f"judge: {name} has no evaluation with the run's prompts and temperature; evaluate it on them.")


def _judged_settings(settings: JudgeSettings) -> list[EvaluationSettings]:
    """Those of the evaluations that the judges are asked about, the section's own first."""
    evaluate = settings.evaluations.evaluate
    assert evaluate
    sets = {"", *settings.judge.sets}
    temperatures = {evaluate.decoding.temperature, *settings.judge.temperatures}
    return [
        each
        for each in settings.evaluations.everywhere()
        if each.prompt_set in sets and each.evaluate and each.evaluate.decoding.temperature in temperatures
    ]


def _answers(settings: JudgeSettings) -> dict[str, list[str]]:
    """The preferred answers by set of prompts."""
    evaluate = settings.evaluations.evaluate
    assert evaluate
    column = settings.judge.column
    ignore = settings.evaluations.data.ignore
    asked = {name: evaluate.all_sets[name] for name in ("", *settings.judge.sets)}
    return {
        name: read_answers(each.prompts, each.column, column, limit=each.limit, ignore=ignore)
        for name, each in asked.items()
    }


def _of_another_run(directory: str) -> tuple[list[Evaluation], str]:
    """Its last evaluation on each set of prompts at each temperature, and what to call them."""
    # The other run's file may be anywhere, so its records are taken as they are.
    folders = folders_of(Path(directory) / "evaluations")
    last = [found[-1] for folder in folders if (found := read_records(folder, lambda step: {}).valid)]
    if not last:
        raise UserError(f"judge.against: {directory} holds no evaluations; give the output_dir of a run that has some.")
    return last, f"{directory} step {last[0].step}"


def _hear(
    settings: JudgeSettings, name: str, asked: AskedJudge, entries: Sequence[Entry], pairs: Sequence[LabelledPair]
) -> _Heard:
    """Ask one judge for everything at once, so that what comes twice is asked once."""
    texts = list(chain.from_iterable(entry.texts for entry in entries))
    compared = [*texts, *(Texts(pair.prompt, pair.first, pair.second) for pair in pairs)]
    orders = Orders(settings.evaluations.seed, settings.judge.swap)
    with open_judge(name, asked, orders, settings.evaluations.layout) as opened:
        preferences = opened.judge(
            [each.prompt for each in compared], [each.sample for each in compared], [each.other for each in compared]
        )
    judged = [_judged(*each) for each in zip(compared, preferences, strict=True)]
    rest = iter(judged)
    found = [(entry.subject, [next(rest) for _ in entry.texts]) for entry in entries]
    winners = [preference.outcome for preference in preferences[len(texts) :]]
    return _Heard(
        _record(name, asked, opened, judged),
        [Contest(name, subject, win_rate(those), those) for subject, those in found],
        [winner and _LABELS[winner] for winner in winners],
    )


def _judged(texts: Texts, preference: Preference) -> Judged:
    """In the words of the run: a is its sample."""
    said = [
        Said(answer.verdict, answer.winner and _OUTCOMES[answer.winner], answer.words) for answer in preference.answers
    ]
    return Judged(
        prompt=texts.prompt,
        longer_by=len(texts.sample) - len(texts.other),
        outcome=preference.outcome and _OUTCOMES[preference.outcome],
        arrived=preference.arrived,
        answers=said,
    )


def _record(name: str, asked: AskedJudge, opened: OpenJudge, judged: Sequence[Judged]) -> JudgeRecord:
    ledger = opened.ledger
    used = ledger.spent if ledger else Usage()
    return JudgeRecord(
        name=name,
        what=opened.what,
        question=texts_hash([read_question(asked.question)]) if ledger else None,
        bias=bias_of(judged),
        orders=agreement_of_orders(judged),
        unanswered=unanswered_of(judged),
        lacking=sum(not each.arrived for each in judged),
        requests=used.requests,
        input_tokens=used.input_tokens,
        output_tokens=used.output_tokens,
        cost=ledger.cost if ledger else 0.0,
    )


def _together(heard: Sequence[_Heard], pairs: Sequence[LabelledPair]) -> Judgements:
    """All that was heard so far, and how far it agrees."""
    agreements = [
        Between(a.record.name, b.record.name, between_judges(a.contests, b.contests)) for a, b in combinations(heard, 2)
    ]
    if pairs:
        prompts = [pair.prompt for pair in pairs]
        labels = [pair.label for pair in pairs]
        agreements += [Between(each.record.name, "labels", agreement(each.labels, labels, prompts)) for each in heard]
        agreements += _among_people(pairs)
    return Judgements(
        contests=list(chain.from_iterable(each.contests for each in heard)),
        judges=[each.record for each in heard],
        agreements=agreements,
    )


def _among_people(pairs: Sequence[LabelledPair]) -> list[Between]:
    """Every two labels of the same completions; nothing where nobody has labelled what another has."""
    by_texts: dict[tuple[str, str, str], list[str]] = {}
    for pair in pairs:
        by_texts.setdefault((pair.prompt, pair.first, pair.second), []).append(pair.label)
    twice = [(prompt, *two) for (prompt, *_), labels in by_texts.items() for two in combinations(labels, 2)]
    if not twice:
        return []
    prompts, one, other = (list(column) for column in zip(*twice, strict=True))
    return [Between("labels", "labels", agreement(one, other, prompts))]


def _result(judgements: Judgements) -> dict[str, Any]:
    """For the job's status line: the last contest of each judge, what it cost, and what lacks.

    `elsewhere` are the last win rates on other prompts and at other temperatures, where there are any.
    """
    contests = judgements.contests
    own = _place(contests[0])
    last = {contest.judge: contest for contest in contests if _place(contest) == own}
    rates: dict[str, dict[str, list[float] | None]] = {}
    for contest in contests:
        if _place(contest) != own:
            rates.setdefault(contest.judge, {})[_place(contest)] = _bounds(contest.found.rate)
    return {
        judge.name: {
            "step": last[judge.name].subject.step,
            "against": last[judge.name].subject.against,
            "win_rate": _bounds(last[judge.name].found.rate),
            "length_controlled": _bounds(last[judge.name].found.length_controlled),
            "first_place": _bounds(judge.bias.first),
            "unanswered": _bounds(judge.unanswered),
            "lacking": judge.lacking,
            "requests": judge.requests,
            "tokens": judge.input_tokens + judge.output_tokens,
            "cost": judge.cost,
            **({"elsewhere": rates[judge.name]} if judge.name in rates else {}),
        }
        for judge in judgements.judges
    }


def _place(contest: Contest) -> str:
    """Which prompts and temperature, as the folders of evaluations are called."""
    return f"{contest.subject.prompt_set}@{contest.subject.temperature}"


def _bounds(interval: Interval | None) -> list[float] | None:
    return [interval.mean, interval.low, interval.high] if interval else None
