"""Commits as a run would leave them, without a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from raydpo.train.checkpoint import commits
from raydpo.train.checkpoint.commits import Commit, Cursor
from raydpo.train.checkpoint.state import WEIGHT, SavedSlice, write_state
from raydpo.train.checkpoint.untrained import copy_untrained
from tests.helpers import tiny_tokenizer


def save(directory: Path, step: int, world_size: int = 2, identity: str = "run") -> Path:
    """Commit a parameter "w" full of the step's number, as the ranks would one after the other; older commits go."""
    path = directory / f"step-{step:06d}.attempt-{step}"
    for rank in range(world_size):
        file = path / f"rank-{rank:05d}.safetensors"
        values = np.full(4, step, np.float32)
        write_state(file, [SavedSlice("w", (4 * world_size,), 4 * rank, {WEIGHT: values})], {"step": float(step)})
        commits.write_part(path, rank, [file])
    cursor = Cursor(step, identity, world_size, zero_stage=2)
    commits.commit_parts(path, cursor, timeout_s=5, cancelled=lambda: False)
    for older in commits.commits(directory)[:-1]:
        commits.remove(older)
    return path


def save_model(directory: Path, lm: PreTrainedModel) -> Commit:
    """Commit a model as one rank would after the first step, without state of an optimizer."""
    path = directory / "step-000001.attempt-1"
    slices = [
        SavedSlice(name, tuple(each.shape), 0, {WEIGHT: each.detach().float().flatten().numpy()})
        for name, each in lm.named_parameters()
        if each.requires_grad
    ]
    write_state(path / "rank-00000.safetensors", slices, {}, copy_untrained(lm))
    lm.config.save_pretrained(path / "model")
    tiny_tokenizer().save_pretrained(path / "model")
    commits.write_part(path, 0, [file for file in path.rglob("*") if file.is_file()])
    commits.commit_parts(path, Cursor(1, "run", 1, zero_stage=2), timeout_s=5, cancelled=lambda: False)
    found = commits.latest(directory)
    assert found is not None
    return found


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
