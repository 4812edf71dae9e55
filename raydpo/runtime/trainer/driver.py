"""The driver's side of training: plan, start the worker group, wait, read the outcome."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import ray
import ray.data
from ray.train import ControllerError, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.validation_config import ValidationConfig

from raydpo.config.schema import RunFile, Timeouts, Train, Training
from raydpo.data.order import Order
from raydpo.objective.contract import REF_LOGPS, REF_TOKEN_LOGPS
from raydpo.objective.likelihood import fine_tuning
from raydpo.reference.dataset import Dataset, open_dataset
from raydpo.reference.unconverted import check_converted
from raydpo.runtime.feed.overlap import score_ahead, tell_reached
from raydpo.runtime.feed.plan import OrderedFeed, Plan
from raydpo.runtime.trainer.exports import check_room_for_exports, last_export
from raydpo.runtime.trainer.failures import FailureLog, final_refusal
from raydpo.runtime.trainer.starting import START_RETRIES, RoomWatch
from raydpo.runtime.trainer.stopping import stop_asked, stop_on_sigterm
from raydpo.storage.files import whole_lines
from raydpo.track.say import say
from raydpo.train.checkpoint.commits import Commit, latest, newest
from raydpo.train.checkpoint.retention import Retention
from raydpo.workspace.asked import EvaluationSettings, OriginsToday
from raydpo.workspace.identity import (
    Identity,
    TrainingSettings,
    check_resumable,
    identity_of,
    order_of,
    sft_settings,
    steps_of,
    train_settings,
    write_identity,
)
from raydpo.workspace.job import Job
from raydpo.workspace.layout import Layout, reference_store
from raydpo.workspace.lock import claim
from raydpo.workspace.objective import preference_objective
from raydpo.workspace.outcome import Stopped
from raydpo.workspace.own_files import clear_ray_files
from raydpo.workspace.prepared import check_longest_row
from raydpo.workspace.provenance import check_made_from, check_prepared, token_source

if TYPE_CHECKING:
    from raydpo.runtime.evaluation import Evaluator


def train_policy(run: RunFile, evaluator: Evaluator | None) -> dict[str, Any]:
    """Preference training, with evaluation beside it where there is an evaluator."""
    layout = Layout(run)
    check_prepared(run)
    dataset = open_dataset(layout.train_tokens)
    order = order_of(run.train, seed=run.seed, num_rows=len(dataset), digest=dataset.digest)
    settings = train_settings(run)
    identity = identity_of(settings, order)
    check_resumable(layout.train, identity)
    objective = preference_objective(run.train)
    store = reference_store(run) if REF_LOGPS in objective.needs else None
    overlapped = store is not None and run.train.reference == "overlap"
    imported: list[str] = []
    if store:
        check_converted(store, [dataset])
        dataset = dataset.with_known(store) if overlapped else dataset.with_reference(store)
        if REF_TOKEN_LOGPS in objective.needs:
            dataset = dataset.with_reference_tokens(store)
        imported = store.unverified(dataset.completion_ids)
    plan = _plan(run.train, dataset, order, layout.train)
    job = _job(
        settings,
        plan,
        identity,
        claim=claim(layout.root),
        timeouts=run.timeouts,
        objective=objective,
        retention=checkpoint_retention(run.train, EvaluationSettings.of(run)),
        export=layout.export,
        evaluated=evaluator is not None,
        evaluate_every=run.train.evaluate_every,
        step0_tolerance=run.train.step0_tolerance if store else None,
        confirm_imported=partial(store.mark_verified, imported) if store and imported else None,
    )
    if store and overlapped and (ahead := score_ahead(run, store, dataset, plan.order, plan.num_steps)):
        job = replace(job, reached=partial(tell_reached, ahead.scorers))
        plan = replace(plan, ahead=ahead)
    validation = None
    if evaluator:
        validation = ValidationConfig(evaluator.of_checkpoint, ray_remote_kwargs=evaluator.resources)
    with evaluator.reference_beside() if evaluator else nullcontext():
        return _fit(job, plan, identity, validation)


def train_sft(run: RunFile) -> dict[str, Any]:
    """Supervised fine-tuning of the starting model on the prepared sft rows."""
    layout = Layout(run)
    assert run.sft
    check_made_from(token_source(run, "sft"), layout.sft_tokens)
    dataset = open_dataset(layout.sft_tokens)
    order = order_of(run.sft, seed=run.seed, num_rows=len(dataset), digest=dataset.digest)
    settings = sft_settings(run)
    identity = identity_of(settings, order)
    check_resumable(layout.sft, identity)
    plan = _plan(run.sft, dataset, order, layout.sft)
    job = _job(
        settings,
        plan,
        identity,
        claim=claim(layout.root),
        timeouts=run.timeouts,
        objective=replace(fine_tuning(), observes=tuple(run.sft.metrics)),
        retention=Retention(run.sft.keep_last, run.sft.keep_every),
        export=layout.sft_export_of,
        evaluated=False,
        evaluate_every=None,
        step0_tolerance=None,
        confirm_imported=None,
    )
    return _fit(job, plan, identity, None)


def _plan(training: Training, dataset: Dataset, order: Order, directory: Path) -> Plan:
    return Plan(dataset, order, training.tokens_per_microbatch, steps_of(training, order), directory / "checkpoints")


def _job(settings: TrainingSettings, plan: Plan, identity: Identity, **rest: Any) -> Job:
    return Job(
        model=settings.model,
        dtype=settings.dtype,
        fp32_head=settings.fp32_head,
        training=settings.training,
        directory=settings.directory,
        num_steps=plan.num_steps,
        identity=identity.digest,
        **rest,
    )


def checkpoint_retention(train: Train, evaluations: EvaluationSettings) -> Retention:
    """Which checkpoints of a run stay; the best is the one whose evaluation says so, read at every commit."""
    if train.keep_best is None:
        return Retention(train.keep_last, train.keep_every)
    scores = partial(_scores, OriginsToday(evaluations), train.keep_best)
    return Retention(train.keep_last, train.keep_every, scores, train.evaluate_every)


def _scores(asked: OriginsToday, metric: str) -> dict[int, float]:
    """The figure of each step that has been evaluated; records of another run's steps are not valid."""
    intervals = {found.step: getattr(found, metric) for found in asked.records().valid}
    return {step: interval.mean for step, interval in intervals.items() if interval}


def _fit(job: Job, plan: Plan, identity: Identity, validation: ValidationConfig | None) -> dict[str, Any]:
    """Run the worker group to the end; UserError when a worker refused the run."""
    workers = job.training.workers
    check_longest_row(int(plan.dataset.tokens.max()), job.training, job.directory.name)
    if finished := _finished(plan):
        say(f"{job.directory.name}: all {finished.cursor.step} steps are done already")
        return _outcome(job, plan, finished)
    begun = latest(plan.checkpoints)
    check_room_for_exports(job, done=begun.cursor.step if begun else 0)
    write_identity(job.directory, identity)
    trainer = _trainer(job, plan, validation)
    try:
        with stop_on_sigterm(job.directory):
            trainer.fit()
    except ControllerError as error:
        if not isinstance(error.controller_failure, Stopped):
            raise final_refusal(error, workers, job.timeouts) or error from None
    found = latest(plan.checkpoints)
    step = found.cursor.step if found else 0
    if stop_asked(job.directory):
        raise Stopped(f"{job.directory.name} has committed step {step}; the same command goes on from there")
    if found is None or step < plan.num_steps:
        raise RuntimeError(f"{job.directory.name} has ended after step {step} of {plan.num_steps}.")
    return _outcome(job, plan, found)


def _trainer(job: Job, plan: Plan, validation: ValidationConfig | None) -> TorchTrainer:
    workers = job.training.workers
    resources = {"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})}
    ray_files = job.directory / "ray"
    clear_ray_files(ray_files)  # Ray's own snapshot must never decide where a run resumes
    _announce(job.timeouts)
    return TorchTrainer(
        work_on,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=(workers.min_count, workers.count) if workers.min_count else workers.count,
            resources_per_worker=resources,
            use_gpu=workers.gpus > 0,
        ),
        run_config=RunConfig(
            name="group",
            storage_path=str(ray_files),
            # Nodes that are taken away with notice are counted apart, and without limit.
            failure_config=FailureConfig(
                max_failures=job.training.max_failures, controller_failure_limit=START_RETRIES
            ),
            callbacks=[FailureLog(job.directory), RoomWatch(job.directory, workers, job.timeouts)],
            logging_config=LoggingConfig(log_level="WARNING"),  # it would print every report in full
        ),
        torch_config=TorchConfig(backend="nccl" if workers.gpus else "gloo", timeout_s=job.timeouts.collective),
        datasets={"rows": ray.data.range(1)},  # a placeholder: the feed brings its own
        dataset_config=OrderedFeed(plan),
        validation_config=validation,
    )


def _announce(timeouts: Timeouts) -> None:
    """Ray Train takes these from the environment of the driver, and from nowhere else."""
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(timeouts.start)
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(timeouts.worker)
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = str(timeouts.collective)


def _finished(plan: Plan) -> Commit | None:
    """The commit of the last step where it stands and verifies.

    Files are verified here only when nothing is left to do: otherwise the workers verify what they load.
    """
    found = latest(plan.checkpoints)
    if found is None or found.cursor.step < plan.num_steps:
        return None
    verified = newest(plan.checkpoints)
    return verified if verified and verified.cursor.step >= plan.num_steps else None


def _outcome(job: Job, plan: Plan, last: Commit) -> dict[str, Any]:
    """A job's result; null for what metrics.jsonl does not say (any more)."""
    lines = [json.loads(line) for line in whole_lines(job.directory / "metrics.jsonl")]
    losses = {line["step"]: line["loss"] for line in lines}
    known = [line["mfu"] for line in lines if line["mfu"] is not None]
    return {
        "steps": last.cursor.step,
        "rows": len(plan.dataset),
        "left_over": plan.order.left_over,
        "first_loss": losses.get(1),
        "last_loss": losses.get(last.cursor.step),
        "mfu": fmean(known) if known else None,
        "export": str(last_export(job, last)),
    }


def work_on(config: dict[str, Job]) -> None:
    """Ray Train's entry point. Its controller imports this file as well, and must not load what only workers need."""
    from raydpo.runtime.trainer.worker import run_worker

    run_worker(config["job"])
