"""Saving a run beside its training, and resuming it on any number of ranks under any ZeRO stage.

Training waits only until its state is copied to host memory. A thread of each rank writes and hashes that rank's files;
rank 0's also waits for all the others' and commits (raydpo.train.checkpoint.commits). Collectives happen in the main
thread alone. Nothing random is saved: dropout is off, and order and learning rate are functions of the step.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, TypeVar

import deepspeed
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from raydpo.errors import UserError
from raydpo.storage.space import room_for
from raydpo.train.checkpoint import commits
from raydpo.train.checkpoint.commits import Commit, Cursor
from raydpo.train.checkpoint.retention import Retention
from raydpo.train.checkpoint.slices import held, owned, spread_masters, torch_optimizer
from raydpo.train.checkpoint.state import WEIGHT, SavedSlice, SavedState, Untrained, write_state
from raydpo.train.checkpoint.untrained import copy_untrained, load_buffers
from raydpo.train.diverged import diverged
from raydpo.train.engine import COLLECTIVE_TIMEOUT, Policy

T = TypeVar("T")


@dataclass(frozen=True)
class Snapshot:
    """A copy of what one rank has to save, and where it goes."""

    path: Path
    cursor: Cursor
    slices: list[SavedSlice]
    scalars: dict[str, float]
    untrained: list[Untrained]  # rank 0's alone

    @property
    def size(self) -> int:
        """Bytes of the rank's file, but for its header."""
        return sum(each.size for each in self.slices) + sum(each.values.nbytes for each in self.untrained)


class Saver:
    """Saves a run's checkpoints. All ranks call its methods together; leaving its block waits for the last commit."""

    def __init__(
        self,
        policy: Policy,
        tokenizer: PreTrainedTokenizerBase,
        directory: Path,
        *,
        identity: str,
        retention: Retention,
    ) -> None:
        self._policy = policy
        self._tokenizer = tokenizer
        self._directory = directory
        self._identity = identity
        self._retention = retention
        self._attempt = _agree(uuid.uuid4().hex[:8])  # one name for all ranks, met in no earlier run
        # One thread, so that rank 0 has written its own part when it begins to wait for the others'.
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._cancelled = threading.Event()
        self._copied: Snapshot | None = None
        self._running: list[Future[None]] = []

    def copy(self, step: int) -> float:
        """Wait for the commit before and copy the state after `step` steps. Returns the seconds this took.

        UserError, on every rank alike, when the commit before could not be written, and when the state is not finite.
        """
        begin = perf_counter()
        self._wait()
        policy = self._policy
        slices, scalars = _copy_state(policy)
        _refuse_not_finite(step, slices)
        cursor = Cursor(step, self._identity, policy.world_size, policy.engine.zero_optimization_stage())
        path = self._directory / f"step-{step:06d}.attempt-{self._attempt}"
        self._copied = Snapshot(path, cursor, slices, scalars, _copy_untrained(policy))
        return perf_counter() - begin

    def commit(self) -> None:
        """Write and commit what was copied, without waiting for it."""
        assert self._copied
        work = [self._write_part, self._commit_parts] if self._policy.rank == 0 else [self._write_part]
        self._running = [self._thread.submit(function, self._copied) for function in work]
        self._copied = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._wait()
        finally:
            self._cancelled.set()
            # After an error nobody waits: the parts of other ranks may never come.
            self._thread.shutdown(wait=False)

    def _wait(self) -> None:
        """Wait until the commit that is under way stands.

        Every rank's part is asked for first: where one could not be written, rank 0 would wait for it in vain.
        """
        if not self._running:
            return
        problem = next(filter(None, _gather(_problem(self._running[0]))), None)
        if problem is None:
            problem = _agree(_problem(self._running[-1]))
        self._running = []
        if problem:
            raise UserError(problem)

    def _write_part(self, snapshot: Snapshot) -> None:
        path = snapshot.path
        rank = self._policy.rank
        with room_for(snapshot.size, path):
            files = [path / f"rank-{rank:05d}.safetensors"]
            write_state(files[0], snapshot.slices, snapshot.scalars, snapshot.untrained)
            if rank == 0:
                files += _write_model(path / "model", self._policy, self._tokenizer)
            commits.write_part(path, rank, files)

    def _commit_parts(self, snapshot: Snapshot) -> None:
        timeout = COLLECTIVE_TIMEOUT.total_seconds()
        with room_for(snapshot.size, snapshot.path):
            commits.commit_parts(snapshot.path, snapshot.cursor, timeout_s=timeout, cancelled=self._cancelled.is_set)
            standing = commits.commits(self._directory)
            kept = self._retention.kept({commit.cursor.step for commit in standing})
            for commit in standing:
                if commit.cursor.step not in kept:
                    commits.remove(commit)


def resume(policy: Policy, directory: Path) -> Commit | None:
    """Load the newest commit that verifies; all ranks call it and start from the same one, None when there is none.

    Every rank hashes its part of the files. A commit that does not verify is set aside; what a killed run left without
    a commit is removed.
    """
    if policy.rank == 0:
        commits.clear(directory)
    while found := _agree(commits.latest(directory) if policy.rank == 0 else None):
        mine = sorted(found.files)[policy.rank :: policy.world_size]
        broken = next(filter(None, _gather(commits.first_broken_file(found, mine))), None)
        if broken is None:
            _load_state(policy, SavedState(found.path))
            return found
        if policy.rank == 0:
            commits.set_aside(found.path, broken)
    return None


def _copy_state(policy: Policy) -> tuple[list[SavedSlice], dict[str, float]]:
    """This rank's part of the state in host memory, and the scalars that all parameters share."""
    state = torch_optimizer(policy).state
    slices: list[SavedSlice] = []
    scalars: dict[str, float] = {}
    for each in owned(policy):
        # What has no dimension, such as the number of steps, is the same for every parameter.
        tensors = {kind: t for kind, t in state[each.master].items() if t.dim()}
        scalars |= {kind: float(t) for kind, t in state[each.master].items() if kind not in tensors}
        copies = {kind: each.of(t).to("cpu", copy=True).numpy() for kind, t in {WEIGHT: each.master, **tensors}.items()}
        slices.append(SavedSlice(each.name, each.shape, each.start, copies))
    return slices, scalars


def _refuse_not_finite(step: int, slices: Sequence[SavedSlice]) -> None:
    """UserError, on every rank alike, where any rank's part of the state holds a NaN or an infinity."""
    mine = next((found for each in slices if (found := each.first_not_finite())), None)
    # All ranks must raise: one that went on would wait for the others in its next exchange.
    if name := next(filter(None, _gather(mine)), None):
        raise diverged(step, name)


def _copy_untrained(policy: Policy) -> list[Untrained]:
    """On rank 0, what belongs to the model and is not trained; all ranks call it, because ZeRO-3 shards that too."""
    frozen = [parameter for parameter in policy.lm.parameters() if not parameter.requires_grad]
    with deepspeed.zero.GatheredParameters(frozen, enabled=policy.engine.zero_optimization_stage() == 3):
        return copy_untrained(policy.lm) if policy.rank == 0 else []


@torch.no_grad()
def _load_state(policy: Policy, saved: SavedState) -> None:
    """Fill masters and optimizer state of this rank, whoever saved them, and the weights of the forward pass.

    Buffers too, which are whole on every rank.
    """
    optimizer = torch_optimizer(policy)
    for each in held(policy):
        state: dict[str, Tensor] = optimizer.state[each.master]
        for kind in saved.kinds:
            # An optimizer makes its state at its first step, which a process that resumes has not done.
            if kind != WEIGHT and kind not in state:
                state[kind] = torch.zeros_like(each.master, requires_grad=False)
            values = saved.read(kind, each.name, each.start, each.start + each.numel)
            each.of(each.master if kind == WEIGHT else state[kind]).copy_(torch.from_numpy(values))
        state |= {name: torch.tensor(value) for name, value in saved.scalars.items()}
    spread_masters(policy)
    load_buffers(policy.lm, saved)


def _write_model(directory: Path, policy: Policy, tokenizer: PreTrainedTokenizerBase) -> list[Path]:
    """Write what the weights need to become a model again: configuration and tokenizer."""
    policy.lm.config.save_pretrained(directory)
    if policy.lm.can_generate() and policy.lm.generation_config is not None:
        policy.lm.generation_config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return sorted(path for path in directory.iterdir() if path.is_file())


def _problem(work: Future[None]) -> str | None:
    """Wait for the work and return what the user has to be told of it: the message of its UserError, or None."""
    try:
        work.result()
    except UserError as error:
        return str(error)
    return None


def _agree(value: T) -> T:
    """Rank 0's value, on every rank."""
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def _gather(value: T) -> list[T]:
    """Every rank's value, on every rank."""
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
