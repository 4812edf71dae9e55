"""What every reward is given and gives: prompts with their completions, as text and as token ids, to numbers.

A reward function reads the text. A reward model and an implicit reward read the ids, exactly those that were sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from raydpo.data.prompts import Prompt


class Answer(Protocol):
    """A completion; raydpo.rollout.engine.Completion is one."""

    @property
    def text(self) -> str:
        """Without special tokens."""

    @property
    def ids(self) -> Sequence[int]:
        """All of them, the token that it ends with included."""


@dataclass(frozen=True)
class Group:
    """A prompt and n completions of it; `row` is for messages: which of the prompts it is, from 1.

    The ids may be left out where nothing but functions of text will rate.
    """

    row: int
    prompt: str
    completions: Sequence[str]  # n texts
    prompt_ids: Sequence[int] = ()
    completion_ids: Sequence[Sequence[int]] = ()  # n, or none

    @classmethod
    def of(cls, row: int, prompt: Prompt, answers: Sequence[Answer]) -> Group:
        """Completions that were sampled for a prompt."""
        return cls(row, prompt.text, [a.text for a in answers], prompt.ids, [a.ids for a in answers])

    def only(self, places: Sequence[int]) -> Group:
        """The same prompt with those of its completions alone."""
        ids = [self.completion_ids[i] for i in places] if self.completion_ids else ()
        return replace(self, completions=[self.completions[i] for i in places], completion_ids=ids)


@dataclass(frozen=True)
class RatedGroup:
    """The rewards of a group's completions, in their order."""

    group: Group
    rewards: list[float]  # n, finite
    members: list[list[float]] | None = None  # n times those of an ensemble, whose mean the reward is


# Groups to rewards, some groups at a time and in any order, so that what is done can be kept at once.
Rate = Callable[[Sequence[Group]], Iterator[list[RatedGroup]]]


def where(groups: Sequence[Group]) -> str:
    """What messages call some groups."""
    first = groups[0].row
    last = groups[-1].row
    return f"prompt {first}" if first == last else f"prompts {first} to {last}"
