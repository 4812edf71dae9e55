"""The plan that the feed follows: who computes which row of which step."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest

from raydpo.data.order import Order
from raydpo.reference.dataset import Dataset
from raydpo.runtime.feed.plan import Plan

pytestmark = pytest.mark.unit

NUM_PAIRS, GLOBAL_BATCH, EPOCHS = 53, 8, 3


def plan_of(tail: Literal["carry", "drop"]) -> Plan:
    """53 pairs in three shards, of 2 to 40 tokens."""
    tokens = np.random.default_rng(0).integers(2, 41, size=NUM_PAIRS)
    shard, offset = np.divmod(np.arange(NUM_PAIRS), 20)
    dataset = Dataset(
        digest="d",
        kind="pair",
        shards=("a", "b", "c"),
        shard=shard,
        offset=offset,
        row_ids=pa.array([i.to_bytes(16, "big") for i in range(NUM_PAIRS)], pa.binary(16)),
        tokens=tokens,
        completion_tokens=tokens - 1,
        pairs=np.ones(NUM_PAIRS, dtype=np.int64),
        begins=2 * np.arange(NUM_PAIRS + 1),
        own=np.full(NUM_PAIRS, 2),
        completion_ids=pa.array([i.to_bytes(16, "big") for i in range(2 * NUM_PAIRS)], pa.binary(16)),
        ref_logps=np.stack((-tokens, -2.0 * tokens), axis=1).astype(np.float32).ravel(),
    )
    order = Order(NUM_PAIRS, GLOBAL_BATCH, EPOCHS, seed=0, digest="d", tail=tail)
    return Plan(dataset, order, tokens_per_microbatch=60, num_steps=order.num_steps, checkpoints=Path("absent"))


def planned(plan: Plan, start: int, world_size: int) -> list[pa.Table]:
    """Per rank, all its rows as one table."""
    return [pa.concat_tables(blocks) for blocks in plan.tables(start, world_size)]


def ids_by_step(tables: list[pa.Table]) -> dict[int, Counter[bytes]]:
    rows: dict[int, Counter[bytes]] = {}
    for table in tables:
        for step, row_id in zip(table["step"].to_pylist(), table["expected_id"].to_pylist(), strict=True):
            rows.setdefault(step, Counter())[row_id] += 1
    return rows


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("tail", ["carry", "drop"])
def test_the_ranks_together_compute_exactly_the_global_batch(
    tail: Literal["carry", "drop"], world_size: int, start: int
) -> None:
    plan = plan_of(tail)
    found = ids_by_step(planned(plan, start, world_size))
    expected = {
        step: Counter(plan.dataset.row_ids.take(pa.array(plan.order.batch(step))).to_pylist())
        for step in range(start, plan.order.num_steps)
    }
    assert found == expected


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_rank_has_as_many_microbatches_as_the_others_and_none_over_the_budget(world_size: int) -> None:
    plan = plan_of("carry")
    lengths = dict(zip(plan.dataset.row_ids.to_pylist(), plan.dataset.tokens.tolist(), strict=True))
    microbatches = []
    for table in planned(plan, 0, world_size):
        load: Counter[tuple[int, int]] = Counter()
        for row in table.to_pylist():
            load[row["step"], row["micro"]] += lengths[row["expected_id"]]
        assert max(load.values()) <= plan.tokens_per_microbatch
        microbatches.append(sorted(load))
    assert all(of_rank == microbatches[0] for of_rank in microbatches)


def test_a_row_brings_its_reference_and_the_totals_of_its_step() -> None:
    plan = plan_of("carry")
    tokens = dict(zip(plan.dataset.row_ids.to_pylist(), plan.dataset.tokens.tolist(), strict=True))
    for table in planned(plan, 0, 2):
        for row in table.to_pylist():
            batch = plan.order.batch(row["step"])
            assert (row["step_rows"], row["step_pairs"], row["step_completions"]) == (
                GLOBAL_BATCH,
                GLOBAL_BATCH,
                2 * GLOBAL_BATCH,
            )
            assert row["step_tokens"] == plan.dataset.completion_tokens[batch].sum()
            assert row["ref_logps"] == [-tokens[row["expected_id"]], -2 * tokens[row["expected_id"]]]


def test_a_row_brings_the_references_tokens_of_all_its_completions_in_order() -> None:
    plan = plan_of("carry")
    counts = np.stack((np.ones(NUM_PAIRS, np.int64), plan.dataset.completion_tokens - 1), axis=1)
    lists = [[-1.0 * number] * count for number, count in enumerate(counts.ravel().tolist())]
    plan = replace(plan, dataset=replace(plan.dataset, ref_token_logps=pa.array(lists, pa.large_list(pa.float32()))))
    for table in planned(plan, 0, 2):
        for row in table.to_pylist():
            number = int.from_bytes(row["expected_id"], "big")
            assert row["ref_token_logps"] == lists[2 * number] + lists[2 * number + 1]


@pytest.mark.parametrize(("start", "world_size"), [(0, 1), (0, 4), (5, 2), (17, 1)])
@pytest.mark.parametrize("tail", ["carry", "drop"])
def test_a_step_knows_how_far_the_run_is_wherever_it_was_begun_and_whoever_takes_part(
    tail: Literal["carry", "drop"], world_size: int, start: int
) -> None:
    plan = plan_of(tail)
    seen = {"carry": NUM_PAIRS, "drop": NUM_PAIRS - NUM_PAIRS % GLOBAL_BATCH}[tail]
    rows, tokens = 0, 0
    walked = {}
    for step in range(plan.num_steps):
        rows += GLOBAL_BATCH
        tokens += plan.dataset.tokens[plan.order.batch(step)].sum()
        walked[step] = (rows / seen, tokens)
    for table in planned(plan, start, world_size):
        for row in table.to_pylist():
            assert (row["epoch"], row["num_tokens"]) == walked[row["step"]]


def test_steps_come_in_order() -> None:
    for table in planned(plan_of("drop"), 3, 2):
        steps = table["step"].to_pylist()
        assert steps == sorted(steps)
        assert steps[0] == 3
