"""Laws of objectives: what they see, what they report, and how a run file's words become one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raydpo.config import schema
from raydpo.errors import UserError
from raydpo.objective.contract import MISMATCHED, REF_LOGPS, Mean, Objective, ScoredRows
from raydpo.objective.likelihood import fine_tuning
from raydpo.objective.preference.dpo import FDivergence
from raydpo.objective.registry import ELSEWHERE, LOSSES, Term, make_objective, resolve
from tests.pairs import of_sums

pytestmark = pytest.mark.unit

LOGP = st.floats(-500, 0, width=32)
FOUR = st.lists(st.tuples(LOGP, LOGP, LOGP, LOGP), min_size=1, max_size=8)
BETA = st.sampled_from([0.01, 0.1, 1.0])


def objective(*loss_types: str, weights: list[float] | None = None, **arguments: Any) -> Objective:
    return make_objective(resolve(loss_types, weights, **arguments))


def totals(metrics: dict[str, Mean]) -> dict[str, Tensor]:
    return {name: mean.total for name, mean in metrics.items()}


def rows_of(values: list[tuple[float, ...]]) -> ScoredRows:
    columns = torch.tensor(values, dtype=torch.float64)
    return of_sums(columns[:, :2], columns[:, 2:])


ROWS = rows_of([(-10.0, -14.0, -11.0, -12.0), (-4.0, -2.0, -3.0, -3.0)])


def test_the_worked_example_of_scored_rows() -> None:
    tokens, owner = torch.tensor([-1.0, -2, -3, -4, -5, -6]), torch.tensor([0, 1, 1, 2, 2, 2])
    rows = ScoredRows(tokens, owner, torch.tensor([0, 0, 1]), 2, {REF_LOGPS: torch.full((3,), -2.0)})
    assert rows.logps().tolist() == [-1, -5, -15]
    assert rows.lengths().tolist() == [1, 2, 3]
    assert rows.average_logps().tolist() == [-1, -2.5, -5]
    assert rows.log_ratios().tolist() == [1, -3, -13]
    assert rows.average_log_ratios().tolist() == pytest.approx([1, -1.5, -13 / 3])
    assert [each.tolist() for each in rows.pairs()] == [[0], [1], [0]]


def test_dpo_worked_by_hand() -> None:
    found = objective("sigmoid", beta=0.5)
    assert found.loss(ROWS)[0].item() == pytest.approx(math.log1p(math.exp(-1.5)), rel=1e-12)
    metrics = {name: values.tolist() for name, values in totals(found.metrics(ROWS)).items()}
    assert metrics == {
        "rewards/chosen": [0.5, -0.5],
        "rewards/rejected": [-1.0, 0.5],
        "rewards/margins": [1.5, -1.0],
        "rewards/accuracies": [1.0, 0.0],
        "logps/chosen": [-10.0, -4.0],
        "logps/rejected": [-14.0, -2.0],
    }


@settings(deadline=None)
@given(FOUR, BETA)
def test_the_gradient_of_dpo_is_the_papers(values: list[tuple[float, ...]], beta: float) -> None:
    """−β σ(r̂_l − r̂_w) on chosen and its opposite on rejected (Rafailov et al. 2023, section 4)."""
    rows = rows_of(values)
    rows.token_logps.requires_grad_()
    (slopes,) = torch.autograd.grad(objective("sigmoid", beta=beta).loss(rows).sum(), rows.token_logps)
    chosen, rejected = slopes.view(-1, 2).unbind(dim=1)
    metrics = totals(objective("sigmoid", beta=beta).metrics(rows))
    weight = torch.sigmoid(metrics["rewards/rejected"] - metrics["rewards/chosen"]).detach()
    torch.testing.assert_close(chosen, -beta * weight)
    torch.testing.assert_close(rejected, beta * weight)


@settings(deadline=None)
@given(FOUR, BETA)
def test_swapping_chosen_and_rejected_mirrors_the_margin(values: list[tuple[float, ...]], beta: float) -> None:
    rows, swapped = rows_of(values), rows_of([(b, a, d, c) for a, b, c, d in values])
    found = objective("sigmoid", beta=beta)
    margins = totals(found.metrics(rows))["rewards/margins"]
    torch.testing.assert_close(totals(found.metrics(swapped))["rewards/margins"], -margins)
    # -log σ(-m) = m - log σ(m)
    torch.testing.assert_close(found.loss(swapped), found.loss(rows) + margins, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("margin", "accuracy"), [(1e-3, 1.0), (0.0, 0.0), (-1e-3, 0.0)])
def test_a_tie_counts_as_wrong(margin: float, accuracy: float) -> None:
    metrics = totals(objective("sigmoid").metrics(rows_of([(margin, 0.0, 0.0, 0.0)])))
    assert metrics["rewards/accuracies"].item() == accuracy


@pytest.mark.parametrize("name", LOSSES)
def test_metrics_are_values_a_row_and_there_are_rewards_where_there_is_a_beta(name: str) -> None:
    columns = {**ROWS.columns, MISMATCHED: torch.tensor([False, False, False, True])}
    metrics = objective(name).metrics(replace(ROWS, columns=columns))
    assert {(*mean.total.shape, *mean.count.shape) for mean in metrics.values()} == {(2, 2)}
    assert {"logps/chosen", "logps/rejected"} <= metrics.keys()
    assert ("rewards/chosen" in metrics) == ("beta" in LOSSES[name].defaults)
    assert ("rewards/margins" in metrics) == ("rewards/chosen" in metrics and LOSSES[name].mean_over != "completions")


@pytest.mark.parametrize("names", [("simpo", "sft"), ("sft", "simpo"), ("simpo", "sigmoid")])
def test_the_rewards_of_a_mix_are_those_of_its_first_loss_that_has_any(names: tuple[str, ...]) -> None:
    mixed = totals(objective(*names).metrics(ROWS))
    alone = totals(objective("simpo").metrics(ROWS))
    assert mixed.keys() == alone.keys()
    assert all(torch.equal(mixed[name], alone[name]) for name in alone)


def test_a_mix_is_the_weighted_sum_of_its_losses() -> None:
    rpo = objective("sigmoid", "sft", weights=[1.0, 0.2], beta=0.3)
    expected = objective("sigmoid", beta=0.3).loss(ROWS) + 0.2 * objective("sft").loss(ROWS)
    assert torch.equal(rpo.loss(ROWS), expected)
    assert (rpo.mean_over, rpo.needs) == ("pairs", {REF_LOGPS})


@pytest.mark.parametrize("name", ["simpo", "cpo", "orpo", "sft", "preferred_ft", "unlikelihood"])
def test_a_reference_free_loss_needs_nothing_but_tokens(name: str) -> None:
    found = objective(name)
    rows = replace(ROWS, columns={})
    assert found.needs == frozenset()
    assert found.loss(rows).shape == (2,)
    assert found.metrics(rows)
    assert found.compares(rows).shape == (4,)


def test_fine_tuning_weighs_tokens_and_needs_no_reference() -> None:
    rows = ScoredRows(torch.tensor([-1.0, -3.0, -1.0]), torch.tensor([0, 1, 1]), torch.tensor([0, 1]), 2, {})
    found = fine_tuning()
    assert (found.mean_over, found.needs) == ("tokens", frozenset())
    assert found.loss(rows).tolist() == [1.0, 4.0]
    assert totals(found.metrics(rows))["logps/completion"].tolist() == [-1.0, -4.0]


def test_what_the_run_file_leaves_out_is_the_losss_own_default() -> None:
    assert resolve(["simpo"]) == (Term("simpo", 1.0, {"beta": 2.0, "simpo_gamma": 0.5, "label_smoothing": 0.0}),)
    [term] = resolve(["sigmoid_norm"], beta=1.0)
    assert term.arguments["beta"] == 1.0


@pytest.mark.parametrize(("other", "ours"), [("dpo", "sigmoid"), ("dpo_norm", "sigmoid_norm")])
def test_other_projects_names_are_understood(other: str, ours: str) -> None:
    assert resolve([other]) == resolve([ours])


def test_an_argument_goes_to_every_loss_that_takes_it() -> None:
    sigmoid, cpo, sft = resolve(["sigmoid", "cpo", "sft"], beta=0.7, cpo_alpha=0.1)
    assert (sigmoid.arguments["beta"], cpo.arguments["beta"], cpo.arguments["cpo_alpha"]) == (0.7, 0.7, 0.1)
    assert not sft.arguments


@pytest.mark.parametrize(
    ("names", "weights", "arguments", "said"),
    [
        (["sigmod"], None, {}, "loss_type = 'sigmod': there is no such loss; the nearest is sigmoid"),
        (["simp"], None, {}, "the nearest is simpo"),
        (["cdpo"], None, {}, "write loss_type: sigmoid with label_smoothing"),
        (["rpo"], None, {}, r"write loss_type: \[sigmoid, sft\] with loss_weights"),
        (["sigmoid", "aot"], None, {"use_weighting": True}, "use_weighting does not go with aot"),
        (
            ["sigmoid", "kto"],
            None,
            {},
            "sigmoid is a mean over pairs and kto is a mean over completions, so they do not add up",
        ),
        (["sigmoid", "dpo"], None, {}, "names a loss twice: sigmoid, sigmoid"),
        (["sigmoid", "sft"], [1.0], {}, "loss_weights has 1 values for the 2 losses"),
        (["sigmoid"], [1.0, 2.0], {}, "loss_weights has 2 values for the 1 losses"),
        (["hinge"], None, {"label_smoothing": 0.1}, "label_smoothing is set, and hinge does not take it; .*robust"),
        (["sft"], None, {"beta": 0.1}, "beta is set, and sft does not take it"),
        (["sigmoid", "sft"], None, {"simpo_gamma": 0.1}, r"sigmoid \+ sft does not take it; .*does: simpo"),
        (["exo_pair"], None, {"label_smoothing": 0.0}, "exo_pair has no such limit; set it above 0"),
    ],
)
def test_a_mistake_is_answered_with_the_key_and_what_would_work(
    names: list[str], weights: list[float] | None, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=r"^train\.objective\.") as refused:
        resolve(names, weights, **arguments)
    assert refused.match(said)


def test_names_that_are_answered_are_no_losses() -> None:
    assert not ELSEWHERE.keys() & LOSSES.keys()


def test_the_run_file_knows_the_arguments_of_the_losses_and_no_others() -> None:
    words = set(schema.ObjectiveSettings.model_fields) - {"loss_type", "loss_weights", "name"}
    assert words == set().union(*(loss.defaults for loss in LOSSES.values()))
    offered = schema.ObjectiveSettings.model_fields["f_divergence_type"].annotation
    assert get_args(get_args(offered)[0]) == get_args(FDivergence)


@pytest.mark.parametrize("name", LOSSES)
def test_the_defaults_of_a_loss_are_values_that_the_run_file_allows(name: str) -> None:
    settings = schema.ObjectiveSettings(loss_type=[name], **LOSSES[name].defaults)
    assert resolve(settings.loss_type, settings.loss_weights, **settings.arguments) == resolve([name])
