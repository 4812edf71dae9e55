"""Laws of losses that see a whole global batch, and of losses on single completions.

The oracles are the papers' formulas on Python's floats, with derivatives by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raydpo.objective.contract import LABEL, MISMATCHED, REF_LOGPS, ScoredRows
from raydpo.objective.coupling import SLOPE, Part, couple, in_order, joined, linear
from raydpo.objective.preference.unpaired import wanted
from raydpo.objective.registry import LOSSES, make_objective, resolve
from tests.pairs import Pair, scored

pytestmark = pytest.mark.unit

Outcome = tuple[list[float], list[float]]
"""Values, and the derivatives of their sum by the log-prob of each completion."""


@dataclass(frozen=True)
class Judged:
    """Log-probs of the tokens of one completion, the reference's sum, and whether it is wanted; None: of another."""

    tokens: Sequence[float]
    reference: float
    wanted: bool | None

    @property
    def ratio(self) -> float:
        return math.fsum(self.tokens) - self.reference


def rows_of(groups: Sequence[Sequence[Judged]]) -> ScoredRows:
    """Rows of completions, as the feed brings them."""
    every = [completion for group in groups for completion in group]
    return ScoredRows(
        torch.tensor([logp for completion in every for logp in completion.tokens], dtype=torch.float64),
        owner=torch.arange(len(every)).repeat_interleave(torch.tensor([len(c.tokens) for c in every])),
        row=torch.arange(len(groups)).repeat_interleave(torch.tensor([len(group) for group in groups])),
        num_rows=len(groups),
        columns={
            REF_LOGPS: torch.tensor([c.reference for c in every], dtype=torch.float64),
            LABEL: torch.tensor([c.wanted is True for c in every]),
            MISMATCHED: torch.tensor([c.wanted is None for c in every]),
        },
    )


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return math.exp(log_sigmoid(x))


def smoothed(margin: float, epsilon: float) -> tuple[float, float]:
    """The smoothed logistic loss of a margin and its derivative."""
    value = -(1 - epsilon) * log_sigmoid(margin) - epsilon * log_sigmoid(-margin)
    return value, epsilon - sigmoid(-margin)


def aot(pairs: Sequence[Pair], beta: float = 0.1, label_smoothing: float = 0.0) -> Outcome:
    ours = [math.fsum(pair.chosen) - math.fsum(pair.rejected) for pair in pairs]
    theirs = sorted(pair.ref_chosen - pair.ref_rejected for pair in pairs)
    by_size = sorted(range(len(pairs)), key=ours.__getitem__)
    values = [0.0] * len(pairs)
    slopes = [0.0] * (2 * len(pairs))
    for reference, i in zip(theirs, by_size, strict=True):
        values[i], slope = smoothed(beta * (ours[i] - reference), label_smoothing)
        slopes[2 * i] = beta * slope
        slopes[2 * i + 1] = -beta * slope
    return values, slopes


def bco_pair(pairs: Sequence[Pair], beta: float = 0.1) -> Outcome:
    chosen = [beta * (math.fsum(pair.chosen) - pair.ref_chosen) for pair in pairs]
    rejected = [beta * (math.fsum(pair.rejected) - pair.ref_rejected) for pair in pairs]
    shift = fmean([*chosen, *rejected])
    values = []
    slopes = []
    for better, worse in zip(chosen, rejected, strict=True):
        values.append(-log_sigmoid(better - shift) - log_sigmoid(shift - worse))
        slopes += [-beta * sigmoid(shift - better), beta * sigmoid(worse - shift)]
    return values, slopes


def kto(
    every: Sequence[Judged], beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> Outcome:
    z0 = max(0.0, fmean(c.ratio for c in every if c.wanted is None))
    return about(z0, every, beta, desirable_weight, undesirable_weight)


def apo_zero_unpaired(
    every: Sequence[Judged], beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> Outcome:
    return about(0.0, every, beta, desirable_weight, undesirable_weight)


def about(
    zero: float, every: Sequence[Judged], beta: float, desirable_weight: float, undesirable_weight: float
) -> Outcome:
    """1 − σ of the log-ratios from `zero` on, upwards for wanted completions and downwards for the others."""
    values = []
    slopes = []
    for each in every:
        weight = 0.0 if each.wanted is None else desirable_weight if each.wanted else undesirable_weight
        sign = 1 if each.wanted else -1
        share = sigmoid(-sign * beta * (each.ratio - zero))
        values.append(weight * share)
        slopes.append(weight * share * (1 - share) * -sign * beta)
    return values, slopes


def bco(every: Sequence[Judged], beta: float = 0.1) -> Outcome:
    shift = fmean(beta * c.ratio for c in every if c.wanted is not None)
    values = []
    slopes = []
    for each in every:
        sign = 1 if each.wanted else -1
        counts = each.wanted is not None
        logit = sign * (beta * each.ratio - shift)
        values.append(-log_sigmoid(logit) * counts)
        slopes.append(-sigmoid(-logit) * sign * beta * counts)
    return values, slopes


def aot_unpaired(every: Sequence[Judged], beta: float = 0.1, label_smoothing: float = 0.0) -> Outcome:
    """Every completion copied so often that there are equally many of either kind, then the k-th meets the k-th."""
    above = sorted((i for i, each in enumerate(every) if each.wanted is True), key=lambda i: every[i].ratio)
    below = sorted((i for i, each in enumerate(every) if each.wanted is False), key=lambda i: every[i].ratio)
    values = [0.0] * len(every)
    slopes = [0.0] * len(every)
    copies = len(above) * len(below)
    for k in range(copies):
        i = above[k // len(below)]
        j = below[k // len(above)]
        value, slope = smoothed(beta * (every[i].ratio - every[j].ratio), label_smoothing)
        share = (len(above) + len(below)) / copies
        values[i] += 0.5 * share * value
        values[j] += 0.5 * share * value
        slopes[i] += share * beta * slope
        slopes[j] -= share * beta * slope
    return values, slopes


OF_PAIRS: list[tuple[str, dict[str, Any], Callable[..., Outcome]]] = [
    ("aot", {}, aot),
    ("aot", {"beta": 0.4, "label_smoothing": 0.2}, aot),
    ("bco_pair", {}, bco_pair),
    ("bco_pair", {"beta": 0.5}, bco_pair),
]
OF_COMPLETIONS: list[tuple[str, dict[str, Any], Callable[..., Outcome]]] = [
    ("kto", {}, kto),
    ("kto", {"beta": 0.3, "desirable_weight": 1.3, "undesirable_weight": 0.6}, kto),
    ("bco", {}, bco),
    ("bco", {"beta": 0.5}, bco),
    ("apo_zero_unpaired", {"beta": 0.2, "undesirable_weight": 1.7}, apo_zero_unpaired),
    ("aot_unpaired", {}, aot_unpaired),
    ("aot_unpaired", {"beta": 0.4, "label_smoothing": 0.2}, aot_unpaired),
]

TOKENS = st.lists(st.floats(-8, -0.01), min_size=1, max_size=4)
PAIRS = st.lists(st.builds(Pair, TOKENS, TOKENS, st.floats(-30, 0), st.floats(-30, 0)), min_size=1, max_size=6)
GROUPS = st.lists(
    st.lists(
        st.builds(Judged, TOKENS, st.floats(-30, 0), st.sampled_from([True, False, None])), min_size=1, max_size=3
    ),
    min_size=1,
    max_size=5,
)
ONE_OF_EACH = [[Judged([-1.0, -2.0], -2.0, True), Judged([-1.5], -4.0, None)], [Judged([-0.5], -3.0, False)]]
BOTH_KINDS = GROUPS.map(lambda groups: [*ONE_OF_EACH, *groups])


def found(name: str, rows: ScoredRows, **arguments: Any) -> tuple[Tensor, Tensor]:
    """Values of a loss, and the slope of its sum by every token."""
    leaf = rows.token_logps.requires_grad_()
    values = LOSSES[name].function(replace(rows, token_logps=leaf), **LOSSES[name].defaults | arguments)
    (slopes,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), slopes


def agree(rows: ScoredRows, result: tuple[Tensor, Tensor], expected: Outcome) -> None:
    values, slopes = (torch.tensor(numbers, dtype=torch.float64) for numbers in expected)
    torch.testing.assert_close(result[0], values, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(result[1], slopes[rows.owner], rtol=1e-10, atol=1e-10)


def test_every_loss_beyond_one_pair_has_an_oracle() -> None:
    beyond = {name for name, loss in LOSSES.items() if loss.coupled or loss.mean_over == "completions"}
    assert {name for name, *_ in OF_PAIRS + OF_COMPLETIONS} == beyond


@pytest.mark.parametrize(("name", "arguments", "oracle"), OF_PAIRS)
@settings(deadline=None)
@given(pairs=PAIRS)
def test_a_coupled_loss_of_pairs_is_its_papers_formula(
    name: str, arguments: dict[str, Any], oracle: Callable[..., Outcome], pairs: list[Pair]
) -> None:
    rows = scored(pairs)
    agree(rows, found(name, rows, **arguments), oracle(pairs, **arguments))


@pytest.mark.parametrize(("name", "arguments", "oracle"), OF_COMPLETIONS)
@settings(deadline=None)
@given(groups=BOTH_KINDS)
def test_a_loss_of_completions_is_its_papers_formula(
    name: str, arguments: dict[str, Any], oracle: Callable[..., Outcome], groups: list[list[Judged]]
) -> None:
    rows = rows_of(groups)
    every = [each for group in groups for each in group]
    agree(rows, found(name, rows, **arguments), oracle(every, **arguments))


@pytest.mark.parametrize("name", ["kto", "bco", "apo_zero_unpaired", "aot_unpaired"])
def test_a_completion_of_another_prompt_has_no_loss_and_no_slope(name: str) -> None:
    rows = rows_of(ONE_OF_EACH)
    values, slopes = found(name, rows)
    others = rows.columns[MISMATCHED]
    assert (values[others] == 0).all()
    assert (slopes[others[rows.owner]] == 0).all()
    assert (values[~others] != 0).all()


@pytest.mark.parametrize("name", ["bco", "apo_zero_unpaired", "aot_unpaired"])
def test_of_a_pair_the_chosen_is_wanted_and_the_rejected_is_not(name: str) -> None:
    pairs = [Pair([-1.5, -0.2], [-2.0], -5.0, -2.5), Pair([-0.9], [-0.4, -4.0], -1.2, -6.0)]
    unlabelled = scored(pairs)
    labels = torch.tensor([True, False, True, False])
    labelled = replace(unlabelled, columns={**unlabelled.columns, LABEL: labels})
    assert torch.equal(wanted(unlabelled), labels)
    assert torch.equal(found(name, unlabelled)[0], found(name, labelled)[0])


@settings(deadline=None)
@given(pairs=PAIRS)
def test_bco_on_pairs_is_bco_pair_a_completion(pairs: list[Pair]) -> None:
    rows = scored(pairs)
    of_completions, _ = found("bco", rows)
    of_pairs, _ = found("bco_pair", rows)
    torch.testing.assert_close(of_completions.view(-1, 2).sum(dim=1), of_pairs)


def test_a_batch_of_one_kind_has_nothing_to_transport() -> None:
    values, slopes = found("aot_unpaired", rows_of([[Judged([-1.0], -2.0, True)], [Judged([-2.0], -1.0, True)]]))
    assert not values.any()
    assert not slopes.any()


def test_completions_of_other_prompts_are_in_no_pair() -> None:
    rows = rows_of([[Judged([-1.0], 0.0, None), *ONE_OF_EACH[0], Judged([-2.0], 0.0, False)]])
    pairs = rows.pairs()
    assert (pairs.better.tolist(), pairs.worse.tolist()) == ([1], [3])


# ---- the coupling

BATCH = [
    [Judged([-1.5, -0.2, -3.0], -5.0, True), Judged([-2.0, -0.7], -2.5, False), Judged([-3.0], -4.0, None)],
    [Judged([-0.9], -12.0, True), Judged([-0.4, -4.0, -1.1, -0.6], -6.0, False), Judged([-1.0, -1.0], -1.5, None)],
    [Judged([-2.2, -1.0], -2.0, False), Judged([-0.3], -0.1, None)],
    [Judged([-1.9], -3.0, True), Judged([-0.8, -0.1], -2.0, None)],
]
NAMES = ["d", "b", "c", "a"]
COUPLED = sorted(name for name, loss in LOSSES.items() if loss.coupled)
Split = list[list[int]]
SPLITS = st.permutations(range(len(BATCH))).flatmap(
    lambda order: st.lists(st.integers(1, len(BATCH) - 1), unique=True, max_size=3).map(
        lambda cuts: [order[i:j] for i, j in zip([0, *sorted(cuts)], [*sorted(cuts), len(BATCH)], strict=True)]
    )
)


def parts(split: Split) -> list[Part]:
    return [Part(rows_of([BATCH[i] for i in members]), [NAMES[i] for i in members]) for members in split]


@pytest.mark.parametrize("name", [*COUPLED, "aot+sft"])
@settings(deadline=None)
@given(split=SPLITS)
def test_no_split_into_micro_batches_and_ranks_moves_a_bit(name: str, split: Split) -> None:
    objective = make_objective(resolve(name.split("+")))
    [whole] = couple(objective, parts([[0, 1, 2, 3]]))
    row_slopes = whole.slopes.split([sum(len(c.tokens) for c in group) for group in BATCH])
    for members, of_part in zip(split, couple(objective, parts(split)), strict=True):
        assert torch.equal(of_part.losses, whole.losses[members])
        assert torch.equal(of_part.slopes, torch.cat([row_slopes[i] for i in members]))
        for metric, mean in of_part.metrics.items():
            assert torch.equal(mean.total, whole.metrics[metric].total[members])
            assert torch.equal(mean.count, whole.metrics[metric].count[members])


@pytest.mark.parametrize("name", COUPLED)
def test_the_rows_of_a_batch_are_coupled(name: str) -> None:
    objective = make_objective(resolve([name]))
    [whole] = couple(objective, parts([[0, 1, 2, 3]]))
    alone = [couple(objective, parts([[i]]))[0].slopes for i in range(4)]
    assert not torch.allclose(whole.slopes, torch.cat(alone))


@pytest.mark.parametrize("name", COUPLED)
def test_the_linear_loss_has_the_slopes_that_it_is_given(name: str) -> None:
    part = parts([[0, 1, 2, 3]])[0]
    [whole] = couple(make_objective(resolve([name])), [part])
    leaf = part.rows.token_logps.requires_grad_()
    values = linear(replace(part.rows, token_logps=leaf, token_columns={SLOPE: whole.slopes}))
    assert values.shape == (4,)
    assert torch.equal(torch.autograd.grad(values.sum(), leaf)[0], whole.slopes)


def test_what_a_coupled_loss_takes_from_the_batch_is_reported() -> None:
    of_part = couple(make_objective(resolve(["kto"])), parts([[0, 1], [2, 3]]))[1]
    ratios = [each.ratio for group in BATCH for each in group if each.wanted is None]
    kl = of_part.metrics["kl"]
    assert (kl.total / kl.count).tolist() == pytest.approx([max(0.0, fmean(ratios))] * 2)
    assert of_part.metrics["rewards/chosen"].count.tolist() == [0, 1]
    assert of_part.metrics["rewards/rejected"].count.tolist() == [1, 0]


def test_the_worked_example_of_another_order() -> None:
    rows = rows_of([[Judged([-1.0], 0, True)], [Judged([-2.0, -3.0], 0, True)], [Judged([-4.0], 0, True)]])
    ordered, tokens = in_order(joined([rows]), torch.tensor([2, 0, 1]))
    assert ordered.token_logps.tolist() == [-4, -1, -2, -3]
    assert tokens.tolist() == [3, 0, 1, 2]
    assert ordered.owner.tolist() == [0, 1, 2, 2]
