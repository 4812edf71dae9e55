"""Laws of rewards: how they are named, that none is rated twice, and which models cannot rate."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.config.load import load_run_file
from raydpo.config.schema import RunFile
from raydpo.errors import UserError
from raydpo.model.reward_model import save_reward_model, start_reward_model
from raydpo.model.tokenizer import load_tokenizer
from raydpo.reward.contract import Group, RatedGroup
from raydpo.reward.kept import KeptRewards, name_by_ids, name_by_text
from raydpo.reward.names import FunctionReward, ImplicitReward, ModelReward, is_model, parse_reward
from raydpo.reward.scores import Scores
from raydpo.stages.values import RunValues
from raydpo.workspace.rewards import RewardSettings, check_reward, reward_source, scores_of
from tests.models import save_tiny_model

pytestmark = pytest.mark.unit


class Counting:
    """A reward that notes what it is asked, and gives the length of a completion."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, groups: Sequence[Group]) -> Iterator[list[RatedGroup]]:
        for group in groups:  # a batch each
            self.asked += [group.prompt + text for text in group.completions]
            yield [RatedGroup(group, [float(len(text)) for text in group.completions])]


TEXTS = st.text("ab", max_size=3)
GROUPS = st.lists(st.builds(Group, st.just(1), TEXTS, st.lists(TEXTS, max_size=4)), max_size=5)


@given(first=GROUPS, second=GROUPS)
def test_no_completion_is_rated_twice_and_all_get_their_own_reward(
    first: list[Group], second: list[Group], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("scores")
    counting = Counting()
    for groups in (first, second):  # the second from the disk, as another job has it
        rewards = KeptRewards(counting, name_by_text, Scores(root, {"reward": "x"})).rate(groups)
        assert rewards == [[float(len(text)) for text in group.completions] for group in groups]
    asked = {(g.prompt, text) for g in [*first, *second] for text in g.completions}
    assert len(counting.asked) == len(asked)


def test_what_was_rated_before_a_reward_failed_is_kept(tmp_path: Path) -> None:
    def breaks(groups: Sequence[Group]) -> Iterator[list[RatedGroup]]:
        yield from Counting()(groups[:1])
        raise UserError("away")

    groups = [Group(1, "a", ["b"]), Group(2, "c", ["d"])]
    with pytest.raises(UserError, match="away"):
        KeptRewards(breaks, name_by_text, Scores(tmp_path, {})).rate(groups)
    counting = Counting()
    assert KeptRewards(counting, name_by_text, Scores(tmp_path, {})).rate(groups) == [[1.0], [1.0]]
    assert counting.asked == ["cd"]


def test_two_writers_see_each_other_and_another_identity_sees_neither(tmp_path: Path) -> None:
    one, two, other = Scores(tmp_path, {"s": 1}), Scores(tmp_path, {"s": 1}), Scores(tmp_path, {"s": 2})
    ids = [bytes([i]) * 15 + b"\0" for i in range(4)]  # ids that end in zeros are ids like others
    one.keep(ids[:2], [1.0, 2.0], [[0.0, 2.0], [1.0, 3.0]])
    two.keep(ids[1:3], [2.5, 3.0])
    for scores in (one, two):
        np.testing.assert_array_equal(np.isnan(scores.known(ids)), [False, False, False, True])
    assert np.isnan(other.known(ids)).all()
    before = one.known(ids[:3]).tolist()
    two.keep(ids[:3], [9.0, 9.0, 9.0])
    assert one.known(ids[:3]).tolist() == before, "what a job has seen stays as it is"


def test_a_damaged_file_is_named_and_nothing_infinite_is_kept(tmp_path: Path) -> None:
    scores = Scores(tmp_path, {})
    with pytest.raises(ValueError, match="not finite"):
        scores.keep([b"0" * 16], [float("inf")])
    scores.keep([b"0" * 16], [1.0])
    [path] = scores.directory.glob("*.parquet")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match=f"{path.name} is damaged .*remove it"):
        Scores(tmp_path, {}).known([b"0" * 16])


def test_ids_decide_what_a_model_rates_and_text_what_a_function_rates() -> None:
    one, two = Group(1, "a", ["b"], [1], [[2]]), Group(1, "a", ["b"], [1], [[3]])
    assert name_by_text(one) == name_by_text(two)
    assert name_by_ids(one) != name_by_ids(two)
    assert name_by_text(Group(1, "a", ["bc"])) != name_by_text(Group(1, "ab", ["c"]))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("vader", FunctionReward("vader")),
        ("a.b:c", FunctionReward("a.b:c")),
        ("reward_model:/r", ModelReward(("/r",))),
        ("ensemble:/r,/s", ModelReward(("/r", "/s"))),
        ("implicit:/e", ImplicitReward("/e")),
        ("implicit:/e?beta=0.5&reference=/f", ImplicitReward("/e", "/f", 0.5)),
    ],
)
def test_a_name_says_what_it_stands_for(name: str, kind: object) -> None:
    assert parse_reward(name) == kind
    assert is_model(name) == (not isinstance(kind, FunctionReward))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("reward_model:", "names 0 models"),
        ("ensemble:/r", "names 1 models"),
        ("ensemble:/r,/r", "names a model twice"),
        ("implicit:", "names no export"),
        ("implicit:/e?beta=0", "beta=0; it is a number above 0"),
        ("implicit:/e?bet=1", "setting 'bet=1'; known are beta"),
    ],
)
def test_a_name_that_is_not_formed_so_is_refused_with_the_form(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_reward(name)


def test_the_former_key_is_understood_and_both_together_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "run.yaml"
    file.write_text("name: x\noutput_dir: out\nmodel: {path: m/n}\nsample: {prompts: [p], scorer: length}\n")
    run = load_run_file(file)
    assert run.sample and run.sample.reward == "length"
    with pytest.raises(UserError, match=r"sample: scorer is the former name of reward, and both are set; keep reward"):
        load_run_file(file, ["sample.reward=vader"])
    paths = load_run_file(file, ["sample.scorer=implicit:./e?beta=1&reference=./f"]).sample
    assert paths and paths.reward == f"implicit:{tmp_path}/e?beta=1&reference={tmp_path}/f"


@pytest.fixture
def settings(tmp_path: Path) -> RewardSettings:
    """A run from a tiny model, with a reward model of it in reward/."""
    save_tiny_model(tmp_path / "model")
    model = str(tmp_path / "model")
    classifier = start_reward_model(model, dtype="float32", heads=1, seed=0)
    state = {name: value.clone() for name, value in classifier.state_dict().items()}
    target = tmp_path / "reward"
    save_reward_model(classifier, load_tokenizer(model), target, state, identity="x", step=1)
    run = {"name": "x", "output_dir": str(tmp_path / "out"), "model": {"path": model}, "data": {"train": ["x"]}}
    return RunValues(RunFile.model_validate(run)).rewards()


def labels(count: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        config["id2label"] = {str(i): f"L{i}" for i in range(count)}
        (path / "config.json").write_text(json.dumps(config))

    return change


def other_tokens(path: Path) -> None:
    card = json.loads((path / "reward_model.json").read_text())
    (path / "reward_model.json").write_text(json.dumps(card | {"tokenizer": "another"}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (labels(2), "num_labels=2, and a reward is one number"),
        (other_tokens, "has another tokenizer than"),
    ],
)
def test_a_model_that_cannot_rate_is_refused_before_it_is_loaded(
    change: Callable[[Path], None], says: str, settings: RewardSettings, tmp_path: Path
) -> None:
    name = f"reward_model:{tmp_path}/reward"
    check_reward(settings, name, str(tmp_path / "model"))
    change(tmp_path / "reward")
    with pytest.raises(UserError, match=says):
        check_reward(settings, name, str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("reward_model:{}/model", "no score.weight"),
        ("reward_model:{}/absent", "absent' does not exist"),
        ("implicit:{}/model", "does not say how it was trained"),
        ("implicit:{}/absent", "absent' does not exist"),
        ("vadr", "no reward function 'vadr'"),
    ],
)
def test_a_reward_that_is_not_there_says_what_is_missing(
    name: str, says: str, settings: RewardSettings, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        check_reward(settings, name.format(tmp_path), str(tmp_path / "model"))


def test_scores_go_by_the_weights_and_not_by_the_path(settings: RewardSettings, tmp_path: Path) -> None:
    before = scores_of(settings, f"reward_model:{tmp_path}/reward")
    (tmp_path / "reward").rename(tmp_path / "moved")
    after = scores_of(settings, f"reward_model:{tmp_path}/moved")
    assert before and after and before.directory == after.directory
    implicit = f"implicit:{tmp_path}/model?reference={tmp_path}/model&beta="
    assert reward_source(settings, implicit + "1") != reward_source(settings, implicit + "2")
    assert scores_of(settings, "sys:intern") is None, "nobody can tell what a function without a file was before"
