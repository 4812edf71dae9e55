"""Laws of rows with any number of completions: a group is its pairs, and rows of a batch need not be alike."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations, permutations
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from raydpo.data.tokens import TokenRow
from raydpo.model import head
from raydpo.model.batch import Batch
from raydpo.model.head import CompletionHead
from raydpo.model.score import ScoringModel
from raydpo.objective.contract import LOG_SUM_SQ_PROBS, RANK, REF_LOGPS, REF_TOKEN_LOGPS, ScoredRows
from raydpo.objective.registry import LOSSES, make_objective, resolve
from tests.models import VOCAB_SIZE, exact, exact_logps, make_batch, make_row, random_rows, tiny_llama

pytestmark = pytest.mark.unit

# Coupled losses, and those of single completions, have their laws in test_coupled_losses.py.
COMPARING = sorted(name for name, loss in LOSSES.items() if not loss.coupled and loss.mean_over != "completions")
EVERY_LOSS = pytest.mark.parametrize("name", COMPARING)
PAIRWISE = [name for name in COMPARING if LOSSES[name].mean_over == "pairs"]
EVERY_PAIRWISE_LOSS = pytest.mark.parametrize("name", PAIRWISE)


@st.composite
def groups(draw: st.DrawFn) -> list[TokenRow]:
    """One to four rows of one to five completions each, all of unequal lengths."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 99)))

    def tokens(longest: int) -> list[int]:
        ids: list[int] = rng.integers(VOCAB_SIZE, size=rng.integers(1, longest)).tolist()
        return ids

    return [make_row(tokens(20), *(tokens(9) for _ in range(size))) for size in sizes]


def scored(ranks: list[list[int]]) -> ScoredRows:
    """Completions of one token, whose log-probs are all different, with these ranks."""
    sizes = torch.tensor([len(of_row) for of_row in ranks])
    row = torch.arange(len(ranks)).repeat_interleave(sizes)
    tokens = -torch.arange(1.0, len(row) + 1, dtype=torch.float64)
    flat = torch.tensor([rank for of_row in ranks for rank in of_row])
    columns = {RANK: flat, REF_LOGPS: torch.zeros(len(row), dtype=torch.float64)}
    return ScoredRows(tokens, torch.arange(len(row)), row, len(ranks), columns)


def reference_of(rows: list[TokenRow]) -> Tensor:
    """A made-up log-prob of every completion that rests on its tokens alone, near that of the tiny model."""
    return torch.tensor([-6.0 * len(ids) + ids[0] % 7 / 3 for row in rows for ids in row.completions])


def batch_of(rows: list[TokenRow]) -> Batch:
    return make_batch(rows, reference_of(rows))


def pair_rows(rows: list[TokenRow]) -> list[TokenRow]:
    """Every two completions of a row as a row of its own; in a row the best stands first."""
    return [make_row(row.prompt_ids, *two) for row in rows for two in combinations(row.completions, 2)]


def loss_and_gradient(lm: LlamaForCausalLM, rows: list[TokenRow], name: str) -> tuple[Tensor, Tensor]:
    """Summed over the rows, in one pass; the gradient as one vector."""
    lm.zero_grad()
    total, *_ = ScoringModel(lm)(batch_of(rows), make_objective(resolve([name])).loss)
    total.backward()
    return total.detach(), torch.cat([p.grad.flatten() for p in lm.parameters() if p.grad is not None])


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=4))
def test_the_pairs_are_those_of_a_row_in_which_one_is_better_and_a_tie_is_none(ranks: list[list[int]]) -> None:
    better, worse, row = scored(ranks).pairs()
    place = [(i, rank) for i, of_row in enumerate(ranks) for rank in of_row]
    expected = {
        (a, b)
        for a, (row_of_a, rank_of_a) in enumerate(place)
        for b, (row_of_b, rank_of_b) in enumerate(place)
        if row_of_a == row_of_b and rank_of_a < rank_of_b
    }
    found = list(zip(better.tolist(), worse.tolist(), strict=True))
    assert len(found) == len(expected)
    assert set(found) == expected
    assert row.tolist() == sorted(place[a][0] for a, _ in found) == [place[a][0] for a, _ in found]


@settings(deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_without_ranks_a_row_stands_best_first(sizes: list[int]) -> None:
    ranked = scored([list(range(size)) for size in sizes])
    plain = replace(ranked, columns={})
    assert all(torch.equal(a, b) for a, b in zip(plain.pairs(), ranked.pairs(), strict=True))
    assert len(plain.pairs().better) == sum(size * (size - 1) // 2 for size in sizes)


@EVERY_LOSS
def test_a_row_of_ties_has_no_loss_and_no_slope(name: str) -> None:
    rows = scored([[1, 1, 1], [0, 1]])
    tokens = rows.token_logps.requires_grad_()
    losses = make_objective(resolve([name])).loss(replace(rows, token_logps=tokens))
    (slopes,) = torch.autograd.grad(losses.sum(), tokens)
    assert losses[0] == 0 != losses[1]
    assert not slopes[:3].any()


@EVERY_LOSS
def test_ranks_say_which_is_better_wherever_it_stands(name: str) -> None:
    """The same completions with the same ranks in another order."""
    objective, rows = make_objective(resolve([name])), scored([[0, 1, 2, 3]])
    order = torch.tensor([2, 0, 3, 1])
    columns = {each: values[order] for each, values in rows.columns.items()}
    moved = replace(rows, token_logps=rows.token_logps[order], columns=columns)
    torch.testing.assert_close(objective.loss(moved), objective.loss(rows), rtol=1e-12, atol=0)
    metrics, expected = objective.metrics(moved), objective.metrics(rows)
    assert all(torch.allclose(metrics[each].total, expected[each].total, rtol=1e-12) for each in expected)


@EVERY_PAIRWISE_LOSS
def test_a_group_of_four_is_its_six_pair_rows_through_a_model(name: str) -> None:
    rows = random_rows(2, seed=4, completions=4)
    total, gradient = loss_and_gradient(tiny_llama(), rows, name)
    expected_total, expected_gradient = loss_and_gradient(tiny_llama(), pair_rows(rows), name)
    # discopop's exponentials and its temperature of 0.05 magnify the rounding of the sums.
    tolerance = 1e-5 if name == "discopop" else 1e-6
    assert len(pair_rows(rows)) == 12
    assert distance(total, expected_total) <= tolerance
    assert distance(gradient, expected_gradient) <= tolerance


@EVERY_PAIRWISE_LOSS
def test_a_group_of_four_is_its_six_pair_rows_through_the_head_exactly(name: str) -> None:
    """In float64, which transformers' own norms are not: so from hidden states on."""
    rows, loss = random_rows(2, seed=4, completions=4), make_objective(resolve([name])).loss
    linear = nn.Linear(16, VOCAB_SIZE).double()
    nn.init.normal_(linear.weight, std=0.5, generator=torch.Generator().manual_seed(0))
    completions = [tuple(ids) for row in rows for ids in row.completions]
    drawn = torch.randn(sum(map(len, completions)), 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    state_of = dict(zip(completions, drawn.split([len(ids) for ids in completions]), strict=True))

    def value_and_gradient(some: list[TokenRow]) -> tuple[Tensor, Tensor]:
        hidden = torch.cat([state_of[tuple(ids)] for row in some for ids in row.completions])
        total, *_ = CompletionHead(linear)(hidden, batch_of(some), loss)
        return total.detach(), torch.cat([each.flatten() for each in torch.autograd.grad(total, linear.parameters())])

    found, expected = value_and_gradient(rows), value_and_gradient(pair_rows(rows))
    assert distance(found[0], expected[0]) <= 1e-12
    assert distance(found[1], expected[1]) <= 1e-12


@EVERY_LOSS
def test_the_metrics_of_a_group_are_the_sums_of_its_pair_rows(name: str) -> None:
    rows = random_rows(2, seed=4, completions=4)
    model, objective = ScoringModel(tiny_llama(dtype=torch.float64)), make_objective(resolve([name]))

    def sums(some: list[TokenRow]) -> dict[str, Tensor]:
        batch = batch_of(some)
        scored_rows = batch.scored(model.token_logps(batch))
        return {each: mean.total.sum() for each, mean in objective.metrics(scored_rows).items()}

    found, expected = sums(rows), sums(pair_rows(rows))
    assert found.keys() == expected.keys()
    for each, value in expected.items():
        torch.testing.assert_close(found[each], value, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=25)
@given(groups(), st.integers(1, 80), st.sampled_from(COMPARING))
def test_chunks_do_not_change_a_ragged_batch(rows: list[TokenRow], positions: int, name: str) -> None:
    rows = [*rows, *random_rows(1, seed=1)]  # one row at least has a pair
    lm = tiny_llama(dtype=torch.float64)
    total, gradient = loss_and_gradient(lm, rows, name)
    with patch.object(head, "CHUNK_POSITIONS", positions):
        cut_total, cut_gradient = loss_and_gradient(lm, rows, name)
    assert distance(cut_total, total) <= 1e-12
    assert distance(cut_gradient, gradient) <= 1e-12


@settings(deadline=None, max_examples=25)
@given(groups(), st.sampled_from(COMPARING))
def test_a_batch_of_mixed_rows_is_its_rows_one_by_one(rows: list[TokenRow], name: str) -> None:
    model, loss = ScoringModel(tiny_llama(dtype=torch.float64)), make_objective(resolve([name])).loss
    _, together, token_logps = model(batch_of(rows), loss)
    alone = [model(batch_of([row]), loss) for row in rows]
    torch.testing.assert_close(together, torch.cat([losses for _, losses, _ in alone]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(token_logps, torch.cat([logps for *_, logps in alone]), rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(groups(), st.data())
def test_a_part_of_a_batch_is_the_batch_of_that_part(rows: list[TokenRow], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(rows) - 1))
    last = data.draw(st.integers(first + 1, len(rows)))
    batch, part = with_tokens_of_reference(batch_of(rows)), with_tokens_of_reference(batch_of(rows[first:last]))
    begin = sum(batch.token_counts[:first])
    positions = slice(begin, begin + len(part.target))
    logps = torch.arange(len(batch.target), dtype=torch.float32)[positions]
    found, expected = batch.scored(logps, slice(first, last), positions), part.scored(logps)
    assert found.num_rows == expected.num_rows
    assert torch.equal(found.owner, expected.owner)
    assert torch.equal(found.row, expected.row)
    assert torch.equal(found.columns[REF_LOGPS], expected.columns[REF_LOGPS])
    assert torch.equal(found.token_columns[REF_TOKEN_LOGPS], expected.token_columns[REF_TOKEN_LOGPS])


RANKED = make_objective(resolve(["plackett_luce"], beta=0.5)).loss


@settings(deadline=None)
@given(st.lists(st.floats(-30, 0), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_plackett_luce_is_minus_the_log_of_choosing_one_after_the_other(logps: list[float], random: Random) -> None:
    ranks = random.sample(range(len(logps)), len(logps))
    rewards = [0.5 * logps[ranks.index(rank)] for rank in range(len(logps))]
    chosen = [math.exp(reward) / math.fsum(map(math.exp, rewards[k:])) for k, reward in enumerate(rewards)]
    rows = replace(scored([ranks]), token_logps=torch.tensor(logps, dtype=torch.float64))
    assert RANKED(rows).item() == pytest.approx(-math.log(math.prod(chosen)), rel=1e-9, abs=1e-9)


def test_the_probabilities_of_all_rankings_add_up_to_one() -> None:
    rankings = [scored([list(ranks)]) for ranks in permutations(range(4))]
    assert math.fsum(math.exp(-RANKED(rows).item()) for rows in rankings) == pytest.approx(1.0, rel=1e-12)


def test_plackett_luce_at_the_reference_is_the_log_of_the_number_of_rankings() -> None:
    rows = scored([[2, 0, 1], [0], [1, 0], [3, 2, 1, 0]])
    same = replace(rows, columns={**rows.columns, REF_LOGPS: rows.logps()})
    expected = torch.tensor([6.0, 1.0, 2.0, 24.0], dtype=torch.float64).log()
    torch.testing.assert_close(RANKED(same), expected, rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(st.lists(st.floats(-30, 0), min_size=6, max_size=6))
def test_the_slopes_of_plackett_luce_are_those_of_finite_differences(logps: list[float]) -> None:
    rows = scored([[1, 0, 3, 2], [0, 1]])
    tokens = torch.tensor(logps, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda moved: RANKED(replace(rows, token_logps=moved)), (tokens,))


@pytest.mark.parametrize("apart", [-1e4, 1e4])
def test_plackett_luce_takes_rewards_that_are_far_apart(apart: float) -> None:
    tokens = torch.tensor([0.0, apart, 2 * apart], requires_grad=True)
    losses = RANKED(replace(scored([[0, 1, 2]]), token_logps=tokens))
    (slopes,) = torch.autograd.grad(losses.sum(), tokens)
    assert losses.isfinite().all()
    assert slopes.isfinite().all()


def with_tokens_of_reference(batch: Batch) -> Batch:
    """Made-up log-probs of the reference's tokens, which rest on the tokens alone."""
    return replace(batch, token_columns={REF_TOKEN_LOGPS: -6.0 + batch.target.to(torch.float32) % 7})


@pytest.mark.parametrize("positions", [15, 1000], ids=["chunks", "whole"])
@pytest.mark.parametrize("argument", [{"ld_alpha": 0.3}, {"use_weighting": True}], ids=str)
def test_a_loss_that_weighs_tokens_has_the_oracles_value_and_gradient(argument: Any, positions: int) -> None:
    rows = random_rows(3, seed=2, completions=3)
    objective = make_objective(resolve(["sigmoid"], **argument))
    batch, lm = with_tokens_of_reference(batch_of(rows)), tiny_llama()
    with patch.object(head, "CHUNK_POSITIONS", positions):
        total, losses, _ = ScoringModel(lm)(batch, objective.loss, objective.statistics)
    total.backward()
    twin = exact(lm)
    logps = torch.cat([each for row in rows for each in exact_logps(twin, row)])
    of_tokens = batch.scored(logps.gather(1, batch.target[:, None]).squeeze(1))
    squares = (2 * logps.detach()).logsumexp(dim=1)
    columns = {**of_tokens.token_columns, LOG_SUM_SQ_PROBS: squares}
    expected = objective.loss(replace(of_tokens, token_columns=columns))
    expected.sum().backward()
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    exactly = dict(twin.named_parameters())
    for name, parameter in lm.named_parameters():
        assert parameter.grad is not None
        assert distance(parameter.grad.double(), exactly[name].grad) <= 1e-5, name
