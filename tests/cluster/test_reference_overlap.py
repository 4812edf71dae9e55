"""train.reference: overlap. The references are scored while training runs, and nobody can tell from the numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from raydpo.reference.maintenance import list_keys
from tests.cluster.outputs import metrics_of
from tests.cluster.processes import raydpo
from tests.cluster.runfiles import NUM_PAIRS, small_run, write_jsonl, write_run_file

pytestmark = pytest.mark.cluster

COPIES, DUPLICATES = 6, 24  # several units of rows that differ, and some rows twice


def test_an_overlapped_run_that_stops_and_goes_on_is_bitwise_the_precomputed_one(inputs: Path, tmp_path: Path) -> None:
    pairs = [json.loads(line) for line in (inputs / "pairs.jsonl").read_text().splitlines()]
    different = [pair | {"prompt": f"{pair['prompt']} {i}"} for i in range(COPIES) for pair in pairs]
    run = small_run(inputs, tmp_path / "precomputed")
    run["data"] |= {
        "train": [str(write_jsonl(tmp_path / "pairs.jsonl", [*different, *different[:DUPLICATES]]))],
        "rows_per_shard": 100,
    }
    run["train"] |= {"epochs": 2, "global_batch_size": 40, "checkpoint_every": 5}
    raydpo("run", write_run_file(tmp_path / "precomputed.yaml", run)).succeeded()
    shutil.copytree(tmp_path / "precomputed" / "tokens", tmp_path / "overlapped" / "tokens")

    run["output_dir"] = str(tmp_path / "overlapped")
    run["train"]["reference"] = "overlap"
    overlapped = write_run_file(tmp_path / "overlapped.yaml", run)
    raydpo("train", overlapped, "train.max_steps=3").succeeded()
    [directory] = list_keys(str(tmp_path / "overlapped" / "reference"))
    assert 3 * 40 - DUPLICATES <= sum(marker.rows for marker in directory.markers()) < COPIES * NUM_PAIRS
    raydpo("train", overlapped).succeeded()
    assert metrics_of(tmp_path / "overlapped") == metrics_of(tmp_path / "precomputed")

    markers = directory.markers()
    assert sum(marker.rows for marker in markers) == COPIES * NUM_PAIRS  # each row once, in both epochs together
    assert len(markers) == 3  # of the first leg, and two of the second
