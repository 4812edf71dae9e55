"""Rewards at work, in a process of their own: whatever they do, the job can say so and can end.

A reward function is the user's code, and runs in that process. It may hang in a regular expression, which holds its
interpreter so that no signal is ever handled there, or take its process down. A reward model is asked from there, and
works in the actors of its pool, which end with the process.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from raydpo.errors import UserError
from raydpo.reward.contract import Group, where
from raydpo.reward.functions import rate_by_function
from raydpo.reward.kept import KeptRewards, name_by_ids, name_by_text
from raydpo.reward.names import FunctionReward
from raydpo.runtime.pools.reward_models import PooledReward
from raydpo.track.say import say
from raydpo.workspace.rewards import RewardSettings, resolve_reward, scores_of

POLL_S = 1.0
SAY_EVERY_S = 30.0  # that a reward function is still being waited for


class _Process:
    """The actor: one reward, opened once."""

    def __init__(self, name: str, settings: RewardSettings | None) -> None:
        self._name = name
        self._settings = settings
        self._kept: KeptRewards | None = None

    def rate(self, groups: Sequence[Group]) -> list[list[float]]:
        """The rewards of some groups. Raises UserError that names reward and prompt."""
        if self._kept is None:  # here rather than in __init__, whose errors Ray tells as the death of an actor
            self._kept = _open(self._name, self._settings)
        return self._kept.rate(groups)


def _open(name: str, settings: RewardSettings | None) -> KeptRewards:
    """The reward of this name. Raises UserError for one that is not there."""
    if settings is None:
        return KeptRewards(rate_by_function(name), name_by_text, None)
    kind = resolve_reward(settings, name)
    scores = scores_of(settings, name)
    if isinstance(kind, FunctionReward):
        return KeptRewards(rate_by_function(name), name_by_text, scores)
    return KeptRewards(PooledReward(name, kind, settings.model, settings.rating), name_by_ids, scores)


class RewardProcess:
    """A reward that is asked from this process and works in others. May be sent to other processes."""

    def __init__(self, name: str, actor: ActorHandle) -> None:
        self._name = name
        self._actor = actor

    def rate(self, groups: Sequence[Group]) -> list[list[float]]:
        """One reward a completion, in the order of the groups.

        Raises UserError for a reward that raises, gives another number of rewards than completions or one that is
        not finite, and for one whose process dies. Says every SAY_EVERY_S that it is waiting; a SIGTERM ends the wait.
        """
        pending = self._actor.rate.remote(groups)
        began = said = time.monotonic()
        while not ray.wait([pending], timeout=POLL_S)[0]:
            now = time.monotonic()
            if now - said >= SAY_EVERY_S:
                said = now
                waited = f"{now - began:.0f} s"
                say(f"reward {self._name!r} has been at {where(groups)} for {waited}; waiting for it", sys.stderr)
        try:
            rewards: list[list[float]] = ray.get(pending)
        except RayActorError as error:
            raise UserError(
                f"reward {self._name!r} took its process down at {where(groups)}: {last_line(error)}. Mend the "
                "function, or give the machine more memory; what has been sampled is kept."
            ) from error
        return rewards


@contextmanager
def reward_process(name: str, settings: RewardSettings | None = None) -> Iterator[RewardProcess]:
    """Start the process of a reward; it is killed at the end of the block, whatever it is doing, with its pool.

    settings: of the run whose completions are rated. Without them only functions rate, and nothing is kept.
    """
    actor = ray.remote(num_cpus=0)(_Process).remote(name, settings)
    try:
        yield RewardProcess(name, actor)
    finally:
        ray.kill(actor)


def rate_each(name: str, groups: Sequence[Group], settings: RewardSettings | None = None) -> list[float]:
    """One reward for each prompt and its one completion, from a process that ends with the call."""
    with reward_process(name, settings) as process:
        return [reward for [reward] in process.rate(groups)]


def last_line(error: BaseException) -> str:
    """The last line that says something, of an error that carries a report."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
