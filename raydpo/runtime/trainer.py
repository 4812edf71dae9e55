"""The driver's side of training: plan, start the worker group, wait, read the outcome."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.data
from ray.train import ControllerError, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.validation_config import ValidationConfig

from raydpo.config.errors import UserError
from raydpo.config.say import say
from raydpo.config.schema import RunFile, Timeouts, Train, Training
from raydpo.data.order import Order
from raydpo.evaluate.records import read_evaluations
from raydpo.objective import objectives
from raydpo.runtime.dataset import Dataset, open_dataset
from raydpo.runtime.failures import FailureLog, final_refusal
from raydpo.runtime.feed import OrderedFeed, Plan
from raydpo.runtime.job import Job, work_on
from raydpo.runtime.layout import Layout, reference_store
from raydpo.runtime.lock import claim
from raydpo.runtime.outcome import Stopped
from raydpo.runtime.overlap import score_ahead, tell_reached
from raydpo.runtime.preflight import EVALUATION_CPUS
from raydpo.runtime.prepared import check_budget
from raydpo.runtime.provenance import check_made_from, check_prepared
from raydpo.runtime.starting import START_RETRIES, RoomWatch
from raydpo.runtime.stopping import stop_asked, stop_on_sigterm
from raydpo.train.commits import Cursor, latest, newest
from raydpo.train.retention import Retention

if TYPE_CHECKING:
    from raydpo.runtime.evaluation import Evaluator

DPO = {"dpo": objectives.dpo}


def train_policy(run: RunFile, evaluator: Evaluator | None) -> dict[str, Any]:
    """Preference training, with evaluation beside it where there is an evaluator."""
    layout = Layout(run)
    store = reference_store(run)
    overlapped = run.train.reference == "overlap"
    check_prepared(run)
    dataset = open_dataset(layout.train_tokens)
    dataset = dataset.with_known(store) if overlapped else dataset.with_reference(store)
    imported = store.unverified(dataset.row_ids)
    options = run.train.objective.model_dump()
    objective = DPO[options.pop("name")](**options)
    job, plan = _job(
        run,
        run.train,
        dataset,
        model=layout.start_model,
        objective=objective,
        directory=layout.train,
        retention=checkpoint_retention(run.train, layout.evaluations),
        exports=str(layout.exports / "step-{step:06d}"),
        evaluated=evaluator is not None,
        evaluate_every=run.train.evaluate_every,
        step0_tolerance=run.train.step0_tolerance,
        confirm_imported=partial(store.mark_verified, imported) if imported else None,
    )
    if overlapped and (ahead := score_ahead(run, store, dataset, plan.order, plan.num_steps)):
        job = replace(job, reached=partial(tell_reached, ahead.scorers))
        plan = replace(plan, ahead=ahead)
    validation = None
    if evaluator:
        validation = ValidationConfig(evaluator.of_checkpoint, ray_remote_kwargs={"num_cpus": EVALUATION_CPUS})
    with evaluator.reference_beside() if evaluator else nullcontext():
        outcome = _fit(job, plan, validation)
    return {**outcome, "export": str(layout.export(plan.num_steps))}


def train_sft(run: RunFile) -> dict[str, Any]:
    """Supervised fine-tuning of the starting model on the prepared sft rows."""
    layout = Layout(run)
    assert run.sft
    check_made_from(run, "sft", layout.sft_tokens)
    job, plan = _job(
        run,
        run.sft,
        open_dataset(layout.sft_tokens),
        model=run.model.path,
        objective=objectives.sft(),
        directory=layout.sft,
        retention=Retention(run.sft.keep_last, run.sft.keep_every),
        exports=str(layout.sft_export),
        evaluated=False,
        evaluate_every=None,
        step0_tolerance=None,
        confirm_imported=None,
    )
    return {**_fit(job, plan, None), "export": str(layout.sft_export)}


def _job(run: RunFile, training: Training, dataset: Dataset, *, directory: Path, **rest: Any) -> tuple[Job, Plan]:
    order = Order(
        num_pairs=len(dataset),
        global_batch_size=training.global_batch_size,
        epochs=training.epochs,
        seed=run.seed,
        digest=dataset.digest,
        tail=training.tail,
    )
    num_steps = min(order.num_steps, training.max_steps or order.num_steps)
    plan = Plan(dataset, order, training.tokens_per_microbatch, num_steps, directory / "checkpoints")
    # Whoever changes one of these starts another run, and must not resume this one.
    meaning = (order, run.model.dtype, run.model.fp32_head, training.model_dump(include={"objective", "optimizer"}))
    job = Job(
        dtype=run.model.dtype,
        fp32_head=run.model.fp32_head,
        training=training,
        num_steps=num_steps,
        identity=hashlib.blake2b(repr(meaning).encode(), digest_size=8).hexdigest(),
        directory=directory,
        claim=claim(Path(run.output_dir)),
        timeouts=run.timeouts,
        **rest,
    )
    return job, plan


def checkpoint_retention(train: Train, evaluations: Path) -> Retention:
    """Which checkpoints of a run stay; the best is the one whose evaluation says so, read at every commit."""
    if train.keep_best is None:
        return Retention(train.keep_last, train.keep_every)
    scores = partial(_scores, evaluations, train.keep_best)
    return Retention(train.keep_last, train.keep_every, scores, train.evaluate_every)


def _scores(evaluations: Path, metric: str) -> dict[int, float]:
    intervals = {found.step: getattr(found, metric) for found in read_evaluations(evaluations)}
    return {step: interval.mean for step, interval in intervals.items() if interval}


def _fit(job: Job, plan: Plan, validation: ValidationConfig | None) -> dict[str, Any]:
    """Run the worker group to the end; UserError when a worker refused the run."""
    workers = job.training.workers
    check_budget(int(plan.dataset.tokens.max()), job.training, job.directory.name)
    job.directory.mkdir(parents=True, exist_ok=True)
    if _all_done(job, plan):
        say(f"{job.directory.name}: all {plan.num_steps} steps are done already")
        return _outcome(job, plan)
    trainer = _trainer(job, plan, validation)
    try:
        with stop_on_sigterm(job.directory):
            trainer.fit()
    except ControllerError as error:
        if not isinstance(error.controller_failure, Stopped):
            raise final_refusal(error, workers, job.timeouts) or error from None
    if stop_asked(job.directory):
        found = latest(plan.checkpoints)
        step = found.cursor.step if found else 0
        raise Stopped(f"{job.directory.name} has committed step {step}; the same command goes on from there")
    return _outcome(job, plan)


def _trainer(job: Job, plan: Plan, validation: ValidationConfig | None) -> TorchTrainer:
    workers = job.training.workers
    resources = {"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})}
    ray_files = job.directory / "ray"
    shutil.rmtree(ray_files, ignore_errors=True)  # Ray's own snapshot must never decide where a run resumes
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


def _all_done(job: Job, plan: Plan) -> bool:
    """Whether the last step is committed; UserError when the commits are another run's.

    Files are verified here only when nothing is left to do: otherwise the workers verify what they load.
    """
    found = latest(plan.checkpoints)
    if found:
        _check_resumable(found.cursor, job)
    if found is None or found.cursor.step < plan.num_steps:
        return False
    verified = newest(plan.checkpoints)
    return verified is not None and verified.cursor.step >= plan.num_steps


def _check_resumable(cursor: Cursor, job: Job) -> None:
    if cursor.identity != job.identity:
        raise UserError(
            f"{job.directory} holds a run over other data or with another seed, global_batch_size, epochs, tail, "
            f"objective, optimizer or dtype, committed at step {cursor.step}; use another output_dir, or remove that "
            "directory to start again."
        )


def _outcome(job: Job, plan: Plan) -> dict[str, Any]:
    lines = [json.loads(line) for line in (job.directory / "metrics.jsonl").read_text().splitlines()]
    first, last = lines[0], lines[-1]
    return {
        "steps": plan.num_steps,
        "rows": len(plan.dataset),
        "left_over": plan.order.left_over,
        "first_loss": first["loss"],
        "last_loss": last["loss"],
        "mfu": sum(line["mfu"] for line in lines) / len(lines),
    }
