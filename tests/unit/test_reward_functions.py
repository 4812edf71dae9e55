"""Laws of the reward functions: a name leads to a checked reward, or to a message that says which part failed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raydpo.errors import UserError
from raydpo.reward.contract import Group
from raydpo.reward.functions import check_function, function_source, load_function, rate_groups

pytestmark = pytest.mark.unit

OWN_REWARDS = """\
import math
LIMIT = 3
def vowels(prompts, completions): return [sum(c in "aeiou" for c in text) for text in completions]
def too_few(prompts, completions): return [1.0]
def not_finite(prompts, completions): return [0.0, math.nan]
def not_numbers(prompts, completions): return [0.0, "good"]
def raises_late(prompts, completions):
    if "bad" in completions: raise KeyError("judge")
    return [1.0] * len(completions)
def nan_late(prompts, completions): return [math.nan if text == "bad" else 1.0 for text in completions]
def one_short(prompts, completions): return [1.0] * (len(completions) - ("bad" in completions))
def only_few(prompts, completions):
    if len(completions) > 2: raise MemoryError("too many")
    return [1.0] * len(completions)
"""


@pytest.fixture
def own_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rewards.py").write_text(OWN_REWARDS)
    (tmp_path / "needs_more.py").write_text("import a_package_that_is_not_there\n")
    for name in ("own_rewards", "needs_more"):
        monkeypatch.delitem(sys.modules, name, raising=False)  # of another test's directory
    monkeypatch.syspath_prepend(tmp_path)


def test_vader_reads_the_whole_review_not_only_the_completion() -> None:
    function = load_function("vader")
    glad, sad = function(["A wonderful film", "An awful film"], [" about a man.", " about a man."])
    assert glad > 0 > sad


def test_length_counts_the_words_of_the_completion() -> None:
    assert load_function("length")(["a prompt of its own", "x"], ["three words here", ""]) == [3.0, 0.0]


@pytest.mark.usefixtures("own_rewards")
def test_a_function_of_ones_own_is_a_reward_function() -> None:
    assert load_function("own_rewards:vowels")(["a", "b"], ["aeiou", "xyz"]) == [5.0, 0.0]


@pytest.mark.parametrize(("name", "nearest"), [("vadr", "'vader'"), ("lenght", "'length'")])
def test_an_unknown_name_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UserError, match=f"no reward function '{name}'; did you mean {nearest}"):
        load_function(name)


@pytest.mark.usefixtures("own_rewards")
@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("no_such_place:score", "no module 'no_such_place'"),
        ("raydpo.no_such_room:score", "no module 'raydpo.no_such_room'"),
        ("own_rewards:vowel", "has no 'vowel'; it defines vowels, too_few"),
        ("own_rewards:LIMIT", "LIMIT is of type int, not a function"),
        ("own_rewards:", "not of the form package.module:function"),
        ("own-rewards.py:vowels", "not of the form package.module:function"),
    ],
)
def test_a_path_that_leads_nowhere_names_the_part_that_failed(name: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        load_function(name)


@pytest.mark.usefixtures("own_rewards")
def test_what_a_reward_function_misses_itself_keeps_its_own_error() -> None:
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        load_function("needs_more:score")


@pytest.mark.usefixtures("own_rewards")
@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        ("too_few", "1 rewards for 2 completions, the first of them for prompt 'one'"),
        ("not_finite", "gave nan for prompt 'two'"),
        ("not_numbers", "gave 'good' for prompt 'two'"),
    ],
)
def test_a_reward_that_is_no_use_names_its_prompt(function: str, complaint: str) -> None:
    loaded = load_function(f"own_rewards:{function}")
    with pytest.raises(UserError, match=complaint):
        loaded(["one", "two"], ["", ""])


def test_vader_without_its_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'raydpo\[demo\]'"):
        load_function("vader")


@pytest.mark.parametrize("name", ["vader", "torch.nn:Linear"])
def test_checking_a_name_loads_nothing(name: str) -> None:
    code = (
        "import sys; from raydpo.reward.functions import check_function\n"
        f"check_function({name!r}); print(sorted({{'vaderSentiment', 'torch', 'matplotlib'}} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_checking_and_loading_agree_on_what_exists() -> None:
    for name in ["vader", "length", "math:fsum"]:
        check_function(name)
        assert callable(load_function(name))


GROUPS = [Group(1, "one", ["good", "good"]), Group(2, "two", ["good", "bad"]), Group(3, "three", ["good", "good"])]


@pytest.mark.usefixtures("own_rewards")
@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("raises_late", "raised KeyError: 'judge' .*own_rewards.py:"),
        ("nan_late", "gave nan for prompt 'two'"),
        ("one_short", "gave 1 rewards for 2 completions"),
    ],
)
def test_a_reward_function_that_fails_late_is_told_with_the_prompt_that_it_fails_at(function: str, says: str) -> None:
    name = f"own_rewards:{function}"
    with pytest.raises(UserError, match=rf"reward '{name}' {says}.*prompt 2, 'two'"):
        rate_groups(name, load_function(name), GROUPS)


@pytest.mark.usefixtures("own_rewards")
def test_a_failure_at_no_single_prompt_names_them_all() -> None:
    with pytest.raises(UserError, match=r"MemoryError: too many .*prompts 1 to 3 together, and at none of them alone"):
        rate_groups("own_rewards:only_few", load_function("own_rewards:only_few"), GROUPS)


@pytest.mark.usefixtures("own_rewards")
def test_rewards_come_back_by_prompt() -> None:
    groups = [Group(1, "one", ["a", "bcd"]), Group(2, "two", []), Group(3, "three", ["eee"])]
    assert rate_groups("own_rewards:vowels", load_function("own_rewards:vowels"), groups) == [[1.0, 0.0], [], [3.0]]


@pytest.mark.usefixtures("own_rewards")
def test_a_reward_function_has_another_name_once_its_code_has_changed(tmp_path: Path) -> None:
    before = function_source("own_rewards:vowels")
    assert function_source("own_rewards:vowels") == before
    (tmp_path / "own_rewards.py").write_text(OWN_REWARDS + "LIMIT = 4\n")
    assert function_source("own_rewards:vowels") != before
