"""Laws of the scorers: a name leads to a checked reward, or to a message that says which part failed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raydpo.config.errors import UserError
from raydpo.evaluate.scorers import check_scorer, load_scorer

pytestmark = pytest.mark.unit

OWN_SCORERS = """\
import math
LIMIT = 3
def vowels(prompts, completions): return [sum(c in "aeiou" for c in text) for text in completions]
def too_few(prompts, completions): return [1.0]
def not_finite(prompts, completions): return [0.0, math.nan]
def not_numbers(prompts, completions): return [0.0, "good"]
"""


@pytest.fixture
def own_scorers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_scorers.py").write_text(OWN_SCORERS)
    (tmp_path / "needs_more.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_vader_reads_the_whole_review_not_only_the_completion() -> None:
    scorer = load_scorer("vader")
    glad, sad = scorer(["A wonderful film", "An awful film"], [" about a man.", " about a man."])
    assert glad > 0 > sad


def test_length_counts_the_words_of_the_completion() -> None:
    assert load_scorer("length")(["a prompt of its own", "x"], ["three words here", ""]) == [3.0, 0.0]


@pytest.mark.usefixtures("own_scorers")
def test_a_function_of_ones_own_is_a_scorer() -> None:
    assert load_scorer("own_scorers:vowels")(["a", "b"], ["aeiou", "xyz"]) == [5.0, 0.0]


@pytest.mark.parametrize(("name", "nearest"), [("vadr", "'vader'"), ("lenght", "'length'")])
def test_an_unknown_name_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UserError, match=f"no scorer '{name}'; did you mean {nearest}"):
        load_scorer(name)


@pytest.mark.usefixtures("own_scorers")
@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("no_such_place:score", "no module 'no_such_place'"),
        ("raydpo.no_such_room:score", "no module 'raydpo.no_such_room'"),
        ("own_scorers:vowel", "has no 'vowel'; it defines vowels, too_few"),
        ("own_scorers:LIMIT", "LIMIT is of type int, not a function"),
        ("own_scorers:", "not of the form package.module:function"),
        ("own-scorers.py:vowels", "not of the form package.module:function"),
    ],
)
def test_a_path_that_leads_nowhere_names_the_part_that_failed(name: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        load_scorer(name)


@pytest.mark.usefixtures("own_scorers")
def test_what_a_scorer_misses_itself_keeps_its_own_error() -> None:
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        load_scorer("needs_more:score")


@pytest.mark.usefixtures("own_scorers")
@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        ("too_few", "1 rewards for 2 completions, the first of them for prompt 'one'"),
        ("not_finite", "gave nan for prompt 'two'"),
        ("not_numbers", "gave 'good' for prompt 'two'"),
    ],
)
def test_a_reward_that_is_no_use_names_its_prompt(function: str, complaint: str) -> None:
    scorer = load_scorer(f"own_scorers:{function}")
    with pytest.raises(UserError, match=complaint):
        scorer(["one", "two"], ["", ""])


def test_vader_without_its_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'raydpo\[demo\]'"):
        load_scorer("vader")


@pytest.mark.parametrize("name", ["vader", "torch.nn:Linear"])
def test_checking_a_name_loads_nothing(name: str) -> None:
    code = (
        "import sys; from raydpo.evaluate.scorers import check_scorer\n"
        f"check_scorer({name!r}); print(sorted({{'vaderSentiment', 'torch', 'matplotlib'}} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_checking_and_loading_agree_on_what_exists() -> None:
    for name in ["vader", "length", "math:fsum"]:
        check_scorer(name)
        assert callable(load_scorer(name))
