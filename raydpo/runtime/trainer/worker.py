"""What each Ray Train worker runs: build, resume, check, train, save, report. Ranks stay in step throughout."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ray.train
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raydpo.errors import UserError
from raydpo.model.batch import Batch
from raydpo.model.flops import forward_flops, matmul_ceiling
from raydpo.model.layout import layout_name
from raydpo.model.load import load_model
from raydpo.model.reward_model import start_reward_model
from raydpo.model.tokenizer import load_tokenizer
from raydpo.runtime.cluster.connection import quieten_ray_data, user_errors
from raydpo.runtime.feed.rank_batches import rank_batches
from raydpo.runtime.trainer.stopping import Requests
from raydpo.runtime.trainer.train_private import LOGGER_OF_WORKERS
from raydpo.storage.files import whole_lines, write_json, write_text
from raydpo.storage.space import room_for
from raydpo.track.progress import Progress
from raydpo.track.say import say
from raydpo.train.checkpoint.saver import Saver, resume
from raydpo.train.engine import Policy, init_distributed, limit_collectives, make_policy
from raydpo.train.export import export_policy
from raydpo.train.loop import Metrics, check_step_zero, train_loop
from raydpo.train.patience import Whereabouts, named, within
from raydpo.train.schedule import learning_rate
from raydpo.train.step import RankBatch, reduce_sums
from raydpo.workspace.job import Job
from raydpo.workspace.lock import hold

Line = dict[str, float | None]
"""A line of metrics.jsonl; mfu is None for models whose arithmetic is not known."""


def run_worker(job: Job) -> None:
    """A UserError on any rank ends the run, see raydpo.runtime.trainer.failures; other errors start the group again."""
    quieten_ray_data()
    hold(job.claim)
    place = Whereabouts(ray.train.get_context().get_world_rank())
    try:
        with user_errors(), named(place):
            _train(job, place)
    except UserError:
        logging.getLogger(LOGGER_OF_WORKERS).setLevel(logging.CRITICAL)
        raise


def _train(job: Job, place: Whereabouts) -> None:
    context = ray.train.get_context()
    init_distributed(context.get_world_size())
    device = ray.train.torch.get_device()
    torch.set_num_threads(max(1, int(job.training.workers.cpus)))
    ceiling = matmul_ceiling(getattr(torch, job.dtype), device)
    lm = _load(job, device)
    training = job.training
    policy = make_policy(
        lm,
        optimizer=training.optimizer,
        zero=training.zero,
        activation_checkpointing=training.activation_checkpointing,
        fp32_head=job.fp32_head,
    )
    limit_collectives(job.timeouts.collective)
    checkpoints = job.directory / "checkpoints"
    tokenizer = load_tokenizer(job.model, job.chat_template)
    found = resume(policy, checkpoints)
    start = found.cursor.step if found else 0
    with Saver(policy, tokenizer, checkpoints, identity=job.identity, retention=job.retention) as saver:
        recorder = Recorder(job, policy, saver, start=start, ceiling=ceiling, tokenizer=tokenizer)
        place.at = f"waiting for the rows of step {start + 1}"
        train_loop(
            policy,
            recorder.until_stopped(within(_fed(job, policy, start), job.timeouts.data, place), place),
            job.objective,
            lr=lambda step: learning_rate(
                step,
                peak=training.optimizer.lr,
                warmup_steps=training.optimizer.warmup_steps,
                num_steps=job.num_steps,
                schedule=training.optimizer.schedule,
            ),
            after_step=recorder.after_step,
        )


def _load(job: Job, device: torch.device) -> PreTrainedModel:
    """What training starts from: a language model, or one with the heads of a reward model."""
    if job.heads is None:
        return load_model(job.model, dtype=job.dtype, device=device)
    heads = job.heads
    return start_reward_model(job.model, dtype=job.dtype, heads=heads.count, seed=heads.seed, device=device)


def _fed(job: Job, policy: Policy, start: int) -> Iterator[RankBatch]:
    """This rank's batches. To be begun after resume: the feed starts at the commit that it has left as the latest."""
    rows = ray.train.get_dataset_shard("rows")
    yield from rank_batches(rows, steps=range(start, job.num_steps), device=policy.device)


class Recorder:
    """What happens around the steps on one rank: metrics, checkpoints, exports, reports to Ray."""

    def __init__(
        self,
        job: Job,
        policy: Policy,
        saver: Saver,
        *,
        start: int,
        ceiling: float,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self._job = job
        self._policy = policy
        self._saver = saver
        self._ceiling = ceiling
        self._tokenizer = tokenizer
        self._requests = Requests(job.directory, rank=policy.rank)
        self._stop = False
        if policy.rank == 0:
            self._metrics = job.directory / "metrics.jsonl"
            lines = whole_lines(self._metrics)
            kept = [line for line in lines if json.loads(line)["step"] <= start]
            write_text(self._metrics, "".join(kept))
            say(f"{job.directory.name}: {layout_name(policy.lm)}")
            if lines:
                again = len(lines) - len(kept)
                say(f"{job.directory.name}: goes on after step {start}, {again} steps are done again")
            self._progress = Progress(job.directory.name, total=job.num_steps, unit="steps", done=start)

    def until_stopped(self, batches: Iterator[RankBatch], place: Whereabouts) -> Iterator[RankBatch]:
        """The batches as they come, with `place` kept true, until a stop is asked for."""
        for rank_batch in batches:
            place.at = f"step {rank_batch.step + 1}"
            if rank_batch.step == 0 and self._job.step0_tolerance is not None:
                self._check_first(rank_batch, self._job.step0_tolerance)
            yield rank_batch
            if self._stop:
                return
            place.at = f"waiting for the rows of step {rank_batch.step + 2}"

    def after_step(self, rank_batch: RankBatch, metrics: Metrics) -> None:
        """Record, and save or export where it is due or asked for."""
        job = self._job
        step = rank_batch.step + 1
        totals = self._totals(rank_batch)
        self._stop = totals["stop"] > 0
        notice = totals["notice"] > 0
        walked = {"epoch": rank_batch.epoch, "num_tokens": rank_batch.num_tokens}
        line: Line = {"step": step, **walked, **metrics, **_speed(totals, rank_batch, metrics["seconds"])}
        last = step == job.num_steps
        export = job.exports_at(step)
        if export:
            self._export(step, compare_on=rank_batch.micro_batches[0])
        if notice:
            self._say(f"step {step}: a node is about to be taken away; saving")
        save = last or self._stop or notice or step % job.training.checkpoint_every == 0
        line["checkpoint_stall_seconds"] = self._saver.copy(step) if save else 0.0
        if self._policy.rank == 0:
            self._record(line, step)
        if save:
            self._saver.commit()  # after export and record: a run whose last step is committed is whole
        if export:
            self._report(line, step)

    def _check_first(self, rank_batch: RankBatch, tolerance: float) -> None:
        """The run's very first batch must satisfy the step-0 law."""
        confirm = self._job.confirm_imported
        gap = check_step_zero(self._policy, rank_batch.micro_batches, tolerance=tolerance, imported=confirm is not None)
        self._say(f"step-0 law holds: max |Δ logp| {gap:.2e} nats per sequence")
        if self._policy.rank == 0:
            write_json(self._job.directory / "step0.json", {"max_abs_delta_logp": gap})
            if confirm:
                confirm()

    def _export(self, step: int, *, compare_on: Batch) -> None:
        begin = time.perf_counter()
        job = self._job
        directory = export_policy(
            self._policy, self._tokenizer, job.export(step), compare_on=compare_on, identity=job.identity, step=step
        )
        self._say(f"step {step}: exported to {directory} in {time.perf_counter() - begin:.1f} s")

    def _totals(self, rank_batch: RankBatch) -> Metrics:
        """Of the whole group: the step's tokens and FLOPs, all ranks' ceilings, and what rank 0 is asked to do."""
        tokens = sum(batch.input_ids.numel() for batch in rank_batch.micro_batches)
        mine = {"tokens": tokens, "ceiling": self._ceiling, **self._requests.poll()}
        bounds = tuple(row for batch in rank_batch.micro_batches for row in batch.bounds)
        forward = forward_flops(self._policy.lm, bounds)
        if forward is not None:  # all ranks have the same model, so they agree
            mine["flops"] = 3 * forward
        return reduce_sums({name: torch.tensor(float(value)) for name, value in mine.items()})

    def _record(self, line: Line, step: int) -> None:
        text = json.dumps(line, allow_nan=False) + "\n"
        with room_for(len(text), self._metrics), self._metrics.open("a") as stream:
            stream.write(text)
        figures = ("loss", "rewards/accuracies", "mfu")
        shown = {name: value for name in figures if (value := line.get(name)) is not None}
        self._progress.advance(1, **shown)
        if self._job.reached:
            self._job.reached(step)

    def _report(self, line: Line, step: int) -> None:
        """Tell Ray Train, which starts the evaluation beside training. The checkpoint it gets is a pointer."""
        if self._policy.rank:
            ray.train.report(line)
            return
        export = {"step": step, "path": str(self._job.export(step))}
        with tempfile.TemporaryDirectory() as pointer:  # report copies it before it returns
            write_json(Path(pointer) / "export.json", export)
            checkpoint = ray.train.Checkpoint.from_directory(pointer)
            ray.train.report(line, checkpoint=checkpoint, validation=self._job.evaluated)

    def _say(self, text: str) -> None:
        if self._policy.rank == 0:
            say(text)


def _speed(totals: Metrics, rank_batch: RankBatch, seconds: float) -> Line:
    """Tokens and rows per second of the whole group, and its use of its own matmul ceiling where that is known."""
    return {
        "tokens_per_second": totals["tokens"] / seconds,
        "rows_per_second": rank_batch.totals["rows"] / seconds,
        "mfu": totals["flops"] / seconds / totals["ceiling"] if "flops" in totals else None,
    }
