"""Commits as a run would leave them, without a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raydpo.train import commits
from raydpo.train.commits import Cursor
from raydpo.train.state import WEIGHT, Stretch, write_state


def save(directory: Path, step: int, world_size: int = 2, identity: str = "run") -> Path:
    """Commit a parameter "w" full of the step's number, as the ranks would one after the other; older commits go."""
    path = directory / f"step-{step:06d}.attempt-{step}"
    for rank in range(world_size):
        file = path / f"rank-{rank:05d}.safetensors"
        values = np.full(4, step, np.float32)
        write_state(file, [Stretch("w", (4 * world_size,), 4 * rank, {WEIGHT: values})], {"step": float(step)})
        commits.write_part(path, rank, [file])
    cursor = Cursor(step, identity, world_size, zero_stage=2)
    commits.commit_parts(path, cursor, timeout_s=5, cancelled=lambda: False)
    for older in commits.commits(directory)[:-1]:
        commits.remove(older)
    return path


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
