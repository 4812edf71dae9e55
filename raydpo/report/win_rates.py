"""What judges said, as tables: the terminal prints them, the report shows them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from raydpo.evaluate.agreement import Agreement
from raydpo.evaluate.judgements import Between, Contest, Judgements, JudgeRecord
from raydpo.evaluate.records import Evaluation
from raydpo.report.summary import format_interval


@dataclass(frozen=True)
class Table:
    """Ready to print."""

    title: str
    head: Sequence[str]
    rows: list[Sequence[str]]


def judge_tables(judgements: Judgements, evaluations: Sequence[Evaluation] | None = None) -> list[Table]:
    """Win rates, then what the judges are worth; none without contests.

    evaluations: those that count; what was judged of other weights under the same step is left out. None: all count.
    """
    contests = judgements.contests
    if evaluations is not None:
        known = {(evaluation.step, evaluation.made_from.weights) for evaluation in evaluations}
        contests = [each for each in contests if (each.subject.step, each.subject.weights) in known]
    if not contests:
        return []
    tables = [_win_rates(contests), Table("Judges", _JUDGE_HEAD, [_judge_row(judge) for judge in judgements.judges])]
    if judgements.agreements:
        tables.append(Table("Agreement", _AGREEMENT_HEAD, [_agreement_row(each) for each in judgements.agreements]))
    return tables


def judge_table(judgements: Judgements) -> str:
    """The same as text, with a line between tables."""
    return "\n\n".join(map(as_text, judge_tables(judgements)))


_JUDGE_HEAD = (
    "judge",
    "is",
    "first place wins",
    "p if unbiased",
    "orders agree",
    "kappa",
    "unanswered",
    "not asked",
    "requests",
    "tokens",
    "cost",
)
_AGREEMENT_HEAD = ("between", "and", "equal answers", "without ties", "kappa")


def _win_rates(contests: Sequence[Contest]) -> Table:
    """A column that says the same of all contests is left out, but for the step."""
    shown = [("judge", [each.judge for each in contests]), ("step", [str(each.subject.step) for each in contests])]
    sets = [each.subject.prompt_set or "own" for each in contests]
    temperatures = [f"{each.subject.temperature:g}" for each in contests]
    shown += [(name, column) for name, column in (("set", sets), ("temperature", temperatures)) if _differ(column)]
    figures = (
        ("wins", [str(each.found.wins) for each in contests]),
        ("ties", [str(each.found.ties) for each in contests]),
        ("losses", [str(each.found.losses) for each in contests]),
        ("unanswered", [str(each.found.unanswered) for each in contests]),
        ("win rate", [format_interval(each.found.rate, 3) for each in contests]),
        ("at equal length", [format_interval(each.found.length_controlled, 3) for each in contests]),
    )
    columns = [*shown, *figures]
    rows: list[Sequence[str]] = list(zip(*(column for _, column in columns), strict=True))
    against = ", ".join(dict.fromkeys(each.subject.against for each in contests))
    return Table(f"Win rate against {against}", [name for name, _ in columns], rows)


def _judge_row(judge: JudgeRecord) -> Sequence[str]:
    return (
        judge.name,
        judge.what,
        format_interval(judge.bias.first, 3),
        f"{judge.bias.chance:.2g}",
        format_interval(judge.orders.share, 3),
        _kappa(judge.orders),
        format_interval(judge.unanswered, 3),
        str(judge.lacking),
        str(judge.requests),
        str(judge.input_tokens + judge.output_tokens),
        f"{judge.cost:.4g}",
    )


def _agreement_row(between: Between) -> Sequence[str]:
    found = between.found
    return between.a, between.b, format_interval(found.share, 3), format_interval(found.decided, 3), _kappa(found)


def _kappa(found: Agreement) -> str:
    return "not measured" if found.kappa is None else f"{found.kappa:.2f}"


def _differ(column: Collection[str]) -> bool:
    return len(set(column)) > 1


def as_text(table: Table) -> str:
    """The table in columns of equal width, under its title."""
    lines = [table.head, *table.rows]
    width = [max(len(line[i]) for line in lines) for i in range(len(table.head))]
    text = ["  ".join(cell.ljust(size) for cell, size in zip(line, width, strict=True)).rstrip() for line in lines]
    return "\n".join([table.title, *text])
