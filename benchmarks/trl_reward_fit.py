"""A reward model by TRL's RewardTrainer on the rows of a run and with the budget of its `reward` section.

Run: python -m benchmarks.trl_reward_fit RUNFILE OUT_DIR [key=value ...]   (after `raydpo prepare RUNFILE`)

Same tokens, untrained head, steps, batch, optimizer, schedule and clipping; float32 weights under bfloat16 autocast,
as TRL loads them where model.dtype is bfloat16. The rows come in TRL's own order. OUT_DIR is then a `reward_model:` for
benchmarks/held_out.py.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset  # type: ignore[import-not-found]  # TRL and what it needs are not raydpo's dependencies
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer  # type: ignore[import-not-found]

from benchmarks.measure import DEVICE, Stopwatch, peak_memory
from benchmarks.models import write_classifier
from benchmarks.shapes import SMALL_BATCH
from raydpo.config.load import load_run_file
from raydpo.config.schema import Reward
from raydpo.data.shards import read_shard, to_rows
from raydpo.model.load import DTYPES
from raydpo.reference.dataset import open_dataset
from raydpo.stages.values import RunValues


def main() -> None:
    """Train, save, and say what it took."""
    run_file, out, *overrides = sys.argv[1:]
    run = load_run_file(run_file, overrides)
    values = RunValues(run)
    assert run.reward
    rows = [row for path in open_dataset(values.layout.train_tokens).shards for row in to_rows(read_shard(path))]
    columns = [
        {name: row.prompt_ids + ids for name, ids in zip(("chosen_ids", "rejected_ids"), row.completions, strict=True)}
        for row in rows
    ]
    with tempfile.TemporaryDirectory(prefix="raydpo-benchmark-") as scratch:
        model = Path(run.reward.model or values.layout.start_model)
        start = write_classifier(model, Path(scratch) / "start", dtype="float32")
        budget = budget_of(run.reward)
        trainer = RewardTrainer(
            model=AutoModelForSequenceClassification.from_pretrained(start, dtype=DTYPES["float32"]),
            args=RewardConfig(output_dir=scratch, bf16=run.model.dtype == "bfloat16", seed=run.seed, **budget),
            train_dataset=Dataset.from_list(columns),
            processing_class=AutoTokenizer.from_pretrained(start),
        )
        watch = Stopwatch()
        trainer.train()
        spent = watch.stop()
        trainer.save_model(out)
    print(json.dumps({"busy": spent.busy, "wall": spent.wall, "peak": peak_memory(), "log": trainer.state.log_history}))


def budget_of(reward: Reward) -> dict[str, Any]:
    """The section in TRL's words, with the settings that are best for TRL on a CPU."""
    assert reward.max_steps
    return {
        "use_cpu": DEVICE == "cpu",
        "gradient_checkpointing": False,
        "per_device_train_batch_size": SMALL_BATCH,
        "gradient_accumulation_steps": reward.global_batch_size // SMALL_BATCH,
        "max_steps": reward.max_steps,
        "optim": {"rmsprop": "rmsprop", "adamw": "adamw_torch"}[reward.optimizer.name],
        "learning_rate": reward.optimizer.lr,
        "lr_scheduler_type": reward.optimizer.schedule,
        "warmup_steps": reward.optimizer.warmup_steps,
        "max_grad_norm": reward.optimizer.max_grad_norm,
        "weight_decay": reward.optimizer.weight_decay,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


if __name__ == "__main__":
    main()
