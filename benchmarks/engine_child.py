"""raydpo's engine as a contender: scoring model, one-pass head and a torch optimizer; no Ray, no DeepSpeed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.child import Desk, task_and_options
from benchmarks.passes import Packed
from benchmarks.shapes import read_pairs

OPTIMIZERS = {"rmsprop": torch.optim.RMSprop, "adamw": torch.optim.AdamW}


def main() -> None:
    """Score the reference once, then step on request."""
    desk = Desk()
    task, _ = task_and_options()
    rows = read_pairs(task.pairs)
    ref_logps = Packed(Path(task.reference), rows, dtype=task.dtype).logps()
    engine = Packed(Path(task.policy), rows, dtype=task.dtype, ref_logps=ref_logps)
    parameters = list(engine.lm.parameters())
    optimizer = OPTIMIZERS[task.optimizer](parameters, lr=task.lr, weight_decay=0.0)

    def step() -> dict[str, Any]:
        loss = engine.gradient()
        torch.nn.utils.clip_grad_norm_(parameters, task.max_grad_norm)
        optimizer.step()
        return {"loss": loss}

    desk.serve(step)


if __name__ == "__main__":
    main()
