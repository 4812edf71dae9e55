"""Laws of the order: which pairs a step holds, and how a step is cut into micro-batches."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydpo.data.order import Ints, Order, permutation, split_microbatches
from raydpo.errors import UserError

pytestmark = pytest.mark.unit

Tail = Literal["carry", "drop"]
ARGUMENTS = {"seed": st.integers(0, 2**32), "epoch": st.integers(0, 10**6), "digest": st.text()}


@st.composite
def orders(draw: st.DrawFn, tail: Tail) -> Order:
    num_rows, epochs = draw(st.integers(1, 40)), draw(st.integers(1, 4))
    most = num_rows if tail == "drop" else num_rows * epochs
    size, seed = draw(st.integers(1, most)), draw(st.integers(0, 99))
    return Order(num_rows, size, epochs, seed, "films", tail)


BOTH_TAILS = st.one_of(orders("carry"), orders("drop"))


@st.composite
def global_batches(draw: st.DrawFn) -> tuple[Ints, int, int]:
    """(tokens, world_size, budget) that can be cut."""
    world_size = draw(st.integers(1, 6))
    size = draw(st.integers(world_size, 8 * world_size))
    tokens = np.asarray(draw(st.lists(st.integers(1, 100), min_size=size, max_size=size)))
    longest = int(tokens.max())
    return tokens, world_size, draw(st.integers(2 * longest if size % world_size else longest, 400))


@dataclass(frozen=True)
class Leg:
    """What one start of a run does before it is stopped, and where the next one goes on."""

    world_size: int
    steps: range  # that it takes
    committed: int  # steps that are not lost


@st.composite
def journeys(draw: st.DrawFn) -> tuple[Order, Ints, list[Leg]]:
    """A run over rows of the drawn lengths, stopped at any steps and resumed by any number of workers."""
    order = draw(BOTH_TAILS)
    tokens = np.asarray(draw(st.lists(st.integers(1, 100), min_size=order.num_rows, max_size=order.num_rows)))
    size = order.global_batch_size
    workers = st.integers(1, size)
    legs, start = [], 0
    for _ in range(draw(st.integers(0, 4))):
        stopped = draw(st.integers(start, order.num_steps))
        legs.append(Leg(draw(workers), range(start, stopped), draw(st.integers(start, stopped))))
        start = legs[-1].committed
    legs.append(Leg(draw(workers), range(start, order.num_steps), order.num_steps))
    return order, tokens, legs


def rows_of(step: int, order: Order, tokens: Ints, world_size: int) -> list[int]:
    """Every row that some rank reads in a step."""
    positions = order.batch(step)
    ranks = split_microbatches(tokens[positions], world_size=world_size, tokens_per_microbatch=200)
    return [int(row) for rank in ranks for micro_batch in rank for row in positions[micro_batch]]


@settings(max_examples=2500)
@given(journeys())
def test_a_run_stopped_anywhere_and_resumed_by_any_workers_reads_the_undisturbed_stream(
    journey: tuple[Order, Ints, list[Leg]],
) -> None:
    order, tokens, legs = journey
    read: dict[int, list[int]] = {}
    for leg in legs:
        permutation.cache_clear()  # another process
        for step in leg.steps:
            rows = rows_of(step, replace(order), tokens, leg.world_size)
            assert sorted(read.setdefault(step, rows)) == sorted(rows), "a step that was redone read other rows"
    size, per_epoch = order.global_batch_size, order.num_rows
    if order.tail == "drop":
        per_epoch -= per_epoch % size
    stream = [
        int(row)
        for epoch in range(order.epochs)
        for row in permutation(order.num_rows, seed=order.seed, epoch=epoch, digest="films")[:per_epoch]
    ]
    assert sorted(read) == list(range(len(stream) // size))
    for step, rows in read.items():
        assert sorted(rows) == sorted(stream[step * size : (step + 1) * size])


@given(BOTH_TAILS)
def test_all_steps_walk_all_epochs_but_for_what_no_step_can_hold(order: Order) -> None:
    left_over = order.left_over / order.num_rows if order.tail == "carry" else 0
    assert order.epochs_after(order.num_steps) == pytest.approx(order.epochs - left_over)
    assert order.epochs_after(0) == 0


@given(num_rows=st.integers(0, 300), **ARGUMENTS)
def test_a_permutation_holds_every_position_once(num_rows: int, seed: int, epoch: int, digest: str) -> None:
    drawn = permutation(num_rows, seed=seed, epoch=epoch, digest=digest)
    assert sorted(drawn.tolist()) == list(range(num_rows))


@given(**ARGUMENTS)
def test_equal_arguments_give_an_equal_permutation(seed: int, epoch: int, digest: str) -> None:
    first = permutation(50, seed=seed, epoch=epoch, digest=digest)
    permutation.cache_clear()
    assert np.array_equal(first, permutation(50, seed=seed, epoch=epoch, digest=digest))


@pytest.mark.parametrize("other", [{"seed": 8}, {"epoch": 3}, {"digest": "books"}])
def test_another_seed_epoch_or_dataset_gives_another_permutation(other: dict[str, object]) -> None:
    arguments = {"seed": 7, "epoch": 2, "digest": "films"}
    changed: dict[str, object] = arguments | other
    assert not np.array_equal(permutation(50, **arguments), permutation(50, **changed))


def test_no_library_update_may_move_the_permutation() -> None:
    golden = [5, 2, 11, 1, 7, 8, 9, 3, 6, 0, 4, 10]
    assert permutation(12, seed=7, epoch=2, digest="films").tolist() == golden


def test_every_position_comes_first_equally_often() -> None:
    firsts = Counter(int(permutation(10, seed=0, epoch=epoch, digest="films")[0]) for epoch in range(2000))
    assert sorted(firsts) == list(range(10))
    assert all(140 < count < 260 for count in firsts.values())  # 200 expected, standard deviation 13


@given(BOTH_TAILS)
def test_every_step_has_a_whole_global_batch(order: Order) -> None:
    assert order.num_steps > 0
    assert all(len(order.batch(step)) == order.global_batch_size for step in range(order.num_steps))


@given(orders("carry"))
def test_carry_walks_the_epochs_end_to_end(order: Order) -> None:
    epochs = [permutation(order.num_rows, seed=order.seed, epoch=e, digest="films") for e in range(order.epochs)]
    stream = np.concatenate(epochs)
    walked = np.concatenate([order.batch(step) for step in range(order.num_steps)])
    assert np.array_equal(walked, stream[: len(stream) - order.left_over])
    assert 0 <= order.left_over < order.global_batch_size


@given(BOTH_TAILS)
def test_every_pair_is_visited_once_an_epoch_but_for_what_is_left_over(order: Order) -> None:
    visits = Counter(int(pair) for step in range(order.num_steps) for pair in order.batch(step))
    assert max(visits.values()) <= order.epochs
    assert sum(order.epochs - visits[pair] for pair in range(order.num_rows)) == order.left_over


@given(orders("drop"))
def test_drop_visits_a_pair_at_most_once_an_epoch(order: Order) -> None:
    per_epoch = order.num_steps // order.epochs
    for epoch in range(order.epochs):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        visited = np.concatenate([order.batch(step) for step in steps])
        assert len(set(visited.tolist())) == len(visited) > order.num_rows - order.global_batch_size


@given(BOTH_TAILS, st.randoms(use_true_random=False))
def test_a_step_does_not_depend_on_the_steps_asked_before(order: Order, rng: random.Random) -> None:
    in_turn = [order.batch(step).tolist() for step in range(order.num_steps)]
    shuffled = rng.sample(range(order.num_steps), order.num_steps)
    assert {step: order.batch(step).tolist() for step in shuffled} == dict(enumerate(in_turn))


@given(BOTH_TAILS)
def test_writing_into_a_batch_cannot_move_the_order(order: Order) -> None:
    batch = order.batch(0)
    before = batch.tolist()
    batch[:] = -1
    assert order.batch(0).tolist() == before


@given(BOTH_TAILS, st.sampled_from(["before", "behind"]))
def test_a_step_outside_the_run_is_refused(order: Order, where: str) -> None:
    with pytest.raises(IndexError, match="outside"):
        order.batch(-1 if where == "before" else order.num_steps)


@pytest.mark.parametrize(("tail", "largest"), [("carry", 30), ("drop", 10)])
def test_a_global_batch_that_the_data_cannot_fill_is_refused_with_the_largest_that_fits(
    tail: Tail, largest: int
) -> None:
    with pytest.raises(UserError, match=rf"global_batch_size={largest + 1}\b.* {largest} or less"):
        Order(10, largest + 1, 3, 0, "films", tail)
    assert replace(Order(10, 1, 3, 0, "films", tail), global_batch_size=largest).num_steps > 0


@given(global_batches())
def test_every_row_is_in_exactly_one_microbatch(case: tuple[Ints, int, int]) -> None:
    tokens, world_size, budget = case
    ranks = split_microbatches(tokens, world_size=world_size, tokens_per_microbatch=budget)
    rows = [int(row) for rank in ranks for micro_batch in rank for row in micro_batch]
    assert sorted(rows) == list(range(len(tokens)))


@given(global_batches())
def test_every_rank_has_as_many_microbatches_none_empty_and_none_over_budget(case: tuple[Ints, int, int]) -> None:
    tokens, world_size, budget = case
    ranks = split_microbatches(tokens, world_size=world_size, tokens_per_microbatch=budget)
    assert len(ranks) == world_size
    assert len({len(rank) for rank in ranks}) == 1
    assert all(len(micro_batch) for rank in ranks for micro_batch in rank)
    assert all(tokens[micro_batch].sum() <= budget for rank in ranks for micro_batch in rank)


@given(global_batches())
def test_a_budget_for_everything_gives_one_microbatch_a_rank(case: tuple[Ints, int, int]) -> None:
    tokens, world_size, _ = case
    ranks = split_microbatches(tokens, world_size=world_size, tokens_per_microbatch=int(tokens.sum()))
    assert [len(rank) for rank in ranks] == [1] * world_size


@given(global_batches())
def test_a_larger_budget_never_needs_more_microbatches(case: tuple[Ints, int, int]) -> None:
    tokens, world_size, budget = case
    budgets = [budget, budget + 50, budget + 200]
    cuts = [split_microbatches(tokens, world_size=world_size, tokens_per_microbatch=each) for each in budgets]
    needed = [len(ranks[0]) for ranks in cuts]
    assert all(later <= earlier for earlier, later in pairwise(needed))


@pytest.mark.parametrize("world_size", [2, 4, 8])
@pytest.mark.parametrize("seed", range(10))
def test_the_ranks_share_the_tokens_evenly(world_size: int, seed: int) -> None:
    tokens = np.random.default_rng(seed).lognormal(5.5, 0.6, size=64).clip(16, 1024).astype(np.int64)
    ranks = split_microbatches(tokens, world_size=world_size, tokens_per_microbatch=2048)
    loads = [tokens[np.concatenate(rank)].sum() for rank in ranks]
    assert max(loads) / np.mean(loads) <= 1.03


@pytest.mark.parametrize(("world_size", "budget"), [(4, 19), (7, 100)])
def test_workers_that_the_batch_does_not_go_onto_are_told_the_numbers_that_do(world_size: int, budget: int) -> None:
    with pytest.raises(UserError, match=rf"global_batch_size=6 .*{world_size} workers.*\[1, 2, 3, 6\].* up to 6 with"):
        split_microbatches(np.full(6, 10), world_size=world_size, tokens_per_microbatch=budget)


def test_a_row_over_the_budget_is_told_the_budget_it_needs() -> None:
    with pytest.raises(UserError, match=r"tokens_per_microbatch=100.*120 or more.*max_length"):
        split_microbatches(np.asarray([10, 120]), world_size=1, tokens_per_microbatch=100)
