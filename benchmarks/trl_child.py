"""TRL's DPOTrainer as a contender: its own training loop, held at the end of each step until the next is asked for.

Options: "default" takes TRL's settings as they are; "best" precomputes the reference, sorts by length, switches
activation checkpointing off and takes smaller batches, which pad less. Either way dtype, optimizer and clipping are
those of the task.
"""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset  # type: ignore[import-not-found]  # TRL and what it needs are not raydpo's dependencies
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer  # type: ignore[import-not-found]

from benchmarks.child import Answer, Desk, Task, task_and_options
from benchmarks.measure import DEVICE, Stopwatch, peak_memory
from benchmarks.passes import BETA
from benchmarks.shapes import SMALL_BATCH, TRAINER_BATCH, read_pairs
from raydpo.model.load import DTYPES

NO_END = 10**6  # steps


class Remembering:
    """Makes a trainer take token ids as they are, and remember loss and padded tokens of the step's micro-batches."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.losses: list[Tensor] = []
        self.padded_tokens = 0
        super().__init__(*args, **kwargs)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As in TRL."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]  # of the trainer mixed in
        self.losses.append(loss.detach())
        self.padded_tokens += inputs["input_ids"].numel()
        return loss


class Trainer(Remembering, DPOTrainer):
    """TRL's, with a memory."""


class Pause(TrainerCallback):
    """Lets the loop run one step for every request."""

    def __init__(self, desk: Desk) -> None:
        self.trainer: Remembering | None = None
        self._desk = desk

    def on_train_begin(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
        """Wait for the first request."""
        self._next(control)

    def on_step_end(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
        """Answer, and wait for the next request: everything between two of them belongs to the step."""
        assert self.trainer
        spent = self._watch.stop()
        loss = float(torch.stack(self.trainer.losses).mean())
        answer = Answer(spent.busy, spent.wall, peak_memory(), loss=loss, padded_tokens=self.trainer.padded_tokens)
        self._desk.send(answer)
        self.trainer.losses, self.trainer.padded_tokens = [], 0
        self._next(control)

    def _next(self, control: Any) -> None:
        control.should_training_stop = not self._desk.wait()
        self._watch = Stopwatch()


def common_settings(task: Task, num_rows: int, *, best: bool) -> dict[str, Any]:
    """What DPO and reward models share: a step is all rows; best sorts, switches checkpointing off, pads less."""
    per_batch = min(SMALL_BATCH if best else TRAINER_BATCH, num_rows)
    own = {"train_sampling_strategy": "sequential", "gradient_checkpointing": False}
    return {
        "output_dir": task.scratch,
        "bf16": task.dtype == "bfloat16",
        "use_cpu": DEVICE == "cpu",
        "per_device_train_batch_size": per_batch,
        "gradient_accumulation_steps": num_rows // per_batch,
        "optim": {"rmsprop": "rmsprop", "adamw": "adamw_torch"}[task.optimizer],
        "learning_rate": task.lr,
        "lr_scheduler_type": "constant",
        "max_grad_norm": task.max_grad_norm,
        "max_steps": NO_END,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **(own if best else {}),
    }


def make_trainer(task: Task, pause: Pause, *, best: bool) -> Trainer:
    """One step of the trainer covers all pairs."""
    rows = read_pairs(task.pairs)
    if best:
        rows.sort(key=lambda row: len(row.prompt_ids) + max(map(len, row.completions)), reverse=True)
    columns = [
        {"prompt_ids": r.prompt_ids, "chosen_ids": r.completions[0], "rejected_ids": r.completions[1]} for r in rows
    ]
    own = {"precompute_ref_log_probs": True} if best else {}
    settings = DPOConfig(beta=BETA, **common_settings(task, len(rows), best=best), **own)
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(task.policy, dtype=DTYPES[task.dtype]),
        ref_model=AutoModelForCausalLM.from_pretrained(task.reference, dtype=DTYPES[task.dtype]),
        args=settings,
        train_dataset=Dataset.from_list(columns),
        processing_class=AutoTokenizer.from_pretrained(task.policy),
        callbacks=[pause],
    )
    if best:
        trainer.ref_model = None  # its values are stored: TRL would keep it only because it was passed in
    return trainer


def main() -> None:
    """Train until there are no more requests."""
    pause = Pause(Desk())
    task, [settings] = task_and_options()
    pause.trainer = make_trainer(task, pause, best=settings == "best")
    pause.trainer.train()


if __name__ == "__main__":
    main()
