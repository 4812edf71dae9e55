"""The stages of a run, as the command line and the jobs call them. Ray and torch are imported when one is called."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydpo.config.schema import RunFile
from raydpo.errors import UserError
from raydpo.stages.values import RunValues
from raydpo.storage.files import write_json
from raydpo.track.say import say

if TYPE_CHECKING:
    from raydpo.runtime.pools.sampling import Samplers

Result = dict[str, Any]


def prepare(run: RunFile) -> Result:
    """Preference pairs to token shards."""
    from raydpo.runtime.prepare import prepare_pairs

    values = RunValues(run)
    with on_cluster(values, "prepare"), _timed(values, "prepare"):
        return prepare_pairs(values.rows())


def sft(run: RunFile) -> Result:
    """Supervised fine-tuning: makes the model that the other stages start from."""
    if not run.sft:
        raise UserError("the run file has no sft section; add one with its training files, or leave this stage out.")
    from raydpo.runtime.prepare import prepare_sft
    from raydpo.runtime.trainer.driver import train_sft

    values = RunValues(run)
    source = values.token_source("sft")
    with on_cluster(values, "sft"), _timed(values, "sft"):
        tokens = prepare_sft(values.sft_rows())
        return {"tokens": tokens, **train_sft(values.sft_training(), source, values.layout, run.timeouts)}


def sample(run: RunFile) -> Result:
    """Completions from the reference, scored and paired."""
    if not run.sample:
        raise UserError("the run file has no sample section; add one with its prompts, or give pairs in data.train.")
    values = RunValues(run)
    with on_cluster(values, "sample"), engines_of(values) as engines:
        return sample_with(values, engines)


def reward(run: RunFile) -> Result:
    """A reward model, trained on the run's preference rows and measured on the held-out ones.

    Rows that have not been prepared yet are prepared first.
    """
    if not run.reward:
        raise UserError("the run file has no reward section; add one, or leave this stage out.")
    from raydpo.reference.dataset import MANIFEST

    values = RunValues(run)
    prepared = {} if (values.layout.train_tokens / MANIFEST).exists() else {"prepare": prepare(run)}
    with on_cluster(values, "reward"), _timed(values, "reward"):
        return {**prepared, **_reward(values)}


def precompute(run: RunFile) -> Result:
    """Reference log-probs of every completion that the store lacks."""
    from raydpo.reference.dataset import MANIFEST
    from raydpo.runtime.pools.pool import score_missing
    from raydpo.workspace.prepared import check_pairs

    values = RunValues(run)
    with on_cluster(values, "precompute"), _timed(values, "precompute"):
        store = values.store()
        store.claim()
        layout = values.layout
        directories = [layout.train_tokens]
        if (layout.held_out_tokens / MANIFEST).exists():
            directories.append(layout.held_out_tokens)
        check_pairs(values.rows())
        return {**score_missing(values.scoring(), store, directories), "store": store.address}


def train(run: RunFile) -> Result:
    """Preference training, with evaluation beside it where the run file has an evaluate section."""
    values = RunValues(run)
    with on_cluster(values, "train"), engines_of(values) if run.evaluate else nullcontext() as engines:
        return _train(values, engines)


def evaluate(run: RunFile) -> Result:
    """The reference and every export that has not been evaluated yet."""
    if not run.evaluate:
        raise UserError("the run file has no evaluate section; add one with held-out prompts.")
    values = RunValues(run)
    with on_cluster(values, "evaluate"), engines_of(values) as engines:
        return evaluate_with(values, engines)


def judge(run: RunFile) -> Result:
    """The samples of the evaluations, compared with others by judges."""
    if not run.judge:
        raise UserError("the run file has no judge section; add one with its judges.")
    from raydpo.runtime.judging import judge_samples

    values = RunValues(run)
    # An endpoint is asked from here; reward functions and servers have processes in the cluster.
    in_cluster = any(asked.reward or asked.serve for asked in run.judge.judges.values())
    with on_cluster(values, "judge") if in_cluster else nullcontext(), _timed(values, "judge"):
        return judge_samples(values.judging())


def bestofn(run: RunFile) -> Result:
    """What the best of N completions of the reference is worth."""
    if not run.best_of_n:
        raise UserError("the run file has no best_of_n section; add one: `best_of_n: {n: [4, 16, 64]}`.")
    values = RunValues(run)
    with on_cluster(values, "bestofn"), engines_of(values) as engines:
        return best_of_n_with(values, engines)


def report(run: RunFile) -> Result:
    """report.html and its figures, from what the other stages wrote."""
    from raydpo.evaluate.judgements import read_judgements
    from raydpo.report.diagnosis import in_short
    from raydpo.report.elsewhere import table_by_set
    from raydpo.report.page import findings_of, write_report
    from raydpo.report.summary import summary_table
    from raydpo.report.win_rates import as_text
    from raydpo.workspace.asked import records_everywhere

    values = RunValues(run)
    root = values.layout.root
    everywhere = records_everywhere(values.evaluations())
    records, *elsewhere = everywhere
    path = write_report(root, records, read_judgements(values.layout.judgements), elsewhere)
    findings = findings_of(root, records)
    say(summary_table(records.valid))
    if elsewhere:
        say(as_text(table_by_set([each.valid for each in everywhere], ["reward"])))
    for each in everywhere:
        if each.left_out:
            say(each.notice())
    say(in_short(findings))
    say(f"report: {path}")
    return {"report": str(path), "findings": [finding.name for finding in findings]}


def doctor(run: RunFile) -> Result:
    """Versions, devices, cluster resources, what will run where and what will not fit."""
    from raydpo.runtime.doctor import examine
    from raydpo.stages.inputs import doctor_checks, input_checks

    values = RunValues(run)
    checks = chain(input_checks(run, "run"), doctor_checks(values.rows(), values.evaluations()))
    return examine(checks, values.processes(), run.cluster, values.layout.root)


def run(run: RunFile) -> Result:
    """All stages in order on one cluster, with one set of vLLM engines from the first sample to the last."""
    from raydpo.workspace.objective import needs_reference
    from raydpo.workspace.prepared import check_trainable_pairs

    values = RunValues(run)
    results: Result = {}
    with on_cluster(values, "run"), ExitStack() as stack:
        if run.sft:
            results["sft"] = sft(run)
        engines = stack.enter_context(engines_of(values)) if run.sample or run.evaluate else None
        if run.sample and engines:
            results["sample"] = sample_with(values, engines)
        results["prepare"] = prepare(run)
        check_trainable_pairs(values.rows())  # now, not when everything is scored
        if run.reward:
            results["reward"] = reward(run)
        if run.train.reference == "precompute" and needs_reference(run.train):
            results["precompute"] = precompute(run)
        results["train"] = _train(values, engines)
        if run.evaluate and engines:
            results["evaluate"] = evaluate_with(values, engines)
        if run.best_of_n and engines:
            results["bestofn"] = best_of_n_with(values, engines)
        stack.close()  # the samplers make room for a judge's server
        try:
            if run.judge:
                results["judge"] = judge(run)
        finally:  # a judge that fails must not hide what was trained and measured
            results["report"] = report(run)
    return results


@contextmanager
def engines_of(values: RunValues) -> Iterator[Samplers]:
    """Up for the length of the block, with the model that the run starts from."""
    from raydpo.runtime.pools.sampling import check_sampling, samplers

    asked = values.evaluations()
    model = values.layout.start_model
    tokenizer = check_sampling(model, asked.data, asked.sampler, values.sampled_by())
    with samplers(model, asked.model.dtype, asked.sampler, tokenizer) as engines:
        yield engines


def _reward(values: RunValues) -> Result:
    from raydpo.runtime.reward_evaluation import evaluate_reward_model
    from raydpo.runtime.trainer.driver import train_reward

    settings = values.reward_training()
    trained = train_reward(settings, values.rows(), values.timeouts)
    return {**trained, "held_out": evaluate_reward_model(settings, values.layout)}


def sample_with(values: RunValues, engines: Samplers) -> Result:
    """The sample stage, with engines that are up."""
    from raydpo.runtime.pairing import sample_pairs

    with _timed(values, "sample"):
        return sample_pairs(values.sampling(), engines)


def _train(values: RunValues, engines: Samplers | None) -> Result:
    from raydpo.runtime.trainer.driver import train_policy

    evaluations = values.evaluations()
    evaluator = None
    if engines and evaluations.evaluate:
        from raydpo.runtime.evaluation import Evaluator

        evaluator = Evaluator(evaluations, engines)
    with _timed(values, "train"):
        return train_policy(values.rows(), evaluations, values.scoring_beside(), values.timeouts, evaluator)


def evaluate_with(values: RunValues, engines: Samplers) -> Result:
    """The evaluate stage, with engines that are up."""
    from raydpo.runtime.evaluation import evaluate_exports

    with _timed(values, "evaluate"):
        return evaluate_exports(values.evaluations(), engines)


def best_of_n_with(values: RunValues, engines: Samplers) -> Result:
    """The bestofn stage, with engines that are up."""
    from raydpo.runtime.best_of_n import best_of_n

    with _timed(values, "bestofn"):
        return best_of_n(values.best_of_n(), engines)


def check_reachable(stage: str) -> None:
    """Raise UserError where RAY_ADDRESS leads nowhere and the stage needs a cluster."""
    from raydpo.runtime.cluster.connection import check_address

    named = os.environ.get("RAY_ADDRESS")
    if named and stage != "report":
        check_address(named)


@contextmanager
def on_cluster(values: RunValues, stage: str) -> Iterator[None]:
    """Connected to Ray, with the cluster known to hold the stage."""
    from raydpo.runtime.cluster import connection, preflight

    with connection.connect(values.cluster):
        for asked in preflight.bills(values.processes(), stage).values():
            preflight.check_fits(asked)
        with connection.user_errors():
            yield


@contextmanager
def _timed(values: RunValues, stage: str) -> Iterator[None]:
    """Keep the seconds that a stage takes in timings.json, beside those of the others."""
    begin = time.perf_counter()
    yield
    timings = values.layout.timings
    write_json(timings, {"stages": _kept_seconds(timings) | {stage: time.perf_counter() - begin}})


def _kept_seconds(timings: Path) -> dict[str, float]:
    """By stage; none where the file is missing or damaged, which must not end a stage that has done its work."""
    try:
        return dict(json.loads(timings.read_text(encoding="utf-8"))["stages"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return {}
