"""Reward functions at work, in a process of their own: whatever they do, the job can say so and can end.

A reward function is the user's code. It may hang in a regular expression, which holds its interpreter so that no signal
is ever handled there, or take its process down.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from raydpo.errors import UserError
from raydpo.track.say import say

POLL_S = 1.0
SAY_EVERY_S = 30.0  # that a reward function is still being waited for


@dataclass(frozen=True)
class Group:
    """A prompt and completions of it; `row` is for messages: which of the prompts it is, from 1."""

    row: int
    prompt: str
    completions: Sequence[str]


class _Process:
    """The actor: one reward function, loaded once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._function: Any = None

    def rate(self, groups: Sequence[Group]) -> list[list[float]]:
        """The rewards of some groups. Raises UserError that names function and prompt."""
        from raydpo.reward.functions import load_function, rate_groups

        if self._function is None:  # here rather than in __init__, whose errors Ray tells as the death of an actor
            self._function = load_function(self._name)
        return rate_groups(self._name, self._function, [(g.row, g.prompt, g.completions) for g in groups])


class RewardProcess:
    """A reward function that is asked from this process and works in another."""

    def __init__(self, name: str, actor: ActorHandle) -> None:
        self._name = name
        self._actor = actor

    def rate(self, groups: Sequence[Group]) -> list[list[float]]:
        """One reward a completion, in the order of the groups.

        Raises UserError for a function that raises, gives another number of rewards than completions or one that is
        not finite, and for one whose process dies. Says every SAY_EVERY_S that it is waiting; a SIGTERM ends the wait.
        """
        pending = self._actor.rate.remote(groups)
        began = said = time.monotonic()
        while not ray.wait([pending], timeout=POLL_S)[0]:
            now = time.monotonic()
            if now - said >= SAY_EVERY_S:
                said = now
                waited = f"{now - began:.0f} s"
                say(f"reward {self._name!r} has been at {_rows(groups)} for {waited}; waiting for it", sys.stderr)
        try:
            rewards: list[list[float]] = ray.get(pending)
        except RayActorError as error:
            raise UserError(
                f"reward {self._name!r} took its process down at {_rows(groups)}: {last_line(error)}. Mend the "
                "function, or give the machine more memory; what has been sampled is kept."
            ) from error
        return rewards


@contextmanager
def reward_process(name: str) -> Iterator[RewardProcess]:
    """Start the process of a reward function; it is killed at the end of the block, whatever it is doing."""
    actor = ray.remote(num_cpus=0)(_Process).remote(name)
    try:
        yield RewardProcess(name, actor)
    finally:
        ray.kill(actor)


def rate_each(name: str, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """One reward for each prompt and its one completion, from a process that ends with the call."""
    groups = [Group(i, p, [c]) for i, (p, c) in enumerate(zip(prompts, completions, strict=True), start=1)]
    with reward_process(name) as process:
        return [reward for [reward] in process.rate(groups)]


def last_line(error: BaseException) -> str:
    """The last line that says something, of an error that carries a report."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__


def _rows(groups: Sequence[Group]) -> str:
    first = groups[0].row
    last = groups[-1].row
    return f"prompt {first}" if first == last else f"prompts {first} to {last}"
