"""What a comparison says in numbers: which settings differ, what each run measures, and paired differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from raydpo.evaluate.contests import Cell, cell_of
from raydpo.evaluate.origin import Origin
from raydpo.evaluate.records import Evaluation, RatedSample
from raydpo.evaluate.stats import Interval, paired_difference
from raydpo.report.compared import ComparedRun, Settings
from raydpo.report.summary import called, digits_of, format_change, format_interval, measures_of
from raydpo.report.win_rates import Table, judge_tables

NOT_SETTINGS = {"name", "output_dir"}  # two runs always differ in these
OF_IDENTITY_ALONE = {
    "data_digest": "rows (digest)",
    "model_weights": "model (digest)",
    "reference_weights": "reference",
}
SAME = ("prompts", "decoding", "seed")  # parts of an origin that decide which draws are made
ALSO_SAME = {  # and what measures them
    "reward": ("scorer", "scorer_source"),
    "kl": ("reference",),
    **dict.fromkeys(("rouge_1", "rouge_2", "rouge_l", "exact_match"), ("answers",)),
}
ABSENT = "–"


def differing_settings(runs: Sequence[ComparedRun]) -> Table:
    """A row for each setting that is not the same in all runs that have left any, and for what training rests on."""
    rows = [*_differing([run.settings for run in runs], NOT_SETTINGS)]
    identities = [{OF_IDENTITY_ALONE[key]: run.identity.get(key) for key in OF_IDENTITY_ALONE} for run in runs]
    rows += _differing([each if run.identity else {} for each, run in zip(identities, runs, strict=True)], set())
    return Table("What differs", ["", *(run.name for run in runs)], rows)


def _differing(sides: Sequence[Settings], ignored: set[str]) -> list[Sequence[str]]:
    known = [side for side in sides if side]  # what nobody could read differs from nothing
    keys = dict.fromkeys(key for side in known for key in side if key not in ignored)
    rows: list[Sequence[str]] = []
    for key in keys:
        if any(side.get(key) != known[0].get(key) for side in known[1:]):
            rows.append([key, *(_shown(side[key]) if key in side else ABSENT for side in sides)])
    return rows


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


@dataclass(frozen=True)
class Choice:
    """Which evaluation of a run stands for it."""

    name: str
    pick: Callable[[Sequence[Evaluation]], Evaluation]


LAST = Choice("last", lambda evaluations: evaluations[-1])
BEST = Choice("best", lambda evaluations: max(evaluations, key=lambda each: each.measures["reward"].mean))


def cells_of(runs: Sequence[ComparedRun]) -> list[Cell]:
    """The prompt sets and temperatures at which any run was evaluated, as they come."""
    return list(dict.fromkeys(cell_of(each) for run in runs for each in run.evaluations))


def in_cell(run: ComparedRun, cell: Cell) -> list[Evaluation]:
    """A run's evaluations of one prompt set at one temperature, by rising step."""
    return [each for each in run.evaluations if cell_of(each) == cell]


def chosen_of(run: ComparedRun, cell: Cell, choice: Choice) -> Evaluation | None:
    """The evaluation that stands for the run; None where it has none."""
    found = in_cell(run, cell)
    return choice.pick(found) if found else None


def measure_tables(runs: Sequence[ComparedRun]) -> list[Table]:
    """The measures of each run's last evaluation, and of its best where that is another one in any run."""
    tables = []
    for cell in cells_of(runs):
        last = [chosen_of(run, cell, LAST) for run in runs]
        best = [chosen_of(run, cell, BEST) for run in runs]
        where = _where(cell) if len(cells_of(runs)) > 1 else ""
        tables.append(_measure_table(f"Last evaluations{where}", runs, last))
        if best != last:
            title = f"Evaluations with the highest reward{where} (picked by the very reward they show, so flattered)"
            tables.append(_measure_table(title, runs, best))
    return tables


def _where(cell: Cell) -> str:
    prompt_set, temperature = cell
    return f", {prompt_set or 'own'} prompts at temperature {temperature:g}"


def _measure_table(title: str, runs: Sequence[ComparedRun], evaluations: Sequence[Evaluation | None]) -> Table:
    names = measures_of([each for each in evaluations if each])
    rows: list[Sequence[str]] = [["step", *(str(each.step) if each else ABSENT for each in evaluations)]]
    for name in names:
        digits = digits_of(name)
        cells = [format_interval(each.measures.get(name), digits) if each else ABSENT for each in evaluations]
        rows.append([called(name), *cells])
    return Table(title, ["", *(run.name for run in runs)], rows)


def difference_tables(runs: Sequence[ComparedRun]) -> list[Table]:
    """How each run's last evaluation differs from the first run's, prompt by prompt, or why it cannot be said."""
    base, *others = runs
    tables = []
    for cell in cells_of(runs):
        before = chosen_of(base, cell, LAST)
        where = _where(cell) if len(cells_of(runs)) > 1 else ""
        rows: list[Sequence[str]] = []
        for other in others:
            rows += _difference_rows(other, before, chosen_of(other, cell, LAST), base.name)
        title = f"Differences from {base.name} on the same prompts, last evaluations{where}"
        tables.append(Table(title, ["run", "measure", "difference", ""], rows))
    return tables


def _difference_rows(
    other: ComparedRun, before: Evaluation | None, after: Evaluation | None, base: str
) -> list[Sequence[str]]:
    lacking = base if before is None else other.name
    if before is None or after is None:
        return [[other.name, ABSENT, ABSENT, f"{lacking} has no such evaluation"]]
    rows: list[Sequence[str]] = []
    for name in (name for name in before.samples[0].numbers if name in after.samples[0].numbers):
        why = why_unpaired(before, after, name)
        change = None if why else _paired(before, after, name)
        if change is None:
            rows.append([other.name, called(name), ABSENT, f"not paired: {why}"])
            continue
        certain = change.low > 0 or change.high < 0
        cell = format_change(change, digits_of(name))
        rows.append([other.name, called(name), cell, "not 0" if certain else "may be 0"])
    return rows


def why_unpaired(before: Evaluation, after: Evaluation, name: str) -> str:
    """Why two evaluations' samples cannot be set against each other in a quantity; empty where they can."""
    parts = (*SAME, *ALSO_SAME.get(name, ()))
    other = [part for part in parts if _part(before.made_from, part) != _part(after.made_from, part)]
    if other:
        return f"other {', '.join(part.replace('_', ' ') for part in other)}"
    if _prompts(before) != _prompts(after):
        return "other prompts"
    if name == "kl" and not (before.made_from.draws_policy and after.made_from.draws_policy):
        return "temperature or the like have changed what is drawn, so these are no KLs"
    return ""


def _part(origin: Origin, name: str) -> Any:
    return getattr(origin, name, None)


def _paired(before: Evaluation, after: Evaluation, name: str) -> Interval:
    return paired_difference(before.column(name), after.column(name), _prompts(before))


def _prompts(evaluation: Evaluation) -> list[str]:
    return [sample.prompt for sample in evaluation.samples]


def judged_tables(runs: Sequence[ComparedRun]) -> list[Table]:
    """What judges said of each run, as its own report shows it."""
    tables = []
    for run in runs:
        for table in judge_tables(run.judgements, run.evaluations)[:1]:  # the judges' own worth is in the report
            tables.append(Table(f"{run.name}: {table.title[:1].lower()}{table.title[1:]}", table.head, table.rows))
    return tables


@dataclass(frozen=True)
class PromptRow:
    """What each run made of a prompt, in the order of the runs; None where it was not asked."""

    prompt: str
    samples: list[RatedSample | None]


def samples_side_by_side(runs: Sequence[ComparedRun], limit: int) -> list[PromptRow]:
    """The last evaluations' samples of the first prompts, in their order and not a selection."""
    cells = cells_of(runs)
    if not cells:
        return []
    evaluations = [chosen_of(run, cells[0], LAST) for run in runs]
    by_prompt = [{s.prompt: s for s in reversed(each.samples)} if each else {} for each in evaluations]
    prompts = list(dict.fromkeys(s.prompt for each in evaluations if each for s in each.samples))
    # Prompts that all evaluated runs have come first: side by side is what the table is for.
    shared = [prompt for prompt in prompts if all(prompt in known for known in by_prompt if known)]
    return [PromptRow(prompt, [known.get(prompt) for known in by_prompt]) for prompt in (shared or prompts)[:limit]]
