"""Laws of pairing: the chosen one is better, and every comparison is a pair or a tie."""

from __future__ import annotations

import json
from itertools import combinations
from math import comb
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.data.rows import canonical_row, row_format
from raydpo.rollout.pairs import PairCounts, PromptGroup, RatedCompletion, Rule, pair_samples

pytestmark = pytest.mark.unit

# Few tokens and few rewards, so that repeats and ties are common.
COMPLETIONS = st.lists(
    st.builds(
        RatedCompletion,
        st.lists(st.integers(0, 2), min_size=1, max_size=2),
        st.just("text"),
        st.sampled_from([-1, 0, 1]),
    ),
    max_size=6,
)
GROUPS = st.lists(st.builds(PromptGroup, st.just([7, 8]), st.just("prompt"), COMPLETIONS), max_size=4)
RULES = st.sampled_from(["all", "best_worst"])


def group(*rewards: float) -> PromptGroup:
    completions = [RatedCompletion([index], f"text {index}", reward) for index, reward in enumerate(rewards)]
    return PromptGroup([7, 8], "prompt", completions)


def distinct(group: PromptGroup) -> int:
    return len({tuple(completion.ids) for completion in group.completions})


@given(GROUPS)
def test_the_chosen_completion_has_the_higher_reward_and_other_tokens(groups: list[PromptGroup]) -> None:
    rows, _ = pair_samples(groups, "best_worst")
    assert all(row["chosen_reward"] > row["rejected_reward"] for row in rows)
    assert all(row["chosen_ids"] != row["rejected_ids"] for row in rows)


@given(GROUPS)
def test_a_ranked_row_has_every_completion_of_its_prompt_once_and_their_rewards(groups: list[PromptGroup]) -> None:
    rows, counts = pair_samples(groups, "all")
    of_pairs = [each for each in groups if len({completion.reward for completion in _first_of_each(each)}) > 1]
    assert len(rows) == len(of_pairs) == counts.prompts - counts.prompts_without_pairs
    for row, each in zip(rows, of_pairs, strict=True):
        expected = [(completion.ids, completion.reward) for completion in _first_of_each(each)]
        assert list(zip(row["completions_ids"], row["scores"], strict=True)) == expected


def _first_of_each(group: PromptGroup) -> list[RatedCompletion]:
    seen: list[RatedCompletion] = []
    for completion in group.completions:
        if all(completion.ids != earlier.ids for earlier in seen):
            seen.append(completion)
    return seen


@given(GROUPS)
def test_under_all_every_comparison_is_a_pair_or_a_tie(groups: list[PromptGroup]) -> None:
    rows, counts = pair_samples(groups, "all")
    assert _pairs_that_are_read(rows) == counts.pairs
    assert counts.pairs + counts.ties == sum(comb(distinct(each), 2) for each in groups)


def _pairs_that_are_read(rows: list[dict[str, Any]]) -> int:
    """What prepare makes of the rows."""
    fields = row_format("ranked").fields
    ranked = [canonical_row(json.loads(json.dumps(row)), fields, "row") for row in rows]
    return sum(one != other for row in ranked for one, other in combinations(row["ranks"], 2))


@given(GROUPS)
def test_under_best_worst_a_prompt_gives_one_pair_or_one_tie(groups: list[PromptGroup]) -> None:
    _, counts = pair_samples(groups, "best_worst")
    assert counts.pairs + counts.ties == sum(distinct(each) >= 2 for each in groups)


@given(GROUPS, RULES)
def test_no_sample_and_no_prompt_is_lost_from_the_counts(groups: list[PromptGroup], rule: Rule) -> None:
    rows, counts = pair_samples(groups, rule)
    assert counts.prompts == len(groups)
    assert counts.identical == sum(len(each.completions) - distinct(each) for each in groups)
    assert len(rows) <= sum(comb(len(each.completions), 2) for each in groups)
    assert counts.prompts_without_pairs == sum(not pair_samples([each], rule)[0] for each in groups)


@given(COMPLETIONS)
def test_best_worst_has_the_widest_gap_of_all_pairs(completions: list[RatedCompletion]) -> None:
    one = [PromptGroup([7], "prompt", completions)]
    widest = [max(row["scores"]) - min(row["scores"]) for row in pair_samples(one, "all")[0]]
    assert [row["chosen_reward"] - row["rejected_reward"] for row in pair_samples(one, "best_worst")[0]] == widest


def test_the_docstrings_example_holds() -> None:
    [row], counts = pair_samples([group(0.9, 0.1, 0.1)], "all")
    assert (row["completions_ids"], row["scores"]) == ([[0], [1], [2]], [0.9, 0.1, 0.1])
    assert counts == PairCounts(prompts=1, pairs=2, ties=1)
    [pair], counts = pair_samples([group(0.9, 0.1, 0.1)], "best_worst")
    assert (pair["chosen_ids"], pair["rejected_ids"]) == ([0], [1])
    assert counts == PairCounts(prompts=1, pairs=1)


def test_a_row_carries_text_and_tokens_of_its_own_prompt() -> None:
    [ranked], _ = pair_samples([group(0.1, 0.9)], "all")
    assert ranked == {
        "prompt_ids": [7, 8],
        "completions_ids": [[0], [1]],
        "prompt": "prompt",
        "completions": ["text 0", "text 1"],
        "scores": [0.1, 0.9],
    }
    rows, _ = pair_samples([group(0.1, 0.9)], "best_worst")
    assert rows == [
        {
            "prompt_ids": [7, 8],
            "chosen_ids": [1],
            "rejected_ids": [0],
            "prompt": "prompt",
            "chosen": "text 1",
            "rejected": "text 0",
            "chosen_reward": 0.9,
            "rejected_reward": 0.1,
        }
    ]
