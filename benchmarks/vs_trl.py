"""A DPO training step of TRL and of raydpo, interleaved in one run on the same pairs, weights and optimizer.

Run: python -m benchmarks.vs_trl --model assets/smollm2 --shape mixed --dtype bfloat16
     python -m benchmarks.vs_trl --model assets/smollm2 --shape mixed --reward          (a reward model's step)

Four contenders take turns: TRL's DPOTrainer with its defaults; with its best settings (reference precomputed, sorted
by length, small batches, no activation checkpointing); raydpo's engine alone; and `raydpo train`, through Ray Train
and DeepSpeed. A step is forward, backward and optimizer over all pairs. Round 0 warms up; the rest is measured. In
float32 the first losses of all four must agree.

With --reward they are TRL's RewardTrainer with both settings and `raydpo reward`, from the same untrained head.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from benchmarks.child import Answer, Child, Task
from benchmarks.comparison import BEST, DEFAULTS, ENGINE, PASSES, REWARD, REWARD_PASSES, SYSTEM, Comparison
from benchmarks.measure import DEVICE, conditions
from benchmarks.models import source_ids, write_classifier, write_other_weights, write_random_model
from benchmarks.shapes import (
    SHAPES,
    SMALL_BATCH,
    TRAINER_BATCH,
    Shape,
    make_pairs,
    real_tokens,
    repeated_tokens,
    write_pairs,
)
from benchmarks.system import System
from raydpo.data.pack import pack_rows
from raydpo.model.flops import forward_flops, matmul_ceiling
from raydpo.model.load import DTYPES

TRL = "1.16.0"


class Contender(Protocol):
    """Does its step over all pairs when asked."""

    def ask(self) -> Answer: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102


def parse() -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="directory in Hugging Face format (default: random SmolLM2-135M)")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["mixed"])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["bfloat16"])
    parser.add_argument("--pairs", type=int, default=16, help=f"up to {SMALL_BATCH}, or a multiple of {TRAINER_BATCH}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reward", action="store_true", help="a step of a reward model")
    parser.add_argument("--zero", type=int, choices=range(4), default=1, help="ZeRO stage of `raydpo train`")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number there")
    options = parser.parse_args()
    if options.pairs < 1 or (options.pairs > SMALL_BATCH and options.pairs % TRAINER_BATCH):
        parser.error(
            f"--pairs {options.pairs}: TRL would weigh a last, smaller batch differently; "
            f"take at most {SMALL_BATCH}, or a multiple of {TRAINER_BATCH}."
        )
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: take 1 or more.")
    if options.zero == 0 and "bfloat16" in options.dtype:
        parser.error("--zero 0 goes with float32 alone; take 1, 2 or 3.")
    return options


def require_trl() -> None:
    """Exit with the way to get TRL where it is missing or another version."""
    try:
        found = importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError:
        found = None
    if found != TRL:
        sys.exit(
            f"this compares with TRL {TRL}, found {found}: pip install --no-deps --target DIR trl=={TRL} accelerate "
            "datasets dill multiprocess xxhash pandas pytz python-dateutil six, then run with PYTHONPATH=DIR."
        )


def compare(shape: Shape, dtype: str, options: argparse.Namespace, scratch: Path) -> Comparison:
    """All contenders, round after round."""
    model = options.model.absolute() if options.model else write_random_model(scratch / "model")
    rows = make_pairs(shape, options.pairs, source_ids(options.model))
    bounds = pack_rows(rows).bounds
    write_pairs(scratch / "pairs.jsonl", rows)
    other = write_classifier if options.reward else write_other_weights
    second = other(model, scratch / "second", dtype=dtype)
    task = Task(str(scratch / "pairs.jsonl"), str(model), str(second), dtype, scratch=str(scratch))
    kind = AutoModelForSequenceClassification if options.reward else AutoModelForCausalLM
    with torch.device("meta"):
        lm = kind.from_config(AutoConfig.from_pretrained(second))
    flops = 3 * (forward_flops(lm, bounds) or math.nan)
    ceilings = []
    with ExitStack() as stack:
        contenders = (_start_reward if options.reward else _start)(task, options.zero)
        for contender in contenders.values():
            stack.callback(contender.close)
        answers: dict[str, list[Answer]] = {name: [] for name in contenders}
        for turn in range(options.rounds + 1):
            ceilings.append(matmul_ceiling(DTYPES[dtype], DEVICE))
            for name, contender in contenders.items():
                if turn == 0 and isinstance(contender, System):
                    continue  # each of its runs warms up by itself
                answers[name].append(contender.ask())
                print(f"round {turn}: {name} {answers[name][-1].busy:.1f} s", file=sys.stderr, flush=True)
    return Comparison(
        shape=shape.title,
        dtype=dtype,
        pairs=len(rows),
        tokens=real_tokens(rows),
        repeated_tokens=repeated_tokens(rows),
        step_flops=flops,
        ceiling=statistics.median(ceilings),
        answers={name: rounds[-options.rounds :] for name, rounds in answers.items()},
        first_losses={name: rounds[0].loss for name, rounds in answers.items()},
        passes=REWARD_PASSES if options.reward else PASSES,
    )


def _start(task: Task, zero_stage: int) -> dict[str, Contender]:
    return {
        DEFAULTS: Child("trl_child", _own(task, "trl-default"), "default"),
        BEST: Child("trl_child", _own(task, "trl-best"), "best"),
        ENGINE: Child("engine_child", _own(task, "engine")),
        SYSTEM: System(_own(task, "system"), zero_stage=zero_stage),
    }


def _start_reward(task: Task, zero_stage: int) -> dict[str, Contender]:
    """TRL starts from the classifier, which is where the reference's weights lie for DPO."""
    of_trl = replace(task, policy=task.reference)
    return {
        DEFAULTS: Child("trl_reward_child", _own(of_trl, "trl-default"), "default"),
        BEST: Child("trl_reward_child", _own(of_trl, "trl-best"), "best"),
        REWARD: System(_own(task, "system"), zero_stage=zero_stage, stage="reward"),
    }


def _own(task: Task, name: str) -> Task:
    return replace(task, scratch=str(Path(task.scratch) / name))


def main() -> None:
    """Print a table for each shape and dtype; exit code 1 when float32 losses disagree."""
    options = parse()
    require_trl()
    print(f"{conditions()}, TRL {TRL}\n")
    record: dict[str, Any] = {"command": sys.argv[1:], "conditions": conditions(), "comparisons": []}
    for dtype in options.dtype:
        for name in options.shape:
            with tempfile.TemporaryDirectory(prefix="raydpo-benchmark-") as scratch:
                comparison = compare(SHAPES[name], dtype, options, Path(scratch))
            print(f"{comparison.markdown()}\n", flush=True)
            record["comparisons"].append(comparison.record())
            if options.json:
                options.json.write_text(json.dumps(record, indent=1))
            comparison.check()


if __name__ == "__main__":
    main()
