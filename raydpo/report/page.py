"""The report of a run: one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean, median
from typing import Any

from raydpo.evaluate.judgements import Judgements
from raydpo.evaluate.origin import Origin
from raydpo.evaluate.records import Evaluation, RatedSample, Records
from raydpo.objective.registry import Term, loss_at_reference, resolve
from raydpo.report import figures
from raydpo.report.best_of_n import best_of_n_rows, draws_from_the_same, optimum_in_words
from raydpo.report.diagnosis import Finding, diagnose
from raydpo.report.elsewhere import Everywhere, reward_by_temperature, table_by_set
from raydpo.report.inputs import RunOutput, read_output
from raydpo.report.rendering import Picture, make_picture, render
from raydpo.report.reward_model import reward_facts, reward_rows
from raydpo.report.summary import (
    basis,
    digits_of,
    format_change,
    kl_name,
    reference_and_policy,
    reward_gain,
    sample_line,
    summary_rows,
)
from raydpo.report.win_rates import Table, judge_tables
from raydpo.storage.files import whole_file, write_text

_NOTHING_JUDGED = Judgements()
# All that a report may have.
PICTURES = (
    "training",
    "timings",
    "measures",
    "frontier",
    "rewards",
    "lengths",
    "temperatures",
    "best_of_n",
    "reliability",
)


@dataclass(frozen=True)
class SideBySide:
    """What reference and policy made of the same prompt; None where a model was not asked."""

    prompt: str
    reference: RatedSample | None
    policy: RatedSample | None


def write_report(
    output_dir: Path,
    records: Records,
    judgements: Judgements = _NOTHING_JUDGED,
    elsewhere: Sequence[Records] = (),
) -> Path:
    """Write `report.html` and `figures/*.png` into the output directory and return the report's path.

    Figures are of the valid records; of the others the report says that they are left out. elsewhere: those on other
    prompts and at other temperatures. A run without evaluations gets a report that says so. Raises UserError naming any
    other input that is missing or broken and the stage that makes it.
    """
    output = read_output(output_dir)
    found = [records, *elsewhere]
    everywhere = [each.valid for each in found]
    pictures = {picture.name: picture for picture in _pictures(output, everywhere)}
    for name in PICTURES:
        path = output_dir / "figures" / f"{name}.png"
        if name not in pictures:
            path.unlink(missing_ok=True)  # an earlier report's
            continue
        with whole_file(path) as temporary:
            temporary.write_bytes(pictures[name].png)
    report = output_dir / "report.html"
    judged = judge_tables(judgements, list(chain.from_iterable(everywhere)))
    write_text(report, _render(output, found, judged, pictures))
    return report


def findings_of(output_dir: Path, records: Records) -> list[Finding]:
    """The diagnosis that the report of an output directory shows. Raises UserError as write_report does."""
    return _findings(read_output(output_dir), records.valid)


def side_by_side(evaluations: Sequence[Evaluation], limit: int) -> list[SideBySide]:
    """The first `limit` prompts in the order they were asked, so that nothing is picked for its outcome.

    A prompt that was sampled more than once shows its first sample.
    """
    before, after = (_by_prompt(evaluation) for evaluation in reference_and_policy(evaluations))
    prompts = list(before | after)[:limit]
    return [SideBySide(prompt, before.get(prompt), after.get(prompt)) for prompt in prompts]


def _by_prompt(evaluation: Evaluation | None) -> dict[str, RatedSample]:
    """The first sample of every prompt, in the order in which they were asked."""
    first: dict[str, RatedSample] = {}
    for sample in evaluation.samples if evaluation else []:
        first.setdefault(sample.prompt, sample)
    return first


def _pictures(output: RunOutput, everywhere: Everywhere) -> Iterator[Picture]:
    evaluations = everywhere[0]
    at_reference = loss_at_reference(_terms(output))
    yield make_picture(
        "training", "Training by step", figures.training_curves(output.metrics, at_reference=at_reference)
    )
    if output.stages:
        yield make_picture("timings", "Seconds by stage", figures.stage_seconds(output.stages))
    if evaluations:
        yield make_picture("measures", "Measures by step", figures.measures_by_step(evaluations))
        if frontier := figures.rewards_by_kl(evaluations):
            yield make_picture("frontier", f"Reward against {kl_name(evaluations)}", frontier)
        yield make_picture("rewards", "Histogram of rewards", figures.reward_distribution(evaluations))
        yield make_picture("lengths", "Histogram of lengths", figures.length_distribution(evaluations))
    if temperatures := reward_by_temperature(everywhere):
        yield make_picture("temperatures", "Reward by temperature", temperatures)
    if best := output.best_of_n:
        beside = [each for each in evaluations if draws_from_the_same(best, each)]
        yield make_picture(
            "best_of_n", "Reward of the best of N against its KL", figures.best_of_n_against_kl(best, beside)
        )
    if output.reward:
        yield make_picture(
            "reliability",
            "How often the reward model is right by how sure it is",
            figures.reliability_plot(output.reward.bins),
        )


def _render(output: RunOutput, found: Sequence[Records], judged: Sequence[Table], pictures: dict[str, Picture]) -> str:
    """found: on the section's own prompts and at its own temperature first."""
    run = output.run
    evaluations = found[0].valid
    before, after = reference_and_policy(evaluations)
    gain = reward_gain(evaluations)
    return render(
        "report.html.j2",
        run=run,
        config=output.config,
        pictures=pictures,
        rows=summary_rows(evaluations),
        gain=format_change(gain, digits_of("reward")) if gain else "",
        before=before,
        after=after,
        evaluations=evaluations,
        left_out=[notice for records in found if (notice := records.notice())],
        by_set=table_by_set([records.valid for records in found]) if len(found) > 1 else None,
        judged=judged,
        basis=basis(evaluations[-1]) if evaluations else "",
        origin=_origin(evaluations[-1].made_from) if evaluations else {},
        sample_line=sample_line,
        samples=side_by_side(evaluations, run.evaluate.samples_in_report if run.evaluate else 0),
        training=_training(output.metrics),
        losses=_losses(_terms(output)),
        rewarded="rewards/margins" in output.metrics[0],
        data_counts=output.data_counts,
        best_of_n=output.best_of_n,
        best_of_n_rows=best_of_n_rows(output.best_of_n) if output.best_of_n else [],
        optimum=optimum_in_words(output.best_of_n) if output.best_of_n else "",
        reward=output.reward,
        reward_rows=reward_rows(output.reward) if output.reward else [],
        reward_facts=reward_facts(output.reward) if output.reward else {},
        findings=_findings(output, evaluations),
    )


def _findings(output: RunOutput, evaluations: Sequence[Evaluation]) -> list[Finding]:
    train = output.run.train
    return diagnose(
        output.metrics,
        evaluations,
        output.data_counts,
        beta=train.objective.beta,
        max_grad_norm=train.optimizer.max_grad_norm,
    )


def _terms(output: RunOutput) -> tuple[Term, ...]:
    settings = output.run.train.objective
    return resolve(settings.loss_type, settings.loss_weights, **settings.arguments)


def _losses(terms: Sequence[Term]) -> str:
    """The loss in words: `sigmoid (β = 0.1)`, and a mix with its weights: `sigmoid (β = 0.1) + 0.2 × sft`."""
    return " + ".join(map(_weighted, terms))


def _weighted(term: Term) -> str:
    beta = term.arguments.get("beta")
    weight = f"{term.weight:g} × " if term.weight != 1 else ""
    return f"{weight}{term.loss_type}{'' if beta is None else f' (β = {beta:g})'}"


def _origin(origin: Origin) -> dict[str, str]:
    """The parts of an origin that are not one model's own, ready to print."""
    parts = {name: value for name, value in vars(origin).items() if name != "weights" and value is not None}
    return {name.replace("_", " "): str(value) for name, value in parts.items()}


def _training(metrics: Sequence[dict[str, Any]]) -> dict[str, str]:
    """What training reached and how fast; speeds are medians over the steps, so that the first, slow one has no say."""
    last = metrics[-max(1, len(metrics) // 10) :]
    facts = {
        "steps": f"{len(metrics):,}",
        "loss, first step": f"{metrics[0]['loss']:.4f}",
        "loss, last tenth": f"{fmean(row['loss'] for row in last):.4f}",
    }
    if "rewards/accuracies" in metrics[0]:
        facts["accuracy, last tenth"] = f"{fmean(row['rewards/accuracies'] for row in last):.1%}"
    speeds = {"tokens_per_second": "tokens/s", "rows_per_second": "rows/s", "mfu": "MFU"}
    for key, name in speeds.items():
        values = [row[key] for row in metrics if row.get(key) is not None]  # there is no MFU of an unknown device
        if values:
            facts[name] = f"{median(values):.2%}" if key == "mfu" else f"{median(values):,.1f}"
    return facts
