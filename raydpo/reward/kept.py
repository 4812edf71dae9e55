"""A reward that rates nothing twice: what is kept is read, and only the rest is rated, and kept as it comes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from raydpo.data.tokens import completion_id
from raydpo.reward.contract import Group, Rate, RatedGroup
from raydpo.reward.scores import Scores

Name = Callable[[Group], list[bytes]]  # 16 bytes for each completion of a group: what its reward depends on


class KeptRewards:
    """Rates groups; `name` says what a completion's reward is kept under. Without scores nothing is kept."""

    def __init__(self, rate: Rate, name: Name, scores: Scores | None) -> None:
        self._rate = rate
        self._name = name
        self._scores = scores

    def rate(self, groups: Sequence[Group]) -> list[list[float]]:
        """One reward a completion, in the order of the groups. Raises what the reward raises; what was rated is kept.

        A completion that stands several times in the groups is rated once.
        """
        names = [self._name(group) for group in groups]
        found = self._kept([name for of_group in names for name in of_group])
        for batch in self._rate(_unknown(groups, names, set(found))):
            found |= self._keep(batch)
        return [[found[name] for name in of_group] for of_group in names]

    def _kept(self, names: Sequence[bytes]) -> dict[bytes, float]:
        if self._scores is None:
            return {}
        rewards = self._scores.known(names)
        return {name: float(reward) for name, reward in zip(names, rewards, strict=True) if not np.isnan(reward)}

    def _keep(self, batch: Sequence[RatedGroup]) -> dict[bytes, float]:
        names = [name for rated in batch for name in self._name(rated.group)]
        rewards = [reward for rated in batch for reward in rated.rewards]
        members: list[list[float] | None] = []
        for rated in batch:
            members += rated.members or [None] * len(rated.rewards)
        if self._scores and names:
            self._scores.keep(names, rewards, members)
        return dict(zip(names, rewards, strict=True))


def name_by_text(group: Group) -> list[bytes]:
    """What the reward of a function depends on: the two texts, whatever tokens they are made of."""
    prompt = _bytes(group.prompt)
    texts = [b"%d %s%s" % (len(prompt), prompt, _bytes(completion)) for completion in group.completions]
    return [hashlib.blake2b(text, digest_size=16).digest() for text in texts]


def name_by_ids(group: Group) -> list[bytes]:
    """What the reward of a model depends on: the token ids."""
    return [completion_id(group.prompt_ids, ids) for ids in group.completion_ids]


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")  # a JSON file may hold half of a pair


def _unknown(groups: Sequence[Group], names: Sequence[Sequence[bytes]], known: set[bytes]) -> list[Group]:
    """The groups without the completions that are known, and each of the others once."""
    unknown = []
    seen = set(known)
    for group, of_group in zip(groups, names, strict=True):
        places = []
        for place, name in enumerate(of_group):
            if name not in seen:
                seen.add(name)
                places.append(place)
        if places:
            unknown.append(group.only(places))
    return unknown
