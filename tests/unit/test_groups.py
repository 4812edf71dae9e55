"""Laws of rows with any number of completions: a group is its pairs, and rows of a batch need not be alike."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
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
from raydpo.objective.contract import RANK, REF_LOGPS, ScoredRows
from raydpo.objective.registry import LOSSES, make_objective, resolve
from tests.models import VOCAB_SIZE, make_batch, make_row, random_rows, tiny_llama

pytestmark = pytest.mark.unit

EVERY_LOSS = pytest.mark.parametrize("name", LOSSES)


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
    assert all(torch.allclose(metrics[each], expected[each], rtol=1e-12) for each in expected)


@EVERY_LOSS
def test_a_group_of_four_is_its_six_pair_rows_through_a_model(name: str) -> None:
    rows = random_rows(2, seed=4, completions=4)
    total, gradient = loss_and_gradient(tiny_llama(), rows, name)
    expected_total, expected_gradient = loss_and_gradient(tiny_llama(), pair_rows(rows), name)
    # discopop's exponentials and its temperature of 0.05 magnify the rounding of the sums.
    tolerance = 1e-5 if name == "discopop" else 1e-6
    assert len(pair_rows(rows)) == 12
    assert distance(total, expected_total) <= tolerance
    assert distance(gradient, expected_gradient) <= tolerance


@EVERY_LOSS
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
        return {each: values.sum() for each, values in objective.metrics(scored_rows).items()}

    found, expected = sums(rows), sums(pair_rows(rows))
    assert found.keys() == expected.keys()
    for each, value in expected.items():
        torch.testing.assert_close(found[each], value, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=25)
@given(groups(), st.integers(1, 80), st.sampled_from(sorted(LOSSES)))
def test_chunks_do_not_change_a_ragged_batch(rows: list[TokenRow], positions: int, name: str) -> None:
    rows = [*rows, *random_rows(1, seed=1)]  # one row at least has a pair
    lm = tiny_llama(dtype=torch.float64)
    total, gradient = loss_and_gradient(lm, rows, name)
    with patch.object(head, "CHUNK_POSITIONS", positions):
        cut_total, cut_gradient = loss_and_gradient(lm, rows, name)
    assert distance(cut_total, total) <= 1e-12
    assert distance(cut_gradient, gradient) <= 1e-12


@settings(deadline=None, max_examples=25)
@given(groups(), st.sampled_from(sorted(LOSSES)))
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
    batch, part = batch_of(rows), batch_of(rows[first:last])
    begin = sum(batch.token_counts[:first])
    positions = slice(begin, begin + len(part.target))
    logps = torch.arange(len(batch.target), dtype=torch.float32)[positions]
    found, expected = batch.scored(logps, slice(first, last), positions), part.scored(logps)
    assert found.num_rows == expected.num_rows
    assert torch.equal(found.owner, expected.owner)
    assert torch.equal(found.row, expected.row)
    assert torch.equal(found.columns[REF_LOGPS], expected.columns[REF_LOGPS])
