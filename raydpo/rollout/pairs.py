"""Preference data out of scored samples: ranked groups, or pairs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

Rule = Literal["all", "best_worst"]


@dataclass(frozen=True)
class RatedCompletion:
    """One sampled completion: its token ids, their text and its reward."""

    ids: list[int]
    text: str
    reward: float


@dataclass(frozen=True)
class PromptGroup:
    """A prompt and everything that was sampled for it."""

    prompt_ids: list[int]
    prompt: str
    completions: list[RatedCompletion]


@dataclass(frozen=True)
class PairCounts:
    """Where the samples went."""

    prompts: int = 0
    prompts_without_pairs: int = 0
    pairs: int = 0
    ties: int = 0  # comparisons that the reward does not decide
    identical: int = 0  # completions that repeat an earlier one of their prompt, token by token


def pair_samples(prompt_groups: Iterable[PromptGroup], rule: Rule) -> tuple[list[dict[str, Any]], PairCounts]:
    """Rows of preference data, in the order of the groups, and the counts of what was dropped.

    Completions that repeat are compared once. Rule "all" compares every two of the n that are left, n(n-1)/2
    comparisons; "best_worst" compares the highest reward with the lowest, one comparison. Each comparison is either a
    pair or a tie. Rewards 0.9, 0.1, 0.1 give under "all" the pairs (0.9, 0.1), (0.9, 0.1) and one tie; under
    "best_worst" the first of them. A group without a pair gives no row.

    Under "all" a row is a ranked group, so that each completion is scored and trained on once, in however many pairs it
    stands: prompt_ids, completions_ids, prompt, completions and scores. Under "best_worst" it is a pair: prompt_ids,
    chosen_ids, rejected_ids, prompt, chosen, rejected, chosen_reward and rejected_reward.
    """
    rows: list[dict[str, Any]] = []
    counts = PairCounts()
    for group in prompt_groups:
        distinct = _distinct(group.completions)
        compared = _compared(distinct, rule)
        pairs = [(a, b) if a.reward > b.reward else (b, a) for a, b in compared if a.reward != b.reward]
        if pairs:
            rows.append(_ranked(group, distinct) if rule == "all" else _pair(group, *pairs[0]))
        counts = PairCounts(
            prompts=counts.prompts + 1,
            prompts_without_pairs=counts.prompts_without_pairs + (not pairs),
            pairs=counts.pairs + len(pairs),
            ties=counts.ties + len(compared) - len(pairs),
            identical=counts.identical + len(group.completions) - len(distinct),
        )
    return rows, counts


def _distinct(completions: list[RatedCompletion]) -> list[RatedCompletion]:
    first: dict[tuple[int, ...], RatedCompletion] = {}
    for completion in completions:
        first.setdefault(tuple(completion.ids), completion)
    return list(first.values())


def _compared(completions: list[RatedCompletion], rule: Rule) -> list[tuple[RatedCompletion, RatedCompletion]]:
    if rule == "all" or len(completions) < 2:
        return list(combinations(completions, 2))
    return [(max(completions, key=_reward), min(completions, key=_reward))]


def _reward(completion: RatedCompletion) -> float:
    return completion.reward


def _ranked(group: PromptGroup, completions: list[RatedCompletion]) -> dict[str, Any]:
    return {
        "prompt_ids": group.prompt_ids,
        "completions_ids": [completion.ids for completion in completions],
        "prompt": group.prompt,
        "completions": [completion.text for completion in completions],
        "scores": [completion.reward for completion in completions],
    }


def _pair(group: PromptGroup, chosen: RatedCompletion, rejected: RatedCompletion) -> dict[str, Any]:
    return {
        "prompt_ids": group.prompt_ids,
        "chosen_ids": chosen.ids,
        "rejected_ids": rejected.ids,
        "prompt": group.prompt,
        "chosen": chosen.text,
        "rejected": rejected.text,
        "chosen_reward": chosen.reward,
        "rejected_reward": rejected.reward,
    }
