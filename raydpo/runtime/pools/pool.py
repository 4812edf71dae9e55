"""The elastic pool of reference scorers: as many as the cluster gives, one unit of work each, and any may die.

A scorer that dies, or is silent for SILENT_S, gives its unit back and is replaced. Only units in flight are ever
handed out twice. The pool ends by finishing or by an error: work goes on while any scorer works, and stops with a
reason when none has answered for START_S, or when scorers keep dying and none gets a unit done.

The precompute stage's unit is one token shard. What the store already holds is not scored again, so a killed job loses
at most the shards in flight. A completion that stands in several rows is scored with the first of them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
from ray.actor import ActorHandle

from raydpo.data.lengths import completions_per_row
from raydpo.data.shards import TokenManifest, read_shard
from raydpo.reference.dataset import MANIFEST, Dataset, windows
from raydpo.reference.store import Store
from raydpo.reference.unconverted import check_converted
from raydpo.runtime.pools.scorer import ReferenceScorer, Scored, ScoringSettings, Unit
from raydpo.track.say import say
from raydpo.track.tally import Tally

START_S = 300.0  # a cluster may take this long to start a first scorer, or to give back what a dead node took along
SILENT_S = 60.0
PING_S = 5.0
LIVES = 3  # scorers that may die one after the other, for each in the pool, without a unit done
WINDOW_ROWS = 1 << 19  # whose ids the driver holds at a time, at some 300 bytes a pair; the pool starts anew for each

_POLL_S = 0.2


@dataclass
class _Scorer:
    actor: ActorHandle
    ping: ray.ObjectRef | None
    work: ray.ObjectRef | None  # loading at first, then a unit
    unit: int | None = None
    heard: float | None = None  # when it last answered; None: its process has not started yet


class ScorerPool:
    """Scores units in order; the figures are for whoever shows progress. Ray itself restarts and retries nothing.

    room: how many scorers may run just now, where that can be less than reference.pool.max_actors.
    """

    def __init__(self, settings: ScoringSettings, store: Store, *, room: Callable[[], int] | None = None) -> None:
        self._settings = settings
        self._store = store
        self._room = room
        self._scorers: list[_Scorer] = []
        self._waiting: deque[int] = deque()
        self._last_sign = time.monotonic()
        self._lost_in_a_row = 0
        self.lost = 0  # scorers
        self.retried = 0  # units

    @property
    def size(self) -> int:
        """Scorers whose process runs."""
        return sum(scorer.heard is not None for scorer in self._scorers)

    def score(self, units: Sequence[Unit], due: Callable[[], int] | None = None) -> Iterator[tuple[int, Scored]]:
        """Numbers of units as they are done, with what was found; the pool is gone at the end, however it comes.

        due: how many units, from the first, may be begun by now; all of them by default. Raises what a scorer raises,
        and RuntimeError when the pool is given up.
        """
        self._waiting.extend(range(len(units)))
        self._last_sign = time.monotonic()
        try:
            while self._waiting or self._busy():
                self._resize()
                self._hand_out(units, due() if due else len(units))
                yield from self._collect()
                self._watch()
        finally:
            for scorer in list(self._scorers):
                self._dismiss(scorer)

    def _busy(self) -> int:
        return sum(scorer.unit is not None for scorer in self._scorers)

    def _resize(self) -> None:
        """Have as many scorers as there are units for; those that the cluster cannot hold yet wait to be placed."""
        pool = self._settings.reference.pool
        most = max(pool.min_actors, min(pool.max_actors, self._room() if self._room else pool.max_actors))
        wanted = min(most, self._busy() + len(self._waiting))
        idle = [scorer for scorer in self._scorers if scorer.unit is None]
        for scorer in idle[: max(0, len(self._scorers) - wanted)]:
            self._dismiss(scorer)
        options = {"num_cpus": pool.cpus, "num_gpus": pool.gpus, "concurrency_groups": {"health": 1}}
        while len(self._scorers) < wanted:
            actor = ray.remote(**options)(ReferenceScorer).remote(self._settings, self._store)
            self._scorers.append(_Scorer(actor, actor.ping.remote(), actor.load.remote()))

    def _hand_out(self, units: Sequence[Unit], due: int) -> None:
        for scorer in self._scorers:
            if scorer.work is None and self._waiting and self._waiting[0] < due:
                scorer.unit = self._waiting.popleft()
                scorer.work = scorer.actor.score.remote(units[scorer.unit])

    def _collect(self) -> Iterator[tuple[int, Scored]]:
        """Wait a moment for something to happen, and take in all that has."""
        pending = [ref for scorer in self._scorers for ref in (scorer.ping, scorer.work) if ref is not None]
        if not pending:
            time.sleep(_POLL_S)
            return
        ray.wait(pending, num_returns=1, timeout=_POLL_S)
        done = set(ray.wait(pending, num_returns=len(pending), timeout=0)[0])
        for scorer in list(self._scorers):
            try:
                if scorer.work in done:
                    found = ray.get(scorer.work)
                    unit = scorer.unit
                    scorer.work = None
                    scorer.unit = None
                    if unit is not None:
                        self._lost_in_a_row = 0
                        yield unit, found
                if scorer.ping in done:
                    ray.get(scorer.ping)
                    scorer.ping = None
                    scorer.heard = time.monotonic()
                    self._last_sign = scorer.heard
            except ray.exceptions.RayTaskError:
                raise  # the scorer lives and says what is wrong: another one would say the same
            except ray.exceptions.RayError as error:
                self._lose(scorer, error)

    def _watch(self) -> None:
        """Ask those who have not been heard of for a while, and give up on the silent ones."""
        now = time.monotonic()
        for scorer in list(self._scorers):
            if scorer.heard is not None and scorer.ping is None and now - scorer.heard > PING_S:
                scorer.ping = scorer.actor.ping.remote()
            elif scorer.heard is not None and now - scorer.heard > SILENT_S + PING_S:
                self._lose(scorer, f"no answer for {SILENT_S:g} s")
        if self._scorers and now - self._last_sign > START_S:
            pool = self._settings.reference.pool
            raise RuntimeError(
                f"no reference scorer has answered for {START_S:g} s: the cluster has not had {pool.cpus:g} CPUs and "
                f"{pool.gpus:g} GPUs free on one node, or the nodes are lost. What was scored is in the store; start "
                "the job again once there is room."
            )

    def _lose(self, scorer: _Scorer, why: object) -> None:
        self.lost += 1
        self._lost_in_a_row += 1
        if scorer.unit is not None:
            self.retried += 1
            self._waiting.appendleft(scorer.unit)
        self._dismiss(scorer)
        reason = str(why).strip().splitlines()[0]
        say(f"reference: a scorer is lost ({reason}); {len(self._waiting)} units wait")
        if self._lost_in_a_row > LIVES * self._settings.reference.pool.max_actors:
            raise RuntimeError(
                f"{self._lost_in_a_row} reference scorers died one after the other and no unit was done, the last of "
                f"{why}. Look for the cause in their logs; less memory is needed with a lower "
                "reference.tokens_per_batch."
            )

    def _dismiss(self, scorer: _Scorer) -> None:
        self._scorers.remove(scorer)
        ray.kill(scorer.actor)


def score_missing(settings: ScoringSettings, store: Store, directories: Sequence[Path]) -> dict[str, float | None]:
    """Have the pool score what the store lacks of prepared rows. The driver's memory does not grow with them.

    UserError, before anything is scored, where values of the old layout are still to be converted.
    """
    check_converted(store, _windows(directories))
    pool = ScorerPool(settings, store)
    with Tally("precompute", _completions(directories), pool) as tally:
        for window in _windows(directories):
            missing = np.flatnonzero(store.missing(window.completion_ids))
            tally.skip(len(window.completion_ids) - len(missing))
            for _, found in pool.score([[piece] for piece in window.where(missing)]):
                tally.add(found)
            store.lookup(window.completion_ids)  # 100 % coverage, or an error that names what is missing
        return tally.result()


def _windows(directories: Sequence[Path]) -> Iterator[Dataset]:
    for directory in directories:
        yield from windows(directory, WINDOW_ROWS)


def _completions(directories: Sequence[Path]) -> int:
    """Of all rows. Shards are asked, for a manifest counts rows only; no token is read."""
    paths = [directory / s.path for directory in directories for s in TokenManifest.read(directory / MANIFEST).shards]
    return sum(int(completions_per_row(read_shard(path)).sum()) for path in paths)
