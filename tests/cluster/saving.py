"""One of two ranks that save while something is slow, full or read-only; it leaves what it saw as a file."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed

from raydpo.config.schema import Zero
from raydpo.errors import UserError
from raydpo.train.checkpoint import commits
from raydpo.train.checkpoint import saver as checkpoint
from raydpo.train.checkpoint.commits import latest
from raydpo.train.checkpoint.saver import Saver
from raydpo.train.checkpoint.slices import owned
from raydpo.train.checkpoint.state import WEIGHT, SavedState, write_state
from raydpo.train.engine import Policy
from raydpo.train.export import export_policy
from tests.cluster.elastic import Problem, Stage, join, make_saver, make_tiny_policy, save, train_one
from tests.helpers import tiny_tokenizer
from tests.models import make_batch, random_rows

WORLD = 2


def run_rank(rank: int, out: Path) -> None:
    """Entry point of each of the two processes."""
    join(rank, WORLD, out / "rendezvous")
    directory = out / "checkpoints"
    policy = make_tiny_policy(Problem(), Zero(stage=2))
    train_one(policy, 0)
    with make_saver(policy, directory) as saver:
        save(saver, 1)
    seen: dict[str, Any] = {"when the block ends": newest(directory)}
    with make_saver(policy, directory) as saver:
        seen |= slowly(saver, policy, directory)
    full = mock.patch.object(checkpoint, "write_state", side_effect=OSError(errno.ENOSPC, "No space left on device"))
    seen["full"] = refused(policy, directory, full if rank == 1 else nullcontext())
    locked = mock.patch.object(commits, "write_text", side_effect=OSError(errno.EROFS, "Read-only file system"))
    seen["read-only"] = refused(policy, directory, locked if rank == 0 else nullcontext())
    seen["not a number"] = {stage: diverging(out / f"zero{stage}", stage) for stage in (0, 2)}
    torch.save(seen, out / f"saw.rank{rank}.pt")
    torch.distributed.destroy_process_group()


def slowly(saver: Saver, policy: Policy, directory: Path) -> dict[str, Any]:
    """Save step 2 to a disk that takes nothing until the next step is done."""
    seen, ready = {}, threading.Event()

    def write_when_ready(*arguments: Any) -> None:
        ready.wait()
        write_state(*arguments)

    with mock.patch.object(checkpoint, "write_state", write_when_ready):
        before = weights(policy)
        save(saver, 2)
        train_one(policy, 1)
        seen["while the disk is slow"] = newest(directory)
        ready.set()
        saver.copy(3)
    seen["when the next save begins"] = newest(directory)
    found = latest(directory)
    assert found is not None
    saved = SavedState(found.path)
    seen["as it was"] = all(np.array_equal(saved.whole(WEIGHT, name), value) for name, value in before.items())
    seen["trained on"] = any(not np.array_equal(before[name], value) for name, value in weights(policy).items())
    return seen


def refused(policy: Policy, directory: Path, failing: AbstractContextManager[Any]) -> tuple[str, int]:
    """What the save after one that cannot be written says, and the newest commit then."""

    def save_twice() -> None:
        with failing, make_saver(policy, directory) as saver:
            save(saver, 4)
            saver.copy(5)

    return told(save_twice), newest(directory)


def diverging(directory: Path, stage: Stage) -> dict[str, Any]:
    """What is said of a step in which one rank's reference is no number, and of weights that are none; what stands."""
    directory.mkdir(exist_ok=True)
    policy = make_tiny_policy(Problem(), Zero(stage=stage))
    train_one(policy, 0)
    compare_on = make_batch(random_rows(2, seed=0))
    export = partial(export_policy, policy, tiny_tokenizer(), compare_on=compare_on, identity="run", step=1)
    policy.lm.model.register_buffer("bound", torch.tensor(float("inf")))  # no weight, and of no harm
    export(directory / "bounded")
    with make_saver(policy, directory) as saver:
        save(saver, 1)
        step = told(lambda: train_one(policy, 1, reference=float("nan") if policy.rank else -50.0))
    with make_saver(policy, directory) as saver:
        if policy.rank:
            last_slice = owned(policy)[-1]
            last_slice.of(last_slice.master)[-1] = float("inf")
        commit = told(lambda: saver.copy(2))
    weights_of = {name: parameter.detach() for name, parameter in policy.lm.named_parameters()}
    weights_of["model.norm.weight"][0] = float("nan")
    # Rank 0 alone: it raises before the barrier that the others would wait at.
    exported = told(partial(export, directory / "export", step=2)) if policy.rank == 0 else None
    left = sorted(path.name for path in directory.glob("*export*"))
    return {"step": step, "commit": commit, "export": exported, "left": left, "newest": newest(directory)}


def told(work: Callable[[], Any]) -> str:
    """What the user is told of work that cannot be done."""
    try:
        work()
    except UserError as error:
        return str(error)
    raise AssertionError("nobody noticed")


def newest(directory: Path) -> int:
    found = latest(directory)
    return found.cursor.step if found else 0


def weights(policy: Policy) -> dict[str, np.ndarray]:
    return {name: parameter.detach().numpy().copy() for name, parameter in policy.lm.named_parameters()}
