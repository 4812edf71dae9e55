"""Several writers at once on one store: the same names for the same completions, nothing torn, none twice."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from raydpo.reference.place import Place
from raydpo.reference.shard import commit_shard
from raydpo.reference.upkeep import export_key, find_waste, verify_store
from tests.stores import KEY, LOGPS, claimed, files_of, full_store, ids, table

pytestmark = pytest.mark.unit

CHECKOUT = Path(__file__).parents[2]
WRITER = """
import sys
from tests.stores import claimed, full_store
full_store(sys.argv[1])
"""


@pytest.mark.parametrize(
    "other", [LOGPS, LOGPS + np.float32(1e-3)], ids=["equal values", "values that round otherwise"]
)
def test_threads_that_write_the_same_rows_leave_whole_shards_of_one_of_them(root: str, other: np.ndarray) -> None:
    start = Barrier(8)

    def write(logps: np.ndarray) -> list[str]:
        start.wait()
        store = claimed(root)
        return [store.commit(table(rows, logps)) for rows in ([0, 1, 2], [3, 4, 5])]

    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(write, [LOGPS, other] * 4))
    assert names == names[:1] * 8
    assert verify_store(root) == ({"keys": 1, "shards": 2, "completions": 6, "old_pairs": 0}, [])
    found = claimed(root).lookup(ids(range(6)))
    for shard in (found[:3], found[3:]):
        assert any(np.array_equal(shard, logps[rows]) for logps in (LOGPS, other) for rows in (slice(3), slice(3, 6)))


def test_processes_that_write_the_same_rows_leave_what_one_alone_would(root: str, tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, root], cwd=CHECKOUT, env=_environment()) for _ in range(3)
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    alone = str(tmp_path / "alone")
    full_store(alone)
    assert files_of(root) == files_of(alone)


def test_overlapping_shards_answer_each_completion_once(root: str, tmp_path: Path) -> None:
    store = claimed(root)
    for rows in ([0, 1, 2, 3], [2, 3, 4], [4, 5, 0]):
        store.commit(table(rows))
    assert np.array_equal(store.lookup(ids([0, 2, 4, 4])), LOGPS[[0, 2, 4, 4]])
    assert export_key(root, KEY.digest, tmp_path / "values.parquet") == 6


@pytest.mark.parametrize("times", [1, 6])
def test_a_marker_that_landed_beside_anothers_shard_is_mended_by_whoever_wrote_last(root: str, times: int) -> None:
    _, [first, _] = full_store(root)

    class Interrupted(Place):
        """Between its shard and its marker another writer's shard arrives."""

        def write(self, name: str, content: bytes) -> None:
            super().write(name, content)
            if name == f"{first}.parquet" and len(arrived) < times:
                arrived.append(name)
                super().write(name, theirs)

    arrived: list[str] = []
    place = Place.of(root) / KEY.digest
    theirs = place.read(f"{first}.parquet")
    place.remove([f"{first}.json"])
    ours = Interrupted(place.filesystem, place.path, place.address)
    commit_shard(ours, table([0, 1, 2], LOGPS * 2), key=KEY.digest, source="computed", verified=True)
    assert len(arrived) == times
    assert verify_store(root)[1] == []
    assert np.array_equal(claimed(root).lookup(ids([0, 1, 2])), LOGPS[:3] * 2)


def test_no_writer_leaves_anything_behind(root: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: full_store(root), range(4)))
    assert find_waste(root, older_than_s=-60) == []
    assert len(files_of(root)) == 5


def _environment() -> dict[str, str]:

    return dict(os.environ) | {"PYTHONPATH": str(CHECKOUT)}
