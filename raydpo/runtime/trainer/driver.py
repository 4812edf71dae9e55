"""The driver's side of training: plan, start the worker group, wait, read the outcome."""

from __future__ import annotations

import json
import os
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

from raydpo.config.schema import Reward, Timeouts, Train, Training
from raydpo.data.order import Order
from raydpo.data.shards import TokenManifest
from raydpo.model.model_files import model_limits
from raydpo.objective.contract import REF_LOGPS, REF_TOKEN_LOGPS, Objective
from raydpo.objective.likelihood import fine_tuning
from raydpo.reference.dataset import MANIFEST, Dataset, open_dataset
from raydpo.reference.store import Store
from raydpo.reference.unconverted import check_converted
from raydpo.runtime.feed.overlap import ScoringBeside, score_ahead, tell_reached
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
    steps_of,
    write_identity,
)
from raydpo.workspace.job import Job, NewHeads
from raydpo.workspace.layout import Layout, store_of
from raydpo.workspace.lock import claim
from raydpo.workspace.objective import preference_objective, reward_model_objective
from raydpo.workspace.outcome import Stopped
from raydpo.workspace.own_files import clear_ray_files
from raydpo.workspace.prepared import check_longest_row
from raydpo.workspace.provenance import TokenSource, check_made_from, check_prepared
from raydpo.workspace.rows import RowSettings

if TYPE_CHECKING:
    from raydpo.runtime.evaluation import Evaluator


def train_policy(
    rows: RowSettings,
    evaluations: EvaluationSettings,
    scoring: ScoringBeside,
    timeouts: Timeouts,
    evaluator: Evaluator | None,
) -> dict[str, Any]:
    """Preference training, with evaluation beside it where there is an evaluator.

    scoring: asked only where train.reference is overlap.
    """
    layout = rows.layout
    train = rows.train
    settings = evaluations.training
    check_prepared(rows)
    dataset = open_dataset(layout.train_tokens)
    order = order_of(train, seed=settings.seed, num_rows=len(dataset), digest=dataset.digest)
    identity = identity_of(settings, order)
    check_resumable(layout.train, identity)
    objective = preference_objective(train)
    reads_reference = REF_LOGPS in objective.needs
    store = store_of(layout, evaluations.model, evaluations.reference.pool) if reads_reference else None
    overlapped = store is not None and train.reference == "overlap"
    if store:
        dataset = _joined(dataset, store, objective, overlapped=overlapped)
    plan = _plan(train, dataset, order, layout.train)
    job = _policy_job(evaluations, plan, identity, store, timeouts, evaluated=evaluator is not None)
    if store and overlapped and (ahead := score_ahead(scoring, store, dataset, plan.order, plan.num_steps)):
        job = replace(job, reached=partial(tell_reached, ahead.scorers))
        plan = replace(plan, ahead=ahead)
    return _fit_evaluated(job, plan, identity, evaluator)


def _joined(dataset: Dataset, store: Store, objective: Objective, *, overlapped: bool) -> Dataset:
    """The rows with what the objective reads of their reference values; overlapped: as far as the store has them."""
    check_converted(store, [dataset])
    dataset = dataset.with_known(store) if overlapped else dataset.with_reference(store)
    return dataset.with_reference_tokens(store) if REF_TOKEN_LOGPS in objective.needs else dataset


def _policy_job(
    evaluations: EvaluationSettings,
    plan: Plan,
    identity: Identity,
    store: Store | None,
    timeouts: Timeouts,
    *,
    evaluated: bool,
) -> Job:
    train = evaluations.train
    layout = evaluations.layout
    imported = store.unverified(plan.dataset.completion_ids) if store else []
    return _job(
        evaluations.training,
        plan,
        identity,
        claim=claim(layout.root),
        timeouts=timeouts,
        objective=preference_objective(train),
        retention=checkpoint_retention(train, evaluations),
        export=layout.export,
        evaluated=evaluated,
        evaluate_every=train.evaluate_every,
        step0_tolerance=train.step0_tolerance if store else None,
        confirm_imported=partial(store.mark_verified, imported) if store and imported else None,
    )


def _fit_evaluated(job: Job, plan: Plan, identity: Identity, evaluator: Evaluator | None) -> dict[str, Any]:
    if evaluator is None:
        return _fit(job, plan, identity, None)
    validation = ValidationConfig(evaluator.of_checkpoint, ray_remote_kwargs={"num_cpus": 0})
    with evaluator.reference_beside():
        return _fit(job, plan, identity, validation)


def train_sft(settings: TrainingSettings, source: TokenSource, layout: Layout, timeouts: Timeouts) -> dict[str, Any]:
    """Supervised fine-tuning of the starting model on the prepared sft rows, which were made from `source`."""
    training = settings.training
    check_made_from(source, layout.sft_tokens)
    dataset = open_dataset(layout.sft_tokens)
    order = order_of(training, seed=settings.seed, num_rows=len(dataset), digest=dataset.digest)
    identity = identity_of(settings, order)
    check_resumable(layout.sft, identity)
    plan = _plan(training, dataset, order, layout.sft)
    job = _job(
        settings,
        plan,
        identity,
        claim=claim(layout.root),
        timeouts=timeouts,
        objective=replace(fine_tuning(), observes=tuple(training.metrics)),
        retention=Retention(training.keep_last, training.keep_every),
        export=layout.sft_export_of,
        evaluated=False,
        evaluate_every=None,
        step0_tolerance=None,
        confirm_imported=None,
    )
    return _fit(job, plan, identity, None)


def train_reward(settings: TrainingSettings, rows: RowSettings, timeouts: Timeouts) -> dict[str, Any]:
    """Training of a reward model on the run's prepared rows; settings are those of the reward section."""
    training = settings.training
    assert isinstance(training, Reward)
    layout = rows.layout
    check_prepared(rows)
    model_limits(settings.model).check(TokenManifest.read(layout.train_tokens / MANIFEST).extent)
    dataset = open_dataset(layout.train_tokens)
    order = order_of(training, seed=settings.seed, num_rows=len(dataset), digest=dataset.digest)
    identity = identity_of(settings, order)
    check_resumable(layout.reward, identity)
    plan = _plan(training, dataset, order, layout.reward)
    job = _job(
        settings,
        plan,
        identity,
        claim=claim(layout.root),
        timeouts=timeouts,
        objective=reward_model_objective(training),
        retention=Retention(training.keep_last, training.keep_every),
        export=layout.reward_export_of,
        evaluated=False,
        evaluate_every=None,
        step0_tolerance=None,
        confirm_imported=None,
        heads=NewHeads(training.heads, settings.seed),
    )
    return _fit(job, plan, identity, None)


def _plan(training: Training, dataset: Dataset, order: Order, directory: Path) -> Plan:
    return Plan(dataset, order, training.tokens_per_microbatch, steps_of(training, order), directory / "checkpoints")


def _job(settings: TrainingSettings, plan: Plan, identity: Identity, **rest: Any) -> Job:
    return Job(
        model=settings.model,
        dtype=settings.dtype,
        fp32_head=settings.fp32_head,
        chat_template=settings.chat_template,
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
    return {found.step: found.measures[metric].mean for found in asked.records().valid if metric in found.measures}


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
