"""The loss of reward models, and what is measured of a trained one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from raydpo.config.schema import Data, Reward
from raydpo.errors import UserError
from raydpo.evaluate.reward_model import RewardedPairs, calibration_error, measure, reliability
from raydpo.evaluate.rewarded import rewarded_pairs
from raydpo.objective.contract import MARGIN, RANK, RatedRows
from raydpo.objective.reward_model import bradley_terry, reward_objective
from raydpo.workspace.rows import check_rewarded, given_rows
from tests.models import random_rows

pytestmark = pytest.mark.unit


def rated(rewards: list[list[float]], row: list[int], **columns: torch.Tensor) -> RatedRows:
    values = torch.tensor(rewards, dtype=torch.float64, requires_grad=True)
    return RatedRows(values, torch.tensor(row), max(row) + 1, columns)


PAIRS = rated([[1.0], [0.5], [-2.0], [1.0]], [0, 0, 1, 1])


def test_equal_rewards_lose_log_two() -> None:
    assert bradley_terry(rated([[3.0], [3.0]], [0, 0])).item() == pytest.approx(np.log(2))


def test_the_loss_is_that_of_trl() -> None:
    """-log sigma(chosen - rejected - margin), and the coefficient times the square of the sum."""
    rows = rated([[1.0], [0.5], [-2.0], [1.0]], [0, 0, 1, 1], margin=torch.tensor([0.3, 0.0, 2.0, 1.0]).double())
    assert MARGIN in rows.columns
    found = bradley_terry(rows, use_margin=True, center_rewards_coefficient=0.01)
    chosen, rejected = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 1.0]).double()
    margin = torch.tensor([0.3, 1.0]).double()
    expected = -(chosen - rejected - margin).sigmoid().log() + 0.01 * (chosen + rejected) ** 2
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-7, atol=1e-7)


def test_smoothing_by_one_half_would_not_know_which_is_better() -> None:
    swapped = rated([[0.5], [1.0], [1.0], [-2.0]], [0, 0, 1, 1])
    torch.testing.assert_close(bradley_terry(PAIRS, label_smoothing=0.5), bradley_terry(swapped, label_smoothing=0.5))


def test_a_ranked_row_has_the_loss_of_all_its_pairs() -> None:
    objective = reward_objective(label_smoothing=0.0, center_rewards_coefficient=0.0, use_margin=False, heads=1)
    ranked = rated([[0.1], [0.7], [-0.4]], [0, 0, 0], **{RANK: torch.tensor([2, 0, 1])})
    pairs = rated([[0.7], [-0.4], [0.7], [0.1], [-0.4], [0.1]], [0, 0, 1, 1, 2, 2])
    torch.testing.assert_close(objective.loss(ranked).sum(), objective.loss(pairs).sum())


def test_an_ensemble_has_the_mean_loss_of_its_heads() -> None:
    objective = reward_objective(label_smoothing=0.1, center_rewards_coefficient=0.1, use_margin=False, heads=2)
    both = rated([[1.0, 0.2], [0.5, 0.9]], [0, 0])
    alone = [rated([[1.0], [0.5]], [0, 0]), rated([[0.2], [0.9]], [0, 0])]
    torch.testing.assert_close(objective.loss(both), sum(objective.loss(rows) for rows in alone) / 2)
    metrics = objective.metrics(both)
    assert metrics["rewards/disagreement"].total.item() == pytest.approx(np.std([0.5, -0.7], ddof=1))
    assert metrics["rewards/accuracies"].total.item() == 0  # the mean of the heads has the worse one ahead


def test_confidences_that_come_true_have_no_calibration_error() -> None:
    margin = float(np.log(3))  # confidence 0.75
    margins = np.array([margin, margin, margin, -margin])
    bins = reliability(margins, margins > 0)
    assert sum(each.pairs for each in bins) == 4
    assert calibration_error(bins) == pytest.approx(0)
    assert calibration_error(reliability(np.full(4, margin), np.full(4, True))) == pytest.approx(0.25)


def test_accuracy_stands_beside_the_rule_by_length() -> None:
    pairs = RewardedPairs(
        prompts=[1, 2, 3, 4],
        better=np.array([[1.0], [1.0], [1.0], [0.0]]),
        worse=np.array([[0.0], [0.0], [0.0], [1.0]]),
        better_tokens=np.array([2.0, 2.0, 1.0, 1.0]),
        worse_tokens=np.array([1.0, 1.0, 2.0, 1.0]),
        sources=["a", "a", "a", "b"],
    )
    found = measure(pairs)
    assert found["accuracy"]["mean"] == 0.75
    assert (found["longer_wins"]["mean"], found["shorter_wins"]["mean"]) == (0.5, 0.25)
    assert found["accuracy_above_length"]["mean"] == pytest.approx(0.25)
    of = found["by_source"]
    assert {source: (each["pairs"], each["accuracy"]["mean"]) for source, each in of.items()} == {
        "a": (3, 1.0),
        "b": (1, 0.0),
    }
    assert of["a"]["length_rule"]["mean"] == pytest.approx(2 / 3)
    assert (of["b"]["accuracy"]["low"], of["b"]["accuracy"]["high"]) == (0, 1), "one prompt says nothing of others"
    assert "by_source" not in measure(replace(pairs, sources=["a"] * 4))


def test_accuracies_by_source_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    better, worse = rng.normal(size=(2, 60, 2))
    lengths = rng.integers(1, 9, size=(2, 60)).astype(float)
    pairs = RewardedPairs(range(60), better, worse, *lengths, sources=rng.choice(["x", "y", "z"], 60).tolist())
    found = measure(pairs)
    parts = found["by_source"].values()
    assert sum(part["pairs"] for part in parts) == found["pairs"]
    right = sum(part["pairs"] * part["accuracy"]["mean"] for part in parts)
    assert right / found["pairs"] == pytest.approx(found["accuracy"]["mean"])
    by_length = sum(part["pairs"] * part["length_rule"]["mean"] for part in parts) / found["pairs"]
    assert by_length == pytest.approx(max(found["longer_wins"]["mean"], found["shorter_wins"]["mean"]))


def test_pairs_are_those_of_the_rows() -> None:
    rows = random_rows(3, seed=0, completions=3)
    rewards = torch.arange(9.0)[:, None]
    pairs = rewarded_pairs(rows, rewards, ["a", "b", "c"])
    assert pairs.better.ravel().tolist() == [0, 0, 1, 3, 3, 4, 6, 6, 7]
    assert pairs.worse.ravel().tolist() == [1, 2, 2, 4, 5, 5, 7, 8, 8]
    assert len(set(pairs.prompts)) == 3
    assert pairs.sources == ["a"] * 3 + ["b"] * 3 + ["c"] * 3


def test_rows_without_pairs_are_refused_with_the_remedy() -> None:
    with pytest.raises(UserError, match=r"data\.format: pairs.*or ranked rows"):
        check_rewarded(given_rows(Data(format="unpaired")), Reward())
    with pytest.raises(UserError, match=r"data\.columns\.margin"):
        check_rewarded(given_rows(Data()), Reward(use_margin=True))
    check_rewarded(given_rows(Data()), Reward())
