"""The pool of reference scorers: whoever dies or falls silent is replaced, and in the end it finishes or says why.

The scorers are those of tests/cluster/scorers.py, which load no model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.exceptions import RayTaskError

from raydpo.config.schema import RunFile
from raydpo.runtime.pools import elastic
from raydpo.runtime.pools import pool as pools
from raydpo.runtime.pools.pool import ScorerPool
from raydpo.runtime.pools.scorer import Unit
from raydpo.stages.values import RunValues
from tests.cluster.own_ray import own_ray
from tests.cluster.scorers import Dies, DiesOnce, Quick, Refuses, StopsOnce
from tests.stores import claimed

pytestmark = pytest.mark.cluster

CPUS = 2
MakePool = Callable[..., ScorerPool]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with own_ray(cpus=CPUS):
        yield


def units(directory: Path, count: int) -> list[Unit]:
    return [[(str(directory / f"unit-{i}"), np.zeros(1, np.int32))] for i in range(count)]


@pytest.fixture
def make_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakePool:
    def make(scorer: type[Quick], max_actors: int = CPUS) -> ScorerPool:
        monkeypatch.setattr(pools, "ReferenceScorer", scorer)
        run = RunFile.model_validate(
            {
                "name": "x",
                "output_dir": str(tmp_path),
                "model": {"path": "m"},
                "data": {"train": ["x"]},
                "reference": {"pool": {"max_actors": max_actors}},
            }
        )
        return ScorerPool(RunValues(run).scoring(), claimed(str(tmp_path / "store")))

    return make


def free_again(patience_s: float = 20) -> bool:
    deadline = time.monotonic() + patience_s
    while ray.available_resources().get("CPU", 0) < CPUS:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_every_unit_is_done_once_in_a_pool_larger_than_the_cluster_and_then_the_cpus_are_free(
    make_pool: MakePool, tmp_path: Path
) -> None:
    pool = make_pool(Quick, max_actors=CPUS + 2)
    assert sorted(number for number, _ in pool.score(units(tmp_path, 9))) == list(range(9))
    assert (pool.size, pool.lost, pool.retried) == (0, 0, 0)
    assert free_again()


def test_a_unit_whose_scorer_is_killed_is_done_by_another_and_no_other_unit_twice(
    make_pool: MakePool, tmp_path: Path
) -> None:
    pool = make_pool(DiesOnce)
    assert sorted(number for number, _ in pool.score(units(tmp_path, 3))) == [0, 1, 2]
    assert (pool.lost, pool.retried) == (3, 3)


def test_a_scorer_that_is_stopped_counts_as_lost_when_it_is_silent(
    make_pool: MakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elastic, "SILENT_S", 3.0)
    monkeypatch.setattr(elastic, "PING_S", 0.5)
    pool = make_pool(StopsOnce)
    assert [number for number, _ in pool.score(units(tmp_path, 1))] == [0]
    assert (pool.lost, pool.retried) == (1, 1)
    assert free_again()


def test_scorers_that_all_die_end_in_an_error_and_not_in_another_try(
    make_pool: MakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elastic, "LIVES", 1)
    pool = make_pool(Dies, max_actors=1)
    with pytest.raises(RuntimeError, match="2 reference scorers died one after the other"):
        list(pool.score(units(tmp_path, 1)))
    assert free_again()


def test_what_a_scorer_raises_ends_the_job_at_once(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(Refuses)
    with pytest.raises(RayTaskError, match="unit-0 is missing"):
        list(pool.score(units(tmp_path, 1)))
    assert pool.lost == 0


def test_a_pool_that_no_node_can_hold_gives_up_with_the_reason(
    make_pool: MakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elastic, "START_S", 2.0)
    taken = ray.remote(num_cpus=CPUS, concurrency_groups={"health": 1})(Quick).remote()
    ray.get(taken.load.remote())
    with pytest.raises(RuntimeError, match="the cluster has not had 1 CPUs"):
        list(make_pool(Quick).score(units(tmp_path, 1)))
    ray.kill(taken)
    assert free_again()


def test_no_unit_is_begun_before_it_is_due(make_pool: MakePool, tmp_path: Path) -> None:
    done: list[int] = []
    for number, _ in make_pool(Quick).score(units(tmp_path, 4), due=lambda: len(done) + 1):
        assert number == len(done)
        done.append(number)
    assert len(done) == 4
