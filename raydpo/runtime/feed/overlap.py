"""train.reference: overlap. The pool scores ahead of the trainer, in the order in which the steps need the rows.

The completions that the store lacks are numbered by the step that needs them first, each once, and cut into units. The
pool works through the units and commits each to the store. A reader asks for the values of its completions by their
numbers and waits until they are there. How far both may run ahead of training is bounded: AHEAD_ROWS.

Legend: C completions of the dataset, U different ones to score.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import ray
from numpy.typing import NDArray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydpo.data.order import Order
from raydpo.reference.dataset import MANIFEST, Dataset
from raydpo.reference.index import Asked
from raydpo.reference.store import Store
from raydpo.runtime.cluster.preflight import Demand, room_for_scorers
from raydpo.runtime.pools.pool import ScorerPool, score_missing
from raydpo.runtime.pools.scorer import ScoringSettings, Unit
from raydpo.track.tally import Tally

UNIT_COMPLETIONS = 512
AHEAD_ROWS = 4096  # of the walk over the data, beyond the step that is being trained


@dataclass(frozen=True)
class Schedule:
    """What is to be scored, in the order of need."""

    units: list[Unit]
    ends: NDArray[np.int64]  # [units], completions in the units up to and including each
    needed: NDArray[np.int64]  # [units], rows of the walk before the step that needs the unit first
    numbers: NDArray[np.int64]  # [C], a completion's number among the U to score; -1: the store has its value


def schedule(dataset: Dataset, order: Order, num_steps: int) -> Schedule:
    """Cut the completions without a reference value into units. Each is in one unit, however often it occurs."""
    assert dataset.ref_logps is not None
    asked = Asked(dataset.completion_ids)
    lacking = np.isnan(dataset.ref_logps)
    numbers = np.full(len(asked), -1)
    units: list[Unit] = []
    ends: list[int] = [0]
    needed: list[int] = []
    gathered: list[NDArray[np.int64]] = []
    first_step = 0  # of those that the unit in the making is for
    for step in range(num_steps):
        completions = dataset.completions_of(order.batch(step))
        completions = completions[lacking[completions] & (numbers[asked.place[completions]] < 0)]
        if len(completions):
            gathered.append(completions[np.unique(asked.place[completions], return_index=True)[1]])
            numbers[asked.place[completions]] = 0  # taken; the numbers follow when the unit is full
        if sum(map(len, gathered)) < UNIT_COMPLETIONS and step < num_steps - 1:
            continue
        if gathered:
            unit = np.sort(np.concatenate(gathered))
            numbers[asked.place[unit]] = ends[-1] + np.arange(len(unit))
            units.append(dataset.where(unit))
            ends.append(ends[-1] + len(unit))
            needed.append(first_step * order.global_batch_size)
        first_step = step + 1
        gathered = []
    return Schedule(units, np.asarray(ends[1:]), np.asarray(needed), numbers[asked.place])


class ScoringAhead:
    """An actor beside the trainer: owns the pool and answers the readers. No call to it waits for anything."""

    def __init__(
        self,
        settings: ScoringSettings,
        store: Store,
        plan: Schedule,
        rows_per_step: int,
        beside: Sequence[Demand],
    ) -> None:
        self._settings = settings
        self._beside = beside
        self._store = store
        self._plan = plan
        self._rows_per_step = rows_per_step
        self._sums = np.full(int(plan.ends[-1]), np.nan, np.float32)
        self._horizon = 0  # rows of the walk that may be scored and read
        self._asked = 0  # the numbers below it have been asked for
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def reached(self, step: int) -> None:
        """Training has come to this step; everything up to AHEAD_ROWS beyond it may be scored and read."""
        self._horizon = step * self._rows_per_step + AHEAD_ROWS

    def values(self, numbers: NDArray[np.int64], first_step: int) -> NDArray[np.float32] | None:
        """Sums in nats, [len(numbers)], of completions that first_step needs first; None: ask again later."""
        if first_step * self._rows_per_step > self._horizon:
            return None
        if self._thread is None:  # only now: before the first reader come the workers, who need their CPUs
            self._thread = threading.Thread(target=self._score, daemon=True)
            self._thread.start()
        self._asked = max(self._asked, int(numbers.max()) + 1)
        found = self._sums[numbers]
        if not np.isnan(found).any():
            return found
        if self._error:
            raise self._error
        return None

    def due(self) -> int:
        """How many units may be begun: all within the horizon, and what a reader waits for."""
        within = np.searchsorted(self._plan.needed, self._horizon, side="right")
        return int(max(within, np.searchsorted(self._plan.ends, self._asked) + 1))

    def _score(self) -> None:
        room = partial(room_for_scorers, self._settings.reference.pool, self._beside)
        pool = ScorerPool(self._settings, self._store, room=room)
        begins = np.concatenate([[0], self._plan.ends])
        try:
            with Tally("reference", len(self._sums), pool) as tally:
                for unit, found in pool.score(self._plan.units, self.due):
                    self._sums[begins[unit] : begins[unit + 1]] = found.sums
                    tally.add(found)
        except BaseException as error:
            self._error = error


@dataclass(frozen=True)
class Ahead:
    """What the feed has to know of it."""

    numbers: NDArray[np.int64]  # see Schedule
    scorers: ActorHandle  # a ScoringAhead


@dataclass(frozen=True)
class ScoringBeside:
    """What scorers that work ahead of training are given."""

    settings: ScoringSettings
    demands: Sequence[Demand]  # of all that runs beside them
    held_out: Path  # tokens, where there are any


def score_ahead(scoring: ScoringBeside, store: Store, dataset: Dataset, order: Order, num_steps: int) -> Ahead | None:
    """Have the completions scored that the store lacks, as training comes to need them; None when it lacks none.

    Held-out rows are scored before it returns: an evaluation asks for all of them at once.
    """
    store.claim()
    if (scoring.held_out / MANIFEST).exists():
        score_missing(scoring.settings, store, [scoring.held_out])
    plan = schedule(dataset, order, num_steps)
    if not plan.units:
        return None
    # On the driver's own node: neither can be lost without the other.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, scheduling_strategy=here)(ScoringAhead)
    handle = actor.remote(scoring.settings, store, plan, order.global_batch_size, scoring.demands)
    return Ahead(plan.numbers, handle)


def tell_reached(scorers: ActorHandle, step: int) -> None:
    """Say how far training has come, without waiting."""
    scorers.reached.remote(step)
