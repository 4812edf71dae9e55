"""Laws of judges: no place wins by itself, no answer is lost, and a choice is what was written as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.errors import UserError
from raydpo.reward.judge import Orders, Preference, RewardJudge, Ruling, Verdict
from raydpo.reward.questions import QUESTIONS, firmer_wording, first_wording, read_choice, read_question

pytestmark = pytest.mark.unit

WORD = st.text("abc ", min_size=1, max_size=6)
VERDICTS = st.sampled_from(["first", "second", "tie", None])


def words(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    return [float(len(completion)) for completion in completions]


@given(a_first=st.booleans(), one=VERDICTS, other=VERDICTS)
def test_a_judge_that_follows_the_place_calls_ties_and_one_that_follows_the_text_wins(
    a_first: bool, one: Verdict | None, other: Verdict | None
) -> None:
    preference = Preference((Ruling(a_first, one, ""), Ruling(not a_first, other, "")))
    if one is None or other is None:
        assert preference.outcome is None
    elif one == other:  # the same place in both orders is two different texts
        assert preference.outcome == "tie"
    elif "tie" not in (one, other):
        assert preference.outcome == ("a" if (one == "first") == a_first else "b")


def test_equal_texts_are_a_tie_that_nobody_is_asked_about() -> None:
    assert Orders(0).of("p", "same", "same") == ()
    assert Preference(()).outcome == "tie"


@given(seed=st.integers(0, 9), prompt=WORD, a=WORD, b=WORD)
def test_both_orders_are_asked_or_the_first_of_them(seed: int, prompt: str, a: str, b: str) -> None:
    both = Orders(seed).of(prompt, a, b)
    assert Orders(seed, swap=False).of(prompt, a, b) == both[:1]
    assert len(both) == (0 if a == b else 2) and len(set(both)) == len(both)


def test_the_drawn_order_favours_neither_text() -> None:
    drawn = [Orders(0, swap=False).of(f"prompt {i}", "a", "b")[0] for i in range(1000)]
    assert 450 < sum(drawn) < 550
    assert drawn != [Orders(1, swap=False).of(f"prompt {i}", "a", "b")[0] for i in range(1000)]


@given(prompt=WORD, a=WORD, b=WORD, swap=st.booleans())
def test_a_reward_function_prefers_the_higher_reward_whatever_the_order(
    prompt: str, a: str, b: str, swap: bool
) -> None:
    judge = RewardJudge(words, Orders(0, swap))
    [one], [other] = judge([prompt], [a], [b]), judge([prompt], [b], [a])
    expected = "tie" if len(a) == len(b) else "a" if len(a) > len(b) else "b"
    assert one.outcome == expected
    assert other.outcome == {"a": "b", "b": "a", "tie": "tie"}[expected]


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_shows_all_texts_and_says_how_to_choose(name: str) -> None:
    shown = {"prompt": "the {first} prompt", "first": "one {prompt}", "second": "two {second}"}
    for wording in (first_wording, firmer_wording):
        message = wording(read_question(name), **shown)
        assert all(message.count(text) == 1 for text in shown.values()), "braces in a text stand for themselves"
        assert message.index("one {prompt}") < message.index("two {second}")
        assert "Choice: A" in message.splitlines()[-1]


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("A is kinder.\nChoice: A", "first"),
        ("B says more.\n\n**Choice: B**\n", "second"),
        ("Choice: B.", "second"),
        ("Choice: A\nNo, wait: both are bad.", None),
        ("I would choose A", None),
        ("Choice: A or B", None),
        ("Choice: C", None),
        ("choice: a", None),
        ("", None),
        ("I cannot compare these.", None),
    ],
)
def test_a_choice_is_the_whole_last_line_or_none(reply: str, choice: str | None) -> None:
    assert read_choice(reply) == choice


def test_a_question_of_ones_own_must_show_both_texts(tmp_path: Path) -> None:
    path = tmp_path / "question.txt"
    path.write_text("Which is kinder?\n{prompt}\nA: {first}\n")
    with pytest.raises(UserError, match=r"lacks \{second\}"):
        read_question(str(path))
    path.write_text("Which is kinder?\n{prompt}\nA: {first}\nB: {second}\n")
    assert "Which is kinder?" in read_question(str(path))
    with pytest.raises(UserError, match=r"'summery' is none of summary, concise_summary, dialogue, and no file"):
        read_question("summery")
