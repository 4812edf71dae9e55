"""What each Ray Train worker runs: build, resume, check, train, save, report. Ranks stay in step throughout."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from transformers import PreTrainedTokenizerBase

from raydpo.config.errors import UserError
from raydpo.config.files import write_json, write_text
from raydpo.config.schema import Training
from raydpo.model.batch import Batch
from raydpo.model.flops import forward_flops, matmul_ceiling
from raydpo.model.layout import layout_name
from raydpo.model.load import load_model, load_tokenizer
from raydpo.objective.objectives import Objective
from raydpo.runtime.feed import shares
from raydpo.runtime.progress import Progress
from raydpo.train.checkpoint import Saver, resume
from raydpo.train.engine import Policy, init_distributed, make_policy
from raydpo.train.export import export_policy
from raydpo.train.loop import Metrics, check_step_zero, train_loop
from raydpo.train.retention import Retention
from raydpo.train.schedule import learning_rate
from raydpo.train.step import Share, reduce_sums


@dataclass(frozen=True)
class Job:
    """One training job, preference or sft, as its workers need it."""

    model: str
    dtype: str
    fp32_head: bool
    training: Training
    objective: Objective
    num_steps: int
    identity: str  # hash of what makes this run this run
    directory: Path  # checkpoints, metrics
    retention: Retention  # of checkpoints
    exports: str  # where an export goes, with {step}
    evaluated: bool  # exports are evaluated beside training
    evaluate_every: int | None  # steps between exports; the last step is exported in any case
    step0_tolerance: float | None  # None: no reference to compare with
    confirm_imported: Callable[[], None] | None  # marks imported reference values as verified; None: there are none


def run_worker(config: dict[str, Any]) -> None:
    """Ray Train's entry point. A UserError ends the run at once instead of being retried."""
    job: Job = config["job"]
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # it would print every pipeline in full
    try:
        _train(job)
    except UserError as error:
        if ray.train.get_context().get_world_rank() == 0:
            with suppress(OSError):  # where nothing can be written, the failure itself carries the message
                write_json(job.directory / "refused.json", {"error": str(error)})
                return
            raise


def _train(job: Job) -> None:
    context = ray.train.get_context()
    init_distributed(context.get_world_size())
    device = ray.train.torch.get_device()
    torch.set_num_threads(max(1, int(job.training.workers.cpus)))
    ceiling = matmul_ceiling(getattr(torch, job.dtype), device)
    lm = load_model(job.model, dtype=job.dtype, device=device)
    training = job.training
    policy = make_policy(
        lm,
        optimizer=training.optimizer,
        zero=training.zero,
        activation_checkpointing=training.activation_checkpointing,
        fp32_head=job.fp32_head,
    )
    checkpoints, tokenizer = job.directory / "checkpoints", load_tokenizer(job.model)
    found = resume(policy, checkpoints)
    start = found.cursor.step if found else 0
    rows = ray.train.get_dataset_shard("rows")  # after resume: the feed starts at the commit that it left as the latest
    with Saver(policy, tokenizer, checkpoints, identity=job.identity, retention=job.retention) as saver:
        desk = Desk(job, policy, saver, start=start, ceiling=ceiling, tokenizer=tokenizer)
        train_loop(
            policy,
            desk.first_checked(shares(rows, job.objective, first_step=start, device=policy.device)),
            job.objective,
            lr=lambda step: learning_rate(
                step,
                peak=training.optimizer.lr,
                warmup_steps=training.optimizer.warmup_steps,
                num_steps=job.num_steps,
                schedule=training.optimizer.schedule,
            ),
            after_step=desk.after_step,
        )


class Desk:
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
        self._job, self._policy, self._saver, self._ceiling, self._tokenizer = job, policy, saver, ceiling, tokenizer
        if policy.rank == 0:
            self._metrics = job.directory / "metrics.jsonl"
            write_text(self._metrics, _lines_up_to(self._metrics, start))
            print(f"{job.directory.name}: {layout_name(policy.lm)}", flush=True)
            self._progress = Progress(job.directory.name, total=job.num_steps, unit="steps", done=start)

    def first_checked(self, shares: Iterator[Share]) -> Iterator[Share]:
        """The shares as they come, but the run's very first must satisfy the step-0 law."""
        job, confirm = self._job, self._job.confirm_imported
        for share in shares:
            if share.step == 0 and job.step0_tolerance is not None:
                gap = check_step_zero(
                    self._policy, share.micro_batches, tolerance=job.step0_tolerance, imported=confirm is not None
                )
                self._say(f"step-0 law holds: max |Δ logp| {gap:.2e} nats per sequence")
                if self._policy.rank == 0:
                    write_json(job.directory / "step0.json", {"max_abs_delta_logp": gap})
                    if confirm:
                        confirm()
            yield share

    def after_step(self, share: Share, metrics: Metrics) -> None:
        """Record, and save or export where it is due."""
        job, step = self._job, share.step + 1
        metrics = {"step": step, **metrics, **self._speed(share, metrics["seconds"])}
        last = step == job.num_steps
        export = last or (job.evaluate_every and step % job.evaluate_every == 0)
        if export:
            self._export(step, probe=share.micro_batches[0])
        save = last or step % job.training.checkpoint_every == 0
        metrics["checkpoint_stall_seconds"] = self._saver.copy(step) if save else 0.0
        if self._policy.rank == 0:
            self._record(metrics)
        if save:
            self._saver.commit()  # after export and record: a run whose last step is committed is whole
        if export:
            self._report(metrics)

    def _export(self, step: int, *, probe: Batch) -> None:
        begin = time.perf_counter()
        directory = export_policy(self._policy, self._tokenizer, Path(self._job.exports.format(step=step)), probe=probe)
        self._say(f"step {step}: exported to {directory} in {time.perf_counter() - begin:.1f} s")

    def _speed(self, share: Share, seconds: float) -> Metrics:
        """Tokens and pairs per second of the whole group, and this machine's use of its own matmul ceiling."""
        flops = 3 * sum(forward_flops(self._policy.lm, batch.bounds) for batch in share.micro_batches)
        sums = {
            "tokens": torch.tensor(float(sum(batch.input_ids.numel() for batch in share.micro_batches))),
            "flops": torch.tensor(flops),
            "ceiling": torch.tensor(self._ceiling),
        }
        totals = reduce_sums(sums)
        return {
            "tokens_per_second": totals["tokens"] / seconds,
            "pairs_per_second": share.num_rows / seconds,
            "mfu": totals["flops"] / seconds / totals["ceiling"],
        }

    def _record(self, metrics: Metrics) -> None:
        with self._metrics.open("a") as stream:
            stream.write(json.dumps(metrics) + "\n")
        shown = {name: metrics[name] for name in ("loss", "rewards/accuracies", "mfu") if name in metrics}
        self._progress.advance(1, **shown)

    def _report(self, metrics: Metrics) -> None:
        """Tell Ray Train, which starts the evaluation beside training. The checkpoint it gets is a pointer."""
        if self._policy.rank:
            ray.train.report(metrics)
            return
        export = {"step": metrics["step"], "path": self._job.exports.format(step=metrics["step"])}
        with tempfile.TemporaryDirectory() as pointer:  # report copies it before it returns
            write_json(Path(pointer) / "export.json", export)
            checkpoint = ray.train.Checkpoint.from_directory(pointer)
            ray.train.report(metrics, checkpoint=checkpoint, validation=self._job.evaluated)

    def _say(self, text: str) -> None:
        if self._policy.rank == 0:
            print(text, flush=True)


def _lines_up_to(path: Path, steps: int) -> str:
    """Recorded metrics of the steps that a resumed run does not repeat."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return "".join(line for line in lines if json.loads(line)["step"] <= steps)
