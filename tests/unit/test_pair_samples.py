"""Laws of pairing: the chosen one is better, and every comparison is a pair or a tie."""

from __future__ import annotations

from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.rollout.pairs import Completion, PairCounts, PromptGroup, Rule, pair_samples

pytestmark = pytest.mark.unit

# Few tokens and few rewards, so that repeats and ties are common.
COMPLETIONS = st.lists(
    st.builds(
        Completion, st.lists(st.integers(0, 2), min_size=1, max_size=2), st.just("text"), st.sampled_from([-1, 0, 1])
    ),
    max_size=6,
)
GROUPS = st.lists(st.builds(PromptGroup, st.just([7, 8]), st.just("prompt"), COMPLETIONS), max_size=4)
RULES = st.sampled_from(["all", "best_worst"])


def group(*rewards: float) -> PromptGroup:
    completions = [Completion([index], f"text {index}", reward) for index, reward in enumerate(rewards)]
    return PromptGroup([7, 8], "prompt", completions)


def distinct(group: PromptGroup) -> int:
    return len({tuple(completion.ids) for completion in group.completions})


@given(GROUPS, RULES)
def test_the_chosen_completion_has_the_higher_reward_and_other_tokens(groups: list[PromptGroup], rule: Rule) -> None:
    rows, _ = pair_samples(groups, rule)
    assert all(row["chosen_reward"] > row["rejected_reward"] for row in rows)
    assert all(row["chosen_ids"] != row["rejected_ids"] for row in rows)


@given(GROUPS)
def test_under_all_every_comparison_is_a_pair_or_a_tie(groups: list[PromptGroup]) -> None:
    rows, counts = pair_samples(groups, "all")
    assert len(rows) == counts.pairs
    assert counts.pairs + counts.ties == sum(comb(distinct(each), 2) for each in groups)


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
def test_best_worst_has_the_widest_gap_of_all_pairs(completions: list[Completion]) -> None:
    one = [PromptGroup([7], "prompt", completions)]
    gaps = [
        [row["chosen_reward"] - row["rejected_reward"] for row in pair_samples(one, rule)[0]]
        for rule in ("all", "best_worst")
    ]
    assert gaps[1] == ([max(gaps[0])] if gaps[0] else [])


def test_the_docstrings_example_holds() -> None:
    rows, counts = pair_samples([group(0.9, 0.1, 0.1)], "all")
    assert [(row["chosen_ids"], row["rejected_ids"]) for row in rows] == [([0], [1]), ([0], [2])]
    assert counts == PairCounts(prompts=1, pairs=2, ties=1)
    first, _ = pair_samples([group(0.9, 0.1, 0.1)], "best_worst")
    assert first == rows[:1]


def test_a_row_carries_text_and_tokens_of_its_own_prompt() -> None:
    rows, _ = pair_samples([group(0.1, 0.9)], "all")
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
