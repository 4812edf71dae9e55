"""The stages of a run, as the command line and the jobs call them. Nothing heavy is imported until one is called."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydpo.config.schema import RunFile
from raydpo.errors import UserError
from raydpo.storage.files import write_json
from raydpo.track.say import say

if TYPE_CHECKING:
    from raydpo.runtime.pools.sampling import Samplers

Result = dict[str, Any]


def prepare(run: RunFile) -> Result:
    """Preference pairs to token shards."""
    from raydpo.runtime.prepare import prepare_pairs

    with _cluster(run, "prepare"), _timed(run, "prepare"):
        return prepare_pairs(run)


def sft(run: RunFile) -> Result:
    """Supervised fine-tuning: makes the model that the other stages start from."""
    if not run.sft:
        raise UserError("the run file has no sft section; add one with its training files, or leave this stage out.")
    from raydpo.runtime.prepare import prepare_sft
    from raydpo.runtime.trainer.driver import train_sft

    with _cluster(run, "sft"), _timed(run, "sft"):
        return {"tokens": prepare_sft(run), **train_sft(run)}


def sample(run: RunFile) -> Result:
    """Completions from the reference, scored and paired."""
    if not run.sample:
        raise UserError("the run file has no sample section; add one with its prompts, or give pairs in data.train.")
    with _cluster(run, "sample"), _engines(run) as engines:
        return _sample(run, engines)


def precompute(run: RunFile) -> Result:
    """Reference log-probs of every pair that the store lacks."""
    from raydpo.runtime.pools.precompute import precompute

    with _cluster(run, "precompute"), _timed(run, "precompute"):
        return precompute(run)


def train(run: RunFile) -> Result:
    """Preference training, with evaluation beside it where the run file has an evaluate section."""
    with _cluster(run, "train"), _engines(run) if run.evaluate else nullcontext() as engines:
        return _train(run, engines)


def evaluate(run: RunFile) -> Result:
    """The reference and every export that has not been evaluated yet."""
    if not run.evaluate:
        raise UserError("the run file has no evaluate section; add one with held-out prompts.")
    with _cluster(run, "evaluate"), _engines(run) as engines:
        return _evaluate(run, engines)


def report(run: RunFile) -> Result:
    """report.html and its figures, from what the other stages wrote."""
    from raydpo.report.diagnosis import in_short
    from raydpo.report.page import findings_of, write_report
    from raydpo.report.summary import summary_table
    from raydpo.workspace.asked import EvaluationSettings, OriginsToday
    from raydpo.workspace.layout import Layout

    root = Layout(run).root
    records = OriginsToday(EvaluationSettings.of(run)).records()
    path = write_report(root, records)
    findings = findings_of(root, records)
    say(summary_table(records.valid))
    if records.left_out:
        say(records.notice())
    say(in_short(findings))
    say(f"report: {path}")
    return {"report": str(path), "findings": [finding.name for finding in findings]}


def doctor(run: RunFile) -> Result:
    """Versions, devices, cluster resources, what will run where and what will not fit."""
    from raydpo.runtime.doctor import examine

    return examine(run)


def run(run: RunFile) -> Result:
    """All stages in order on one cluster, with one set of vLLM engines from the first sample to the last."""
    from raydpo.workspace.objective import needs_reference
    from raydpo.workspace.prepared import check_trainable_pairs

    results: Result = {}
    with _cluster(run, "run"), ExitStack() as stack:
        if run.sft:
            results["sft"] = sft(run)
        engines = stack.enter_context(_engines(run)) if run.sample or run.evaluate else None
        if run.sample and engines:
            results["sample"] = _sample(run, engines)
        results["prepare"] = prepare(run)
        check_trainable_pairs(run)  # now, not when everything is scored
        if run.train.reference == "precompute" and needs_reference(run.train):
            results["precompute"] = precompute(run)
        results["train"] = _train(run, engines)
        if run.evaluate and engines:
            results["evaluate"] = _evaluate(run, engines)
    results["report"] = report(run)
    return results


def _engines(run: RunFile) -> AbstractContextManager[Samplers]:
    from raydpo.runtime.pools.sampling import check_sampling, samplers
    from raydpo.workspace.layout import Layout

    model = Layout(run).start_model
    tokenizer = check_sampling(model, run.data, run.sampler, [run.sample, run.evaluate])
    return samplers(model, run.model.dtype, run.sampler, tokenizer)


def _sample(run: RunFile, engines: Samplers) -> Result:
    from raydpo.runtime.pairing import sample_pairs

    with _timed(run, "sample"):
        return sample_pairs(run, engines)


def _train(run: RunFile, engines: Samplers | None) -> Result:
    from raydpo.runtime.trainer.driver import train_policy

    evaluator = None
    if engines and run.evaluate:
        from raydpo.runtime.evaluation import Evaluator
        from raydpo.workspace.asked import EvaluationSettings

        evaluator = Evaluator(EvaluationSettings.of(run), engines)
    with _timed(run, "train"):
        return train_policy(run, evaluator)


def _evaluate(run: RunFile, engines: Samplers) -> Result:
    from raydpo.runtime.evaluation import evaluate_exports
    from raydpo.workspace.asked import EvaluationSettings

    with _timed(run, "evaluate"):
        return evaluate_exports(EvaluationSettings.of(run), engines)


@contextmanager
def _cluster(run: RunFile, stage: str) -> Iterator[None]:
    """Connected to Ray, with the cluster known to hold the stage."""
    from raydpo.runtime.cluster import connection, preflight

    with connection.connect(run.cluster):
        for asked in preflight.bills(run, stage).values():
            preflight.check_fits(asked)
        with connection.user_errors():
            yield


@contextmanager
def _timed(run: RunFile, stage: str) -> Iterator[None]:
    """Keep the seconds that a stage takes in timings.json, beside those of the others."""
    from raydpo.workspace.layout import Layout

    begin = time.perf_counter()
    yield
    timings = Layout(run).timings
    write_json(timings, {"stages": _kept_seconds(timings) | {stage: time.perf_counter() - begin}})


def _kept_seconds(timings: Path) -> dict[str, float]:
    """By stage; none where the file is missing or damaged, which must not end a stage that has done its work."""
    try:
        return dict(json.loads(timings.read_text(encoding="utf-8"))["stages"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return {}
