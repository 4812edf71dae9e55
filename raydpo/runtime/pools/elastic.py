"""An elastic pool of actors: as many as the cluster gives, one unit of work each, and any may die.

An actor that dies, or is silent for SILENT_S, gives its unit back and is replaced. Only units in flight are ever handed
out twice. Work on units ends by finishing or by an error: it goes on while any actor works, and stops with a reason
when none has answered for START_S, or when actors keep dying and none gets a unit done.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.actor import ActorHandle

from raydpo.config.schema import Pool
from raydpo.track.say import say

START_S = 300.0  # a cluster may take this long to start a first actor, or to give back what a dead node took along
SILENT_S = 60.0
PING_S = 5.0
LIVES = 3  # actors that may die one after the other, for each in the pool, without a unit done

_POLL_S = 0.2

UnitT = TypeVar("UnitT")
FoundT = TypeVar("FoundT")


@dataclass(frozen=True)
class Words:
    """How messages name a pool."""

    stage: str  # before what it says while it works
    actor: str  # one of them; "s" makes it several
    kept: str  # what is not lost when it gives up, and what to do then: whole sentences
    lighter: str  # what makes an actor need less memory: the end of a sentence


@dataclass
class _Member:
    actor: ActorHandle
    ping: ray.ObjectRef | None
    work: ray.ObjectRef | None  # loading at first, then a unit
    unit: int | None = None
    heard: float | None = None  # when it last answered; None: its process has not started yet


def pool_actor(kind: type, pool: Pool, *arguments: Any) -> ActorHandle:
    """Start an actor of a pool.

    Its class has `load`, which is called once and may raise, `score`, which turns a unit into what was found, and
    `ping` in the concurrency group "health", which answers however long a unit takes.
    """
    options = {"num_cpus": pool.cpus, "num_gpus": pool.gpus, "concurrency_groups": {"health": 1}}
    handle: ActorHandle = ray.remote(**options)(kind).remote(*arguments)
    return handle


class ElasticPool(Generic[UnitT, FoundT]):
    """Has units scored, in their order. Ray itself restarts and retries nothing.

    start: starts an actor, see pool_actor. room: how many may run just now, where that can be less than
    pool.max_actors. stays: actors stay up from one `score` to the next, until `close`; otherwise they end with it.
    patience: seconds without any answer after which the pool is given up; START_S by default.
    """

    def __init__(
        self,
        start: Callable[[], ActorHandle],
        pool: Pool,
        words: Words,
        *,
        room: Callable[[], int] | None = None,
        stays: bool = False,
        patience: float | None = None,
    ) -> None:
        self._start = start
        self._pool = pool
        self._words = words
        self._room = room
        self._stays = stays
        self._patience = START_S if patience is None else patience
        self._members: list[_Member] = []
        self._waiting: deque[int] = deque()
        self._last_sign = time.monotonic()
        self._lost_in_a_row = 0
        self.lost = 0  # actors
        self.retried = 0  # units

    @property
    def size(self) -> int:
        """Actors whose process runs."""
        return sum(member.heard is not None for member in self._members)

    def score(self, units: Sequence[UnitT], due: Callable[[], int] | None = None) -> Iterator[tuple[int, FoundT]]:
        """Numbers of units as they are done, with what was found.

        due: how many units, from the first, may be begun by now; all of them by default. Raises what an actor raises,
        and RuntimeError when the pool is given up; then, and when it is left before the end, its actors are gone.
        """
        self._waiting.extend(range(len(units)))
        self._last_sign = time.monotonic()
        finished = False
        try:
            while self._waiting or self._busy():
                self._resize()
                self._hand_out(units, due() if due else len(units))
                yield from self._collect()
                self._watch()
            finished = True
        finally:
            if not (finished and self._stays):
                self.close()

    def close(self) -> None:
        """Take the actors down, whatever they are doing."""
        self._waiting.clear()
        for member in list(self._members):
            self._dismiss(member)

    def _busy(self) -> int:
        return sum(member.unit is not None for member in self._members)

    def _resize(self) -> None:
        """Have as many actors as there are units for; those that the cluster cannot hold yet wait to be placed."""
        pool = self._pool
        most = max(pool.min_actors, min(pool.max_actors, self._room() if self._room else pool.max_actors))
        useful = self._busy() + len(self._waiting)
        wanted = min(most, max(useful, len(self._members) if self._stays else 0))
        idle = [member for member in self._members if member.unit is None]
        for member in idle[: max(0, len(self._members) - wanted)]:
            self._dismiss(member)
        while len(self._members) < wanted:
            actor = self._start()
            self._members.append(_Member(actor, actor.ping.remote(), actor.load.remote()))

    def _hand_out(self, units: Sequence[UnitT], due: int) -> None:
        for member in self._members:
            if member.work is None and self._waiting and self._waiting[0] < due:
                member.unit = self._waiting.popleft()
                member.work = member.actor.score.remote(units[member.unit])

    def _collect(self) -> Iterator[tuple[int, FoundT]]:
        """Wait a moment for something to happen, and take in all that has."""
        pending = [ref for member in self._members for ref in (member.ping, member.work) if ref is not None]
        if not pending:
            time.sleep(_POLL_S)
            return
        ray.wait(pending, num_returns=1, timeout=_POLL_S)
        done = set(ray.wait(pending, num_returns=len(pending), timeout=0)[0])
        for member in list(self._members):
            try:
                if member.work in done:
                    found = ray.get(member.work)
                    unit = member.unit
                    member.work = None
                    member.unit = None
                    if unit is not None:
                        self._lost_in_a_row = 0
                        yield unit, found
                if member.ping in done:
                    ray.get(member.ping)
                    member.ping = None
                    member.heard = time.monotonic()
                    self._last_sign = member.heard
            except ray.exceptions.RayTaskError:
                raise  # the actor lives and says what is wrong: another one would say the same
            except ray.exceptions.RayError as error:
                self._lose(member, error)

    def _watch(self) -> None:
        """Ask those who have not been heard of for a while, and give up on the silent ones."""
        now = time.monotonic()
        for member in list(self._members):
            if member.heard is not None and member.ping is None and now - member.heard > PING_S:
                member.ping = member.actor.ping.remote()
            elif member.heard is not None and now - member.heard > SILENT_S + PING_S:
                self._lose(member, f"no answer for {SILENT_S:g} s")
        if self._members and now - self._last_sign > self._patience:
            pool = self._pool
            raise RuntimeError(
                f"no {self._words.actor} has answered for {self._patience:g} s: the cluster has not had "
                f"{pool.cpus:g} CPUs and {pool.gpus:g} GPUs free on one node, or the nodes are lost. "
                f"{self._words.kept}"
            )

    def _lose(self, member: _Member, why: object) -> None:
        self.lost += 1
        self._lost_in_a_row += 1
        if member.unit is not None:
            self.retried += 1
            self._waiting.appendleft(member.unit)
        self._dismiss(member)
        reason = str(why).strip().splitlines()[0]
        words = self._words
        say(f"{words.stage}: a {words.actor} is lost ({reason}); {len(self._waiting)} units wait")
        if self._lost_in_a_row > LIVES * self._pool.max_actors:
            raise RuntimeError(
                f"{self._lost_in_a_row} {words.actor}s died one after the other and no unit was done, the last of "
                f"{why}. Look for the cause in their logs; less memory is needed with {words.lighter}."
            )

    def _dismiss(self, member: _Member) -> None:
        self._members.remove(member)
        ray.kill(member.actor)
