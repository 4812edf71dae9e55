"""The order: which rows make up step k, and how a step is cut into micro-batches.

Everything here is a pure function of its arguments. The world size has no say in which rows belong to a step; it
only decides who computes them.
"""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raydpo.errors import UserError

Ints = NDArray[np.int64]


@lru_cache(maxsize=2)
def permutation(num_rows: int, *, seed: int, epoch: int, digest: str) -> Ints:
    """A permutation of 0..num_rows-1, the same on every machine, process and library version.

    Sorting raw Philox words rests on the bit generator alone, which numpy keeps stable; Generator.permutation is not.
    """
    key = hashlib.blake2b(f"{seed}/{epoch}/{digest}".encode(), digest_size=16).digest()
    words = np.random.Philox(key=np.frombuffer(key, dtype="<u8")).random_raw(num_rows)
    return np.argsort(words, kind="stable")


@dataclass(frozen=True)
class Order:
    """The global batches of a run: step k holds the same rows for every world size.

    tail "carry" lets an epoch's last partial batch run on into the next epoch; "drop" leaves it out of its epoch.
    The rows that the last step of all cannot fill are left over in both cases and counted.
    """

    num_rows: int
    global_batch_size: int
    epochs: int
    seed: int
    digest: str  # of the dataset, so that other data never meet an old permutation
    tail: Literal["carry", "drop"] = "carry"

    def __post_init__(self) -> None:
        if self.num_steps == 0:
            most = self.num_rows * (self.epochs if self.tail == "carry" else 1)
            raise UserError(
                f"global_batch_size={self.global_batch_size} is more than {self.num_rows} rows x {self.epochs} "
                f"epochs can fill with tail={self.tail}; set it to {max(1, most)} or less, or add data."
            )

    @property
    def num_steps(self) -> int:
        """Whole steps in all epochs."""
        return self._per_epoch * self.epochs // self.global_batch_size

    @property
    def left_over(self) -> int:
        """Visits of rows, over all epochs, that no step makes."""
        return self.num_rows * self.epochs - self.num_steps * self.global_batch_size

    def epochs_after(self, steps: int) -> float:
        """Epochs that so many steps walk, as a fraction. A tail that is dropped is no part of its epoch."""
        return steps * self.global_batch_size / self._per_epoch

    def batch(self, step: int) -> Ints:
        """Dataset positions of the rows of one step, shape [global_batch_size]; steps count from 0."""
        if not 0 <= step < self.num_steps:
            raise IndexError(f"step {step} is outside 0..{self.num_steps - 1}")
        first = step * self.global_batch_size
        last = first + self.global_batch_size - 1
        pieces = []
        for epoch in range(first // self._per_epoch, last // self._per_epoch + 1):
            begin = epoch * self._per_epoch
            pieces.append(self._epoch(epoch)[max(0, first - begin) : last + 1 - begin])
        return np.concatenate(pieces)

    @property
    def _per_epoch(self) -> int:
        """Rows of one epoch that have a place in the walk."""
        return self.num_rows if self.tail == "carry" else self.num_rows - self.num_rows % self.global_batch_size

    def _epoch(self, epoch: int) -> Ints:
        return permutation(self.num_rows, seed=self.seed, epoch=epoch, digest=self.digest)


def split_microbatches(tokens: Ints, *, world_size: int, tokens_per_microbatch: int) -> list[list[Ints]]:
    """Cut one global batch into micro-batches of at most tokens_per_microbatch tokens, the same number for every rank.

    tokens: packed length of each row of the batch, shape [G]. Returns, for each rank, its micro-batches as indices
    into the batch. Rows go largest first into the least loaded bin, bins largest first onto the least loaded rank,
    as few bins as tokens_per_microbatch allows.

    Any number of ranks up to G will do where tokens_per_microbatch is twice the longest row or more; a number that
    divides G always will. Raises UserError where it will not, and when a row alone has more tokens.
    """
    size = len(tokens)
    if tokens.max() > tokens_per_microbatch:
        raise UserError(
            f"a row of {tokens.max()} tokens does not fit tokens_per_microbatch={tokens_per_microbatch}; "
            f"set it to {tokens.max()} or more, or lower data.max_length."
        )
    # The fewest that could do if rows could be cut; whole rows may need more.
    per_rank = max(1, -(-int(tokens.sum()) // (world_size * tokens_per_microbatch)))
    while world_size * per_rank <= size:
        bins, loads = _largest_first(tokens, world_size * per_rank)
        if loads.max() <= tokens_per_microbatch:
            return [[bins[b] for b in sorted(rank)] for rank in _deal_bins(loads, world_size)]
        per_rank += 1  # at size / world_size there is one row a bin, or in some there are two
    raise UserError(
        f"global_batch_size={size} does not go onto {world_size} workers; numbers that work: {_divisors(size)}, and "
        f"all up to {size} with tokens_per_microbatch={2 * tokens.max()} or more."
    )


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _largest_first(tokens: Ints, num_bins: int) -> tuple[list[Ints], Ints]:
    """Rows into bins, the largest first, each into the least loaded bin. Returns the bins' rows and their tokens."""
    heap = [(0, b) for b in range(num_bins)]
    members: list[list[int]] = [[] for _ in range(num_bins)]
    for row in np.argsort(-tokens, kind="stable"):
        load, b = heapq.heappop(heap)
        members[b].append(int(row))
        heapq.heappush(heap, (load + int(tokens[row]), b))
    loads = np.zeros(num_bins, dtype=np.int64)
    for load, b in heap:
        loads[b] = load
    # Sorted, so that rows keep the order of the batch within their micro-batch.
    return [np.asarray(sorted(m), dtype=np.int64) for m in members], loads


def _deal_bins(loads: Ints, world_size: int) -> list[list[int]]:
    """Deal the bins out, the largest first, each to the least loaded rank that still has a place."""
    places = len(loads) // world_size
    heap = [(0, rank) for rank in range(world_size)]
    bins_of: list[list[int]] = [[] for _ in range(world_size)]
    for b in np.argsort(-loads, kind="stable"):
        load, rank = heapq.heappop(heap)
        bins_of[rank].append(int(b))
        if len(bins_of[rank]) < places:
            heapq.heappush(heap, (load + int(loads[b]), rank))
    return bins_of
