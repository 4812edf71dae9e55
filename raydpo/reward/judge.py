"""Judges: which of two completions of a prompt is the better one, asked so that their order has no say.

Every two completions are put before a judge in both orders. A judge that follows the place instead of the text then
contradicts itself, and a contradiction is a tie, not a win.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Verdict = Literal["first", "second", "tie"]  # which place won
Winner = Literal["a", "b", "tie"]
Rate = Callable[[Sequence[str], Sequence[str]], list[float]]  # (prompts, completions) -> one reward a completion


@dataclass(frozen=True)
class Ruling:
    """What a judge said of two completions in one order."""

    a_first: bool  # which order it was
    verdict: Verdict | None  # None: it said nothing that is a choice
    words: str
    arrived: bool = True  # False: there was no reply, so the question is still to be asked

    @property
    def winner(self) -> Winner | None:
        """The completion that won."""
        if self.verdict in (None, "tie"):
            return self.verdict
        return "a" if (self.verdict == "first") == self.a_first else "b"


@dataclass(frozen=True)
class Preference:
    """The answers of a judge about completions a and b. Equal texts have none: nobody is asked about them."""

    answers: tuple[Ruling, ...]

    @property
    def outcome(self) -> Winner | None:
        """The winner, and "tie" where the orders contradict each other; None where an order has no choice.

        One order alone would be a choice too, but one that its place may have made.
        """
        winners = {answer.winner for answer in self.answers}
        if None in winners:
            return None
        return winners.pop() if len(winners) == 1 else "tie"

    @property
    def arrived(self) -> bool:
        """Whether there is nothing left to ask."""
        return all(answer.arrived for answer in self.answers)


class Judge(Protocol):
    """Prefers one of two completions for each prompt; all three lists are of one length."""

    def __call__(self, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> list[Preference]:
        """One preference a prompt, in their order."""


@dataclass(frozen=True)
class Orders:
    """In which order completions are shown: both, or one that a hash of the seed and the texts draws.

    The first of both is drawn like the one, so a judge that is stopped half way has seen no place more often.
    """

    seed: int
    swap: bool = True

    def of(self, prompt: str, a: str, b: str) -> tuple[bool, ...]:
        """For each time that the judge is asked: whether a stands first. Equal texts are not asked about."""
        if a == b:
            return ()
        drawn = hashlib.blake2b(json.dumps([self.seed, prompt, a, b]).encode(), digest_size=1).digest()[0] % 2 == 0
        return (drawn, not drawn) if self.swap else (drawn,)


class RewardJudge:
    """A reward function behind the protocol of judges: the higher reward wins. Its verdicts can be checked."""

    def __init__(self, rate: Rate, orders: Orders) -> None:
        self._rate = rate
        self._orders = orders

    def __call__(self, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> list[Preference]:
        """One preference a prompt; all completions are rated in one call."""
        rewards = self._rate([*prompts, *prompts], [*a, *b])
        return [
            Preference(tuple(_by_reward(a_first, *values) for a_first in self._orders.of(*texts)))
            for texts, values in zip(
                zip(prompts, a, b, strict=True),
                zip(rewards[: len(a)], rewards[len(a) :], strict=True),
                strict=True,
            )
        ]


def _by_reward(a_first: bool, of_a: float, of_b: float) -> Ruling:
    words = f"rewards {of_a:g} and {of_b:g}"
    if of_a == of_b:
        return Ruling(a_first, "tie", words)
    return Ruling(a_first, "first" if (of_a > of_b) == a_first else "second", words)
