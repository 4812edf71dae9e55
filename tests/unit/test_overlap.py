"""What is scored ahead of training: every completion once, in the order of need, within bounds."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.config.schema import RunFile
from raydpo.data.order import Order
from raydpo.reference.dataset import Dataset
from raydpo.runtime.cluster import preflight
from raydpo.runtime.feed.overlap import AHEAD_ROWS, UNIT_COMPLETIONS, Schedule, ScoringAhead, schedule
from raydpo.runtime.feed.readers import with_awaited
from raydpo.runtime.pools.scorer import Unit
from raydpo.stages.values import RunValues
from tests.stores import claimed

pytestmark = pytest.mark.unit

ROWS, GLOBAL_BATCH, PER_SHARD = 700, 7, 90


def sizes_of(rows: int) -> np.ndarray:
    """How many completions each row has: one, two, three, four, one, ..."""
    return 1 + np.arange(rows) % 4


BEGINS = np.concatenate([[0], np.cumsum(sizes_of(ROWS))])


def dataset_of(contents: np.ndarray, known: np.ndarray) -> Dataset:
    """ROWS rows whose completions are equal where their contents are, with references for those that are known."""
    shard, offset = np.divmod(np.arange(ROWS), PER_SHARD)
    return Dataset(
        digest="d",
        kind="pair",
        shards=tuple(f"shard {i}" for i in range(shard.max() + 1)),
        shard=shard,
        offset=offset,
        row_ids=pa.array([i.to_bytes(16, "big") for i in range(ROWS)], pa.binary(16)),
        tokens=np.ones(ROWS, dtype=np.int64),
        completion_tokens=np.ones(ROWS, dtype=np.int64),
        pairs=np.ones(ROWS, dtype=np.int64),
        begins=BEGINS,
        own=np.diff(BEGINS),
        completion_ids=pa.array([int(i).to_bytes(16, "big") for i in contents], pa.binary(16)),
        ref_logps=np.where(known[contents], -1.0, np.nan).astype(np.float32),
    )


def order_of(seed: int = 0) -> Order:
    return Order(ROWS, GLOBAL_BATCH, epochs=2, seed=seed, digest="d")


def contents_of(unit: Unit, contents: np.ndarray) -> list[int]:
    """The completions of a unit, in its order."""
    return [contents[BEGINS[PER_SHARD * int(path.split()[1])] + o] for path, offsets in unit for o in offsets]


@given(seed=st.integers(0, 99), distinct=st.integers(1, BEGINS[-1]), share_known=st.sampled_from([0.0, 0.3, 1.0]))
def test_every_missing_completion_is_scored_once_and_numbered_as_the_units_lie(
    seed: int, distinct: int, share_known: float
) -> None:
    rng = np.random.default_rng(seed)
    contents = rng.integers(distinct, size=BEGINS[-1])
    known = rng.random(distinct) < share_known
    plan = schedule(dataset_of(contents, known), order_of(seed), ROWS // GLOBAL_BATCH)
    scored = [content for unit in plan.units for content in contents_of(unit, contents)]
    assert sorted(scored) == sorted(set(contents[~known[contents]]))
    assert plan.ends.tolist() == np.cumsum([sum(len(offsets) for _, offsets in unit) for unit in plan.units]).tolist()
    lacking = ~known[contents]
    assert (plan.numbers[~lacking] == -1).all()
    assert [scored[number] for number in plan.numbers[lacking]] == contents[lacking].tolist()


@pytest.mark.parametrize("steps", [1, 40, 2 * ROWS // GLOBAL_BATCH])
def test_a_unit_comes_before_every_step_that_needs_it_and_steps_not_made_need_none(steps: int) -> None:
    dataset = dataset_of(np.arange(BEGINS[-1]), np.zeros(BEGINS[-1], bool))
    order = order_of()
    plan = schedule(dataset, order, steps)
    walked = np.unique(np.concatenate([order.batch(step) for step in range(steps)]))
    assert plan.ends[-1] == sizes_of(ROWS)[walked].sum()
    for step in range(steps):
        units = np.searchsorted(plan.ends, plan.numbers[dataset.completions_of(order.batch(step))], side="right")
        assert (plan.needed[units] <= step * GLOBAL_BATCH).all()
    assert np.diff(plan.ends, prepend=0).max() < UNIT_COMPLETIONS + 4 * GLOBAL_BATCH


@pytest.fixture
def ahead(tmp_path_factory: pytest.TempPathFactory) -> ScoringAhead:
    """Of ten units of 1,000 completions, at the start of training; nothing is ever scored."""
    directory = tmp_path_factory.mktemp("ahead")
    run = RunFile.model_validate(
        {"name": "x", "output_dir": str(directory), "model": {"path": "m"}, "data": {"train": ["x"]}}
    )
    ends = 1000 * np.arange(1, 11)
    plan = Schedule([[("x", np.zeros(1000, np.int32))]] * 10, ends, ends - 1000, np.arange(10_000))
    actor = ScoringAhead(RunValues(run).scoring(), claimed(str(directory)), plan, rows_per_step=100, beside=[])
    actor._score = lambda: None  # type: ignore[method-assign]
    actor.reached(0)
    return actor


def test_the_pool_begins_what_lies_within_the_horizon(ahead: ScoringAhead) -> None:
    assert ahead.due() == 1 + AHEAD_ROWS // 1000
    ahead.reached(20)
    assert ahead.due() == 1 + (AHEAD_ROWS + 2000) // 1000


def test_a_reader_beyond_the_horizon_moves_nothing_and_one_within_gets_all_that_it_waits_for(
    ahead: ScoringAhead,
) -> None:
    before = ahead.due()
    assert ahead.values(np.asarray([9500]), first_step=50) is None
    assert ahead.due() == before
    assert ahead.values(np.asarray([10, 8500]), first_step=40) is None
    assert ahead.due() == 9


def test_values_are_given_when_all_are_there_and_a_failed_pool_is_an_error_for_the_rest(ahead: ScoringAhead) -> None:
    ahead._sums[:1000] = np.arange(1000)
    ahead._error = RuntimeError("all scorers died")
    assert np.array_equal(ahead.values(np.asarray([3, 999]), first_step=0), [3, 999])
    with pytest.raises(RuntimeError, match="all scorers died"):
        ahead.values(np.asarray([999, 1000]), first_step=0)


def test_a_dataset_with_all_references_needs_no_unit() -> None:
    dataset = dataset_of(np.arange(BEGINS[-1]), np.ones(BEGINS[-1], bool))
    assert schedule(dataset, order_of(), 10).units == []


@pytest.mark.parametrize(("cpus", "gpus", "room"), [(8, 0, 2), (7.4, 0, 1), (2.5, 0, 0), (8, 1, 1), (100, 8, 8)])
def test_scorers_take_what_workers_and_readers_leave(
    cpus: float, gpus: float, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers take 2 CPUs, their readers a half; a scorer takes 2.5, and a GPU where there are any."""
    monkeypatch.setattr(preflight.ray, "cluster_resources", lambda: {"CPU": cpus, "GPU": gpus})
    run = RunFile.model_validate(
        {
            "name": "x",
            "output_dir": "out",
            "model": {"path": "m"},
            "data": {"train": ["x"]},
            "reference": {"pool": {"cpus": 2.5, "gpus": min(1, gpus)}},
            "train": {"workers": {"count": 2}, "reference": "overlap"},
        }
    )
    assert preflight.room_for_scorers(run.reference.pool, preflight.beside_scorers(RunValues(run).processes())) == room
    asked = {demand.what for demand in preflight.bills(RunValues(run).processes(), "train")["train"]}
    assert asked == {"train.workers", "readers", "reference.pool"}


def test_a_shard_is_asked_for_its_completions_by_their_place_in_it() -> None:
    dataset = dataset_of(np.arange(BEGINS[-1]), np.zeros(BEGINS[-1], bool))
    wanted = np.asarray([0, 3, BEGINS[PER_SHARD] - 1, BEGINS[PER_SHARD], BEGINS[-1] - 1])
    assert contents_of(dataset.where(wanted), np.arange(BEGINS[-1])) == wanted.tolist()
    assert dataset.where(wanted[:0]) == []


def test_values_come_by_row_in_the_order_asked() -> None:
    dataset = dataset_of(np.arange(BEGINS[-1]), np.zeros(BEGINS[-1], bool))
    assert dataset.by_row(np.arange(BEGINS[-1]), np.asarray([3, 0, 3])).to_pylist() == [[6, 7, 8, 9], [0], [6, 7, 8, 9]]


def test_awaited_sums_come_to_their_completions_and_the_others_keep_theirs() -> None:
    lists = [[np.nan], [-2.0, np.nan, np.nan], [-5.0, -6.0]]
    whole = pa.table({"step": [0, 0, 0], "ref_logps": pa.array([[0.0], *lists], pa.list_(pa.float32()))[1:]})
    awaited = np.asarray([True, False, True, True, False, False])
    filled = with_awaited(whole, awaited, np.asarray([-1, -3, -4], np.float32))
    assert filled["ref_logps"].to_pylist() == [[-1], [-2, -3, -4], [-5, -6]]


def test_the_bill_of_an_evaluation_has_its_gpu() -> None:
    run = RunFile.model_validate(
        {
            "name": "x",
            "output_dir": "out",
            "model": {"path": "m"},
            "data": {"train": ["x"]},
            "evaluate": {"prompts": ["p"], "pool": {"gpus": 0.5}},
        }
    )
    for stage in ("train", "evaluate"):
        assert {d.what: d.gpus for d in preflight.bills(RunValues(run).processes(), stage)[stage]}[
            "evaluate.pool"
        ] == 0.5
