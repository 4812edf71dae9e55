"""TRL's RewardTrainer as a contender, held at the end of each step as its DPOTrainer is (benchmarks/trl_child.py).

Options: "default" takes TRL's settings as they are; "best" sorts by length, switches activation checkpointing off and
takes smaller batches, which pad less. The task's policy is a sequence classifier: the head that raydpo starts from.
"""

from __future__ import annotations

from datasets import Dataset  # type: ignore[import-not-found]  # TRL and what it needs are not raydpo's dependencies
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer  # type: ignore[import-not-found]

from benchmarks.child import Desk, Task, task_and_options
from benchmarks.shapes import read_pairs
from benchmarks.trl_child import Pause, Remembering, common_settings
from raydpo.model.load import DTYPES


class Trainer(Remembering, RewardTrainer):
    """TRL's, with a memory."""


def make_trainer(task: Task, pause: Pause, *, best: bool) -> Trainer:
    """One step of the trainer covers all pairs."""
    rows = read_pairs(task.pairs)
    if best:
        rows.sort(key=lambda row: len(row.prompt_ids) + max(map(len, row.completions)), reverse=True)
    columns = [
        {name: row.prompt_ids + ids for name, ids in zip(("chosen_ids", "rejected_ids"), row.completions, strict=True)}
        for row in rows
    ]
    return Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(task.policy, dtype=DTYPES[task.dtype]),
        args=RewardConfig(**common_settings(task, len(rows), best=best)),
        train_dataset=Dataset.from_list(columns),
        processing_class=AutoTokenizer.from_pretrained(task.policy),
        callbacks=[pause],
    )


def main() -> None:
    """Train until there are no more requests."""
    pause = Pause(Desk())
    task, [settings] = task_and_options()
    trainer = make_trainer(task, pause, best=settings == "best")
    pause.trainer = trainer
    trainer.train()


if __name__ == "__main__":
    main()
