"""Laws of every registered loss. Its oracle is the paper's formula on Python's floats, pair by pair."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raydpo.objective.contract import RANK, REF_LOGPS, REF_TOKEN_LOGPS, ScoredRows
from raydpo.objective.preference.dpo import f_scores
from raydpo.objective.registry import LOSSES, loss_at_reference, resolve
from tests.pairs import LOG_SUM_SQ, Pair, of_sums, scored

pytestmark = pytest.mark.unit


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return math.exp(log_sigmoid(x))


def ratios(pair: Pair) -> tuple[float, float]:
    return math.fsum(pair.chosen) - pair.ref_chosen, math.fsum(pair.rejected) - pair.ref_rejected


def margin(pair: Pair) -> float:
    chosen, rejected = ratios(pair)
    return chosen - rejected


def average_margin(pair: Pair) -> float:
    chosen, rejected = ratios(pair)
    return chosen / len(pair.chosen) - rejected / len(pair.rejected)


def averages(pair: Pair) -> tuple[float, float]:
    return math.fsum(pair.chosen) / len(pair.chosen), math.fsum(pair.rejected) / len(pair.rejected)


def smoothed(m: float, epsilon: float) -> float:
    return -(1 - epsilon) * log_sigmoid(m) - epsilon * log_sigmoid(-m)


def exo_pair(pair: Pair, *, beta: float = 0.1, label_smoothing: float = 1e-3) -> float:
    policy = sigmoid(beta * margin(pair)), sigmoid(-beta * margin(pair))
    labels = 1 - label_smoothing, label_smoothing
    return math.fsum(p * math.log(p / q) for p, q in zip(policy, labels, strict=True))


def nca_pair(pair: Pair, *, beta: float = 0.1) -> float:
    rewards = [beta * ratio for ratio in ratios(pair)]
    return -log_sigmoid(rewards[0]) - math.fsum(0.5 * log_sigmoid(-reward) for reward in rewards)


def discopop(pair: Pair, *, beta: float = 0.1, discopop_tau: float = 0.05) -> float:
    m = beta * margin(pair)
    share = sigmoid(m / discopop_tau)
    return (1 - share) * -log_sigmoid(m) + share * math.exp(-m)


def cpo(pair: Pair, *, beta: float = 0.1, cpo_alpha: float = 1.0, label_smoothing: float = 0.0) -> float:
    preference = smoothed(beta * (math.fsum(pair.chosen) - math.fsum(pair.rejected)), label_smoothing)
    return preference - cpo_alpha * averages(pair)[0]


def orpo(pair: Pair, *, beta: float = 0.1) -> float:
    probabilities = [math.exp(average) for average in averages(pair)]
    odds = [p / (1 - p) for p in probabilities]
    return -averages(pair)[0] - beta * log_sigmoid(math.log(odds[0] / odds[1]))


def f_dpo(pair: Pair, *, beta: float = 0.1, epsilon: float = 0.0, slope: Callable[[float], float] = math.log) -> float:
    chosen, rejected = (slope(math.exp(ratio)) for ratio in ratios(pair))
    return smoothed(beta * (chosen - rejected), epsilon)


def ld_dpo(pair: Pair, alpha: float, beta: float = 0.1) -> float:
    shared = min(len(pair.chosen), len(pair.rejected))
    rewards = []
    for tokens, reference in ((pair.chosen, pair.ref_chosen), (pair.rejected, pair.ref_rejected)):
        log_ratios = [token - reference / len(tokens) for token in tokens]
        rewards.append(beta * (math.fsum(log_ratios[:shared]) + alpha * math.fsum(log_ratios[shared:])))
    return smoothed(rewards[0] - rewards[1], 0)


def wpo(pair: Pair, *, beta: float = 0.1) -> float:
    weights = [math.exp((1 - LOG_SUM_SQ) * math.fsum(tokens) / len(tokens)) for tokens in (pair.chosen, pair.rejected)]
    return weights[0] * weights[1] * smoothed(beta * margin(pair), 0)


Case = tuple[str, dict[str, Any], Callable[[Pair], float]]

CASES: list[Case] = [
    ("sigmoid", {}, lambda pair: smoothed(0.1 * margin(pair), 0)),
    ("sigmoid", {"beta": 0.5, "label_smoothing": 0.2}, lambda pair: smoothed(0.5 * margin(pair), 0.2)),
    ("sigmoid", {"f_divergence_type": "forward_kl"}, lambda pair: f_dpo(pair, slope=lambda u: -1 / u)),
    ("sigmoid", {"f_divergence_type": "js_divergence"}, lambda p: f_dpo(p, slope=lambda u: math.log(2 * u / (1 + u)))),
    ("sigmoid", {"f_divergence_type": "alpha_divergence"}, lambda p: f_dpo(p, slope=lambda u: (1 - u**-0.5) / 0.5)),
    ("sigmoid", {"ld_alpha": 0.3}, lambda pair: ld_dpo(pair, 0.3)),
    ("sigmoid", {"ld_alpha": 0.0}, lambda pair: ld_dpo(pair, 0.0)),
    (
        "sigmoid",
        {"use_margin": True},
        lambda pair: smoothed(0.1 * margin(pair) - (pair.margins[0] - pair.margins[1]), 0),
    ),
    ("sigmoid", {"use_weighting": True}, wpo),
    ("plackett_luce", {"beta": 0.5}, lambda pair: smoothed(0.5 * margin(pair), 0)),
    ("sigmoid_norm", {}, lambda pair: smoothed(5 * average_margin(pair), 0)),
    ("sigmoid_norm", {"beta": 2.0, "label_smoothing": 0.1}, lambda pair: smoothed(2 * average_margin(pair), 0.1)),
    ("robust", {}, lambda pair: smoothed(0.1 * margin(pair), 0)),
    (
        "robust",
        {"label_smoothing": 0.2},
        lambda p: (-0.8 * log_sigmoid(0.1 * margin(p)) + 0.2 * log_sigmoid(-0.1 * margin(p))) / 0.6,
    ),
    ("hinge", {"beta": 0.3}, lambda pair: max(0.0, 1 - 0.3 * margin(pair))),
    ("ipo", {}, lambda pair: (average_margin(pair) - 5) ** 2),
    ("exo_pair", {}, exo_pair),
    ("exo_pair", {"label_smoothing": 0.1, "beta": 0.3}, lambda pair: exo_pair(pair, beta=0.3, label_smoothing=0.1)),
    ("nca_pair", {"beta": 0.2}, lambda pair: nca_pair(pair, beta=0.2)),
    ("sppo_hard", {}, lambda pair: (ratios(pair)[0] - 5) ** 2 + (ratios(pair)[1] + 5) ** 2),
    ("apo_zero", {}, lambda p: 1 - sigmoid(0.1 * ratios(p)[0]) + sigmoid(0.1 * ratios(p)[1])),
    ("apo_down", {}, lambda p: sigmoid(0.1 * ratios(p)[0]) + 1 - sigmoid(0.1 * margin(p))),
    ("discopop", {}, discopop),
    ("discopop", {"discopop_tau": 1.0}, lambda pair: discopop(pair, discopop_tau=1.0)),
    ("simpo", {}, lambda pair: -log_sigmoid(2 * averages(pair)[0] - 2 * averages(pair)[1] - 0.5)),
    ("simpo", {"beta": 1.0, "simpo_gamma": 0.0}, lambda pair: -log_sigmoid(averages(pair)[0] - averages(pair)[1])),
    ("cpo", {}, cpo),
    ("cpo", {"cpo_alpha": 0.5, "label_smoothing": 0.1}, lambda p: cpo(p, cpo_alpha=0.5, label_smoothing=0.1)),
    ("orpo", {}, orpo),
    ("orpo", {"beta": 1.0}, lambda pair: orpo(pair, beta=1.0)),
    ("sft", {}, lambda pair: -averages(pair)[0]),
    ("preferred_ft", {}, lambda pair: -math.fsum(pair.chosen)),
    ("unlikelihood", {}, lambda pair: math.fsum(pair.rejected) - math.fsum(pair.chosen)),
    (
        "unlikelihood",
        {"unlikelihood_alpha": 0.3},
        lambda pair: 0.3 * math.fsum(pair.rejected) - math.fsum(pair.chosen),
    ),
]


def label(case: Case) -> str:
    name, arguments, _ = case
    return "-".join((name, *(f"{argument}={value}" for argument, value in arguments.items())))


EVERY = pytest.mark.parametrize("case", CASES, ids=label)

TOKENS = st.lists(st.floats(-8, -0.01), min_size=1, max_size=6)
MARGINS = st.tuples(st.floats(-2, 2), st.floats(-2, 2))
PAIR = st.builds(Pair, TOKENS, TOKENS, st.floats(-40, 0), st.floats(-40, 0), MARGINS)
PAIRS = st.lists(PAIR, min_size=1, max_size=4)
SOME = [
    Pair([-1.5, -0.2, -3.0], [-2.0, -0.7], -5.0, -2.5, (1.5, 0.5)),
    Pair([-0.9], [-0.4, -4.0, -1.1, -0.6], -1.2, -6.0),
    Pair([-2.2, -1.0], [-1.9], -2.0, -3.0),
]


def values(name: str, rows: ScoredRows, **arguments: Any) -> Tensor:
    return LOSSES[name].function(rows, **LOSSES[name].defaults | arguments)


def with_tokens(rows: ScoredRows, token_logps: Tensor) -> ScoredRows:
    return replace(rows, token_logps=token_logps)


def test_every_loss_that_looks_at_one_row_has_an_oracle() -> None:
    local = {name for name, loss in LOSSES.items() if loss.mean_over != "completions" and not loss.coupled}
    assert {name for name, *_ in CASES} == local  # the others have theirs in test_coupled_losses.py


@EVERY
@settings(deadline=None)
@given(pairs=PAIRS)
def test_a_loss_is_its_papers_formula(case: Case, pairs: list[Pair]) -> None:
    name, arguments, oracle = case
    expected = torch.tensor([oracle(pair) for pair in pairs], dtype=torch.float64)
    torch.testing.assert_close(values(name, scored(pairs), **arguments), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", [case for case in CASES if "use_weighting" not in case[1]], ids=label)  # held constant
def test_the_slope_of_every_token_is_that_of_finite_differences(case: Case) -> None:
    name, arguments, _ = case
    rows = scored(SOME)
    tokens = rows.token_logps.requires_grad_()
    torch.autograd.gradcheck(lambda moved: values(name, with_tokens(rows, moved), **arguments), (tokens,))


@EVERY
def test_rows_do_not_see_each_other(case: Case) -> None:
    name, arguments, _ = case
    together = values(name, scored(SOME), **arguments)
    alone = torch.cat([values(name, scored([pair]), **arguments) for pair in SOME])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)


@EVERY
def test_what_is_not_declared_is_not_read(case: Case) -> None:
    name, arguments, _ = case
    rows = scored(SOME)
    [term] = resolve([name], **arguments)
    declared = term.needs | term.statistics

    def without(*left_out: str) -> ScoredRows:
        columns = {each: value for each, value in rows.columns.items() if each in declared - {*left_out}}
        tokens = {each: value for each, value in rows.token_columns.items() if each in declared - {*left_out}}
        return replace(rows, columns=columns, token_columns=tokens)

    values(name, without(), **arguments)
    read_by_metrics_only = {REF_LOGPS} if REF_TOKEN_LOGPS in declared else set()
    for each in declared - {RANK} - read_by_metrics_only:  # without ranks a row stands best first
        with pytest.raises(KeyError):
            values(name, without(each), **arguments)


AT_REFERENCE = {
    "sigmoid": math.log(2),
    "sigmoid_norm": math.log(2),
    "robust": math.log(2),
    "hinge": 1.0,
    "ipo": 1 / (4 * 0.1**2),
    "exo_pair": -math.log(2) - 0.5 * math.log(0.001 * 0.999),
    "nca_pair": 2 * math.log(2),
    "sppo_hard": 1 / (2 * 0.1**2),
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": 0.5 * math.log(2) + 0.5,
    "aot": math.log(2),
    "bco_pair": 2 * math.log(2),
}


@pytest.mark.parametrize("name", AT_REFERENCE)
@settings(deadline=None)
@given(pairs=PAIRS)
def test_a_policy_equal_to_its_reference_has_a_known_loss(name: str, pairs: list[Pair]) -> None:
    rows = scored(pairs)
    same = replace(rows, columns={REF_LOGPS: rows.logps()})
    expected = torch.full((len(pairs),), AT_REFERENCE[name], dtype=torch.float64)
    torch.testing.assert_close(values(name, same), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_at_the_reference_is_told_where_there_is_one(name: str) -> None:
    expected = pytest.approx(AT_REFERENCE[name], rel=1e-12) if name in AT_REFERENCE else None
    assert loss_at_reference(resolve([name])) == expected
    assert loss_at_reference(resolve(["sigmoid", "sft"])) is None


def test_every_loss_with_a_reference_has_its_value_there() -> None:
    assert set(AT_REFERENCE) == {name for name, loss in LOSSES.items() if loss.needs == {REF_LOGPS}}


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"])
def test_no_divergence_moves_the_loss_at_the_reference(divergence: str) -> None:
    rows = scored(SOME)
    same = replace(rows, columns={REF_LOGPS: rows.logps()})
    found = values("sigmoid", same, f_divergence_type=divergence)
    torch.testing.assert_close(found, torch.full((3,), math.log(2), dtype=torch.float64))


@settings(deadline=None)
@given(pairs=PAIRS, alpha=st.floats(0, 1))
def test_weighing_tokens_does_not_move_the_loss_at_the_reference(pairs: list[Pair], alpha: float) -> None:
    rows = scored(pairs)
    same = replace(rows, columns={REF_LOGPS: rows.logps()}, token_columns={REF_TOKEN_LOGPS: rows.token_logps})
    found = values("sigmoid", same, ld_alpha=alpha)
    torch.testing.assert_close(found, torch.full((len(pairs),), math.log(2), dtype=torch.float64))
    assert loss_at_reference(resolve(["sigmoid"], ld_alpha=alpha)) == pytest.approx(math.log(2), rel=1e-12)


@settings(deadline=None)
@given(pairs=PAIRS)
def test_verbose_tokens_in_full_are_dpo(pairs: list[Pair]) -> None:
    almost = values("sigmoid", scored(pairs), ld_alpha=1 - 1e-12)
    torch.testing.assert_close(almost, values("sigmoid", scored(pairs)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("argument", ["use_margin", "use_weighting"])
def test_a_loss_that_rests_on_the_pairs_has_no_value_at_the_reference(argument: str) -> None:
    assert loss_at_reference(resolve(["sigmoid"], **{argument: True})) is None


def test_weights_have_no_slope() -> None:
    """The slope of the weighted loss is the weighted slope."""
    rows = scored(SOME)
    tokens = rows.token_logps.requires_grad_()
    weighted = values("sigmoid", with_tokens(rows, tokens), use_weighting=True)
    plain = values("sigmoid", with_tokens(rows, tokens))
    weights = (weighted / plain).detach()
    (found,) = torch.autograd.grad(weighted.sum(), tokens)
    (expected,) = torch.autograd.grad((weights * plain).sum(), tokens)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "name",
    [
        "sigmoid",
        "sigmoid_norm",
        "robust",
        "hinge",
        "plackett_luce",
        "apo_zero",
        "simpo",
        "cpo",
        "orpo",
        "preferred_ft",
        "unlikelihood",
    ],
)
@settings(deadline=None)
@given(pairs=PAIRS)
def test_the_loss_falls_with_the_chosen_and_rises_with_the_rejected(name: str, pairs: list[Pair]) -> None:
    rows = scored(pairs)
    tokens = rows.token_logps.requires_grad_()
    (slopes,) = torch.autograd.grad(values(name, with_tokens(rows, tokens)).sum(), tokens)
    rejected = (rows.owner % 2).bool()
    assert (slopes[~rejected] <= 0).all()
    assert (slopes[rejected] >= 0).all()


@pytest.mark.parametrize(("name", "others"), [("sigmoid", {}), ("sigmoid_norm", {}), ("cpo", {"cpo_alpha": 0.0})])
@settings(deadline=None)
@given(pairs=PAIRS)
def test_labels_that_are_wrong_half_the_time_say_nothing(name: str, others: dict[str, Any], pairs: list[Pair]) -> None:
    either = values(name, scored(pairs), label_smoothing=0.5, **others)
    flipped = values(name, scored([pair.swapped for pair in pairs]), label_smoothing=0.5, **others)
    torch.testing.assert_close(either, flipped, rtol=1e-10, atol=1e-10)


@settings(deadline=None)
@given(pairs=PAIRS, epsilon=st.floats(0, 0.45))
def test_robust_is_unbiased_under_wrong_labels(pairs: list[Pair], epsilon: float) -> None:
    as_labelled = values("robust", scored(pairs), label_smoothing=epsilon)
    flipped = values("robust", scored([pair.swapped for pair in pairs]), label_smoothing=epsilon)
    clean = values("sigmoid", scored(pairs))
    torch.testing.assert_close((1 - epsilon) * as_labelled + epsilon * flipped, clean, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["sigmoid_norm", "ipo", "simpo", "orpo", "sft"])
def test_a_length_normalised_loss_does_not_know_how_long_a_completion_is(name: str) -> None:
    twice = [
        Pair([*pair.chosen, *pair.chosen], [*pair.rejected, *pair.rejected], 2 * pair.ref_chosen, 2 * pair.ref_rejected)
        for pair in SOME
    ]
    torch.testing.assert_close(values(name, scored(twice)), values(name, scored(SOME)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", sorted({name for name, *_ in CASES} - {"discopop"}))  # its exponential is the paper's
@pytest.mark.parametrize("margin", [-1e4, 1e4])
def test_loss_and_slopes_stay_finite_for_huge_margins(name: str, margin: float) -> None:
    tokens = torch.tensor([[min(margin, 0.0), min(-margin, 0.0)]], requires_grad=True)
    loss = values(name, of_sums(tokens, torch.zeros(1, 2)))
    (slopes,) = torch.autograd.grad(loss.sum(), tokens)
    assert loss.isfinite().all()
    assert slopes.isfinite().all()


@pytest.mark.parametrize("divergence", ["forward_kl", "js_divergence", "alpha_divergence"])
def test_no_divergence_overflows(divergence: str) -> None:
    tokens = torch.tensor([[-1e4, 0.0], [0.0, -1e4]], requires_grad=True)
    loss = values("sigmoid", of_sums(tokens, torch.zeros(2, 2)), f_divergence_type=divergence)
    (slopes,) = torch.autograd.grad(loss.sum(), tokens)
    assert loss.isfinite().all()
    assert slopes.isfinite().all()


def test_orpo_takes_completions_that_are_certain() -> None:
    tokens = torch.zeros(1, 2, requires_grad=True)
    loss = values("orpo", of_sums(tokens, torch.zeros(1, 2)))
    (slopes,) = torch.autograd.grad(loss.sum(), tokens)
    assert loss.item() == pytest.approx(0.1 * math.log(2), rel=1e-6)
    assert slopes.isfinite().all()


GENERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse_kl": lambda u: u * u.log(),
    "forward_kl": lambda u: -u.log(),
    "js_divergence": lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
    "alpha_divergence": lambda u: (u**0.3 - 0.3 * u) / (0.3 * (0.3 - 1)),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_scores_are_the_derivatives_of_the_divergences_generator(name: Any) -> None:
    log_ratios = torch.linspace(-4, 4, 9, dtype=torch.float64)
    u = log_ratios.exp().requires_grad_()
    (slopes,) = torch.autograd.grad(GENERATORS[name](u).sum(), u)
    scores = f_scores(log_ratios, name, 0.3)
    torch.testing.assert_close(scores.diff(), slopes.diff())  # but for a constant, which no margin sees
    assert f_scores(torch.zeros(1), name, 0.3).item() == 0


@settings(deadline=None)
@given(st.floats(-20, 20))
def test_the_alpha_divergence_becomes_the_reverse_kl_at_one(log_ratio: float) -> None:
    ratio = torch.tensor([log_ratio], dtype=torch.float64)
    assert torch.equal(f_scores(ratio, "alpha_divergence", 1.0), ratio)
    torch.testing.assert_close(f_scores(ratio, "alpha_divergence", 1 + 1e-7), ratio, rtol=1e-4, atol=1e-4)
