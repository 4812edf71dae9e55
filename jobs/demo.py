"""make demo: fetch the real parts, run the sentiment recipe from sampling to the report, say how long it took."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import torch

from jobs.assets import make
from raydpo.cli import main

OUTPUT = Path("runs/demo")


def gpu_overrides() -> list[str]:
    """One GPU is shared by training, sampling and scoring; without one, the recipe stands as it is."""
    if not torch.cuda.is_available():
        return []
    return [
        "train.workers.count=1",
        "train.workers.gpus=0.5",
        "sampler.gpus=0.3",
        "sampler.gpu_memory_utilization=0.3",
        "reference.pool.gpus=0.2",
        "evaluate.pool.gpus=0.2",
    ]


if __name__ == "__main__":
    begin = time.perf_counter()
    make(Path("assets"), "smollm2")
    shutil.rmtree(OUTPUT, ignore_errors=True)  # the demo always starts anew
    code = main(["run", "jobs/recipes/sentiment.yaml", f"output_dir={OUTPUT}", *gpu_overrides()])
    print(f"demo: {(time.perf_counter() - begin) / 60:.1f} minutes after installation", file=sys.stderr)
    sys.exit(code)
