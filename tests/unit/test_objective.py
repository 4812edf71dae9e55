"""Laws of the losses and metrics."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raydpo.objective.likelihood import nll_loss
from raydpo.objective.objectives import dpo, sft
from raydpo.objective.preference import PairLogps, dpo_loss, implicit_rewards, preference_metrics

pytestmark = pytest.mark.unit

LOGP = st.floats(-500, 0, width=32)
FOUR = st.lists(st.tuples(LOGP, LOGP, LOGP, LOGP), min_size=1, max_size=8)
BETA = st.sampled_from([0.01, 0.1, 1.0])
EPSILON = st.floats(0, 0.49)


def _pairs(values: list[tuple[float, ...]]) -> tuple[PairLogps, PairLogps]:
    """Policy and reference, float64."""
    columns = torch.tensor(values, dtype=torch.float64)
    return PairLogps.from_columns(columns[:, :2]), PairLogps.from_columns(columns[:, 2:])


def _swap(pair: PairLogps) -> PairLogps:
    return PairLogps(pair.rejected, pair.chosen)


def _of_margin(margin: float) -> tuple[PairLogps, PairLogps]:
    zero = torch.zeros(1)
    return PairLogps(torch.tensor([margin]), zero), PairLogps(zero, zero)


@given(st.lists(st.tuples(LOGP, LOGP), min_size=1, max_size=8), BETA)
def test_policy_equal_to_reference_loses_log_two(values: list[tuple[float, float]], beta: float) -> None:
    policy = PairLogps.from_columns(torch.tensor(values))
    rewards = implicit_rewards(policy, policy, beta=beta)
    assert torch.equal(dpo_loss(policy, policy, beta=beta), torch.full((len(values),), math.log(2)))
    assert not rewards.chosen.any()
    assert not rewards.rejected.any()


def test_the_loss_of_a_pair_worked_by_hand() -> None:
    policy, ref = _pairs([(-10.0, -14.0, -11.0, -12.0)])
    rewards = implicit_rewards(policy, ref, beta=0.5)
    assert (rewards.chosen.item(), rewards.rejected.item(), rewards.margins.item()) == (0.5, -1.0, 1.5)
    assert dpo_loss(policy, ref, beta=0.5).item() == pytest.approx(math.log1p(math.exp(-1.5)), rel=1e-12)


@given(FOUR, BETA)
def test_swapping_chosen_and_rejected_mirrors_the_margin(values: list[tuple[float, ...]], beta: float) -> None:
    policy, ref = _pairs(values)
    margins = implicit_rewards(policy, ref, beta=beta).margins
    mirrored = implicit_rewards(_swap(policy), _swap(ref), beta=beta).margins
    torch.testing.assert_close(mirrored, -margins)
    # -log σ(-m) = m - log σ(m)
    loss, swapped = dpo_loss(policy, ref, beta=beta), dpo_loss(_swap(policy), _swap(ref), beta=beta)
    torch.testing.assert_close(swapped, loss + margins, rtol=1e-9, atol=1e-9)


@given(FOUR, BETA)
def test_the_gradient_is_the_papers(values: list[tuple[float, ...]], beta: float) -> None:
    """−β σ(r̂_l − r̂_w) on chosen and its opposite on rejected (Rafailov et al. 2023, section 4)."""
    policy, ref = _pairs(values)
    chosen, rejected = policy.chosen.clone().requires_grad_(), policy.rejected.clone().requires_grad_()
    loss = dpo_loss(PairLogps(chosen, rejected), ref, beta=beta)
    slopes = torch.autograd.grad(loss.sum(), (chosen, rejected))
    weight = torch.sigmoid(-implicit_rewards(policy, ref, beta=beta).margins)
    torch.testing.assert_close(slopes[0], -beta * weight)
    torch.testing.assert_close(slopes[1], beta * weight)


def test_a_pair_in_the_wrong_order_weighs_more() -> None:
    logps = torch.tensor([[-9.0, -5.0], [-5.0, -9.0]], requires_grad=True)
    reference = PairLogps(torch.full((2,), -7.0), torch.full((2,), -7.0))
    dpo_loss(PairLogps.from_columns(logps), reference, beta=0.5).sum().backward()
    assert logps.grad is not None
    wrong, right = logps.grad[:, 1]
    assert wrong > 2 * right > 0


@given(FOUR, BETA, EPSILON)
def test_label_smoothing_is_the_expectation_over_both_labels(
    values: list[tuple[float, ...]], beta: float, epsilon: float
) -> None:
    policy, ref = _pairs(values)
    as_labelled, flipped = dpo_loss(policy, ref, beta=beta), dpo_loss(_swap(policy), _swap(ref), beta=beta)
    expected = (1 - epsilon) * as_labelled + epsilon * flipped
    torch.testing.assert_close(dpo_loss(policy, ref, beta=beta, label_smoothing=epsilon), expected)


def test_no_label_smoothing_is_the_default() -> None:
    policy, ref = _of_margin(3.0)
    assert torch.equal(dpo_loss(policy, ref, beta=1.0), dpo_loss(policy, ref, beta=1.0, label_smoothing=0.0))
    assert dpo_loss(policy, ref, beta=1.0) < dpo_loss(policy, ref, beta=1.0, label_smoothing=0.1)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("margin", [-1e4, 1e4])
def test_loss_and_gradient_stay_finite_for_huge_margins(margin: float, label_smoothing: float) -> None:
    policy, ref = _of_margin(margin)
    policy.chosen.requires_grad_()
    loss = dpo_loss(policy, ref, beta=1.0, label_smoothing=label_smoothing)
    (slope,) = torch.autograd.grad(loss.sum(), policy.chosen)
    wrong_label = label_smoothing if margin > 0 else 1 - label_smoothing
    assert loss.item() == pytest.approx(wrong_label * 1e4)
    assert slope.isfinite().all()


@given(FOUR, BETA, st.floats(-100, 100))
def test_a_constant_on_both_logps_of_a_pair_changes_nothing(
    values: list[tuple[float, ...]], beta: float, constant: float
) -> None:
    policy, ref = _pairs(values)
    moved = PairLogps(policy.chosen + constant, policy.rejected + constant)
    before, after = dpo_loss(policy, ref, beta=beta), dpo_loss(moved, ref, beta=beta)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


@given(FOUR, BETA)
def test_the_metrics_are_the_rewards_and_the_policys_logps(values: list[tuple[float, ...]], beta: float) -> None:
    policy, ref = _pairs(values)
    rewards, metrics = implicit_rewards(policy, ref, beta=beta), preference_metrics(policy, ref, beta=beta)
    expected = {
        "rewards/chosen": rewards.chosen,
        "rewards/rejected": rewards.rejected,
        "rewards/margins": rewards.chosen - rewards.rejected,
        "rewards/accuracies": (rewards.chosen > rewards.rejected).double(),
        "logps/chosen": policy.chosen,
        "logps/rejected": policy.rejected,
    }
    assert metrics.keys() == expected.keys()
    assert all(torch.equal(metrics[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("margin", "accuracy"), [(1e-3, 1.0), (0.0, 0.0), (-1e-3, 0.0)])
def test_a_tie_counts_as_wrong(margin: float, accuracy: float) -> None:
    policy, ref = _of_margin(margin)
    assert preference_metrics(policy, ref, beta=0.1)["rewards/accuracies"].item() == accuracy


@given(st.lists(LOGP, min_size=1, max_size=8))
def test_the_sft_loss_is_the_negative_sum(values: list[float]) -> None:
    logps = torch.tensor(values)
    assert torch.equal(nll_loss(logps), -logps)


def test_the_dpo_objective_is_the_dpo_loss_per_pair() -> None:
    logps, ref = torch.tensor([[-1.0, -3.0], [-4.0, -2.0]]), torch.tensor([[-2.0, -2.0], [-3.0, -3.0]])
    pairs = PairLogps.from_columns(logps), PairLogps.from_columns(ref)
    objective = dpo(beta=0.3, label_smoothing=0.2)
    assert objective.mean_over == "rows"
    assert torch.equal(objective.loss(logps, ref), dpo_loss(*pairs, beta=0.3, label_smoothing=0.2))
    assert objective.metrics(logps, ref)["rewards/accuracies"].tolist() == [1.0, 0.0]


def test_the_sft_objective_weighs_tokens_and_needs_no_reference() -> None:
    logps: Tensor = torch.tensor([[-1.0], [-4.0]])
    objective = sft()
    assert objective.mean_over == "tokens"
    assert objective.loss(logps, None).tolist() == [1.0, 4.0]
    assert objective.metrics(logps, None)["logps/completion"].tolist() == [-1.0, -4.0]
