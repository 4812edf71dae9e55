"""The reference store under real jobs: on S3, damaged and mended, by two jobs at once, and with imported values."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raydpo.data.shards import read_shard
from raydpo.reference.maintenance import KeySummary, export_key, list_keys, verify_store
from tests.cluster.conftest import Run
from tests.cluster.processes import PYTHON, job, raydpo
from tests.cluster.runfiles import NUM_PAIRS, small_run, write_jsonl, write_run_file
from tests.stores import s3_server

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def s3() -> Iterator[Callable[[], str]]:
    with s3_server() as new_address:
        yield new_address


def files_of(store: str) -> dict[str, bytes]:
    """Every file of a store's only key."""
    [directory] = list_keys(store)
    return {entry.base_name: directory.place.read(entry.base_name) for entry in directory.place.entries()}


def run_file_of(small: Run, inputs: Path, directory: Path, store: str) -> Path:
    """Of a run with one worker and one step, over the tokens that the small run has prepared."""
    run = small_run(inputs, directory / "out")
    run["reference"]["store"] = store
    run["train"] |= {"workers": {"count": 1}, "max_steps": 1}
    shutil.copytree(small.output_dir / "tokens", directory / "out" / "tokens")
    return write_run_file(directory / "run.yaml", run)


def test_a_store_on_s3_is_that_on_disk_and_only_a_damaged_shard_is_scored_again(
    small: Run, inputs: Path, tmp_path: Path, s3: Callable[[], str]
) -> None:
    store = s3()
    run_file = run_file_of(small, inputs, tmp_path, store)
    first = raydpo("precompute", run_file).succeeded()
    result = first.status["result"]
    assert (result["scored"], result["found"]) == (NUM_PAIRS, 0)
    assert result["tokens_per_second"] > result["pairs_per_second"] > 0
    assert 0 < result["mfu"] < 1
    assert all(f"{figure}=" in first.stderr for figure in ("tokens/s", "MFU", "scorers", "lost"))
    whole = files_of(store)
    assert whole == files_of(str(small.output_dir / "reference"))

    [directory] = list_keys(store)
    shard = max(name for name in whole if name.endswith(".parquet"))
    directory.place.write(shard, whole[shard][: len(whole[shard]) // 2])
    [damage] = verify_store(store)[1]
    refused = raydpo("train", run_file)
    assert refused.exit_code == 2
    assert str(damage) in refused.status["error"]
    assert shard in str(damage)

    result = raydpo("precompute", run_file).succeeded().status["result"]
    rows = json.loads(whole[shard.replace(".parquet", ".json")])["rows"]
    assert (result["scored"], result["found"]) == (rows, NUM_PAIRS - rows)
    assert files_of(store) == whole
    raydpo("train", run_file).succeeded()


def test_two_jobs_at_once_leave_what_one_alone_would(small: Run, inputs: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    run_files = [run_file_of(small, inputs, tmp_path / name, store) for name in ("one", "other")]
    with (
        job(PYTHON, "-m", "raydpo", "precompute", run_files[0]) as one,
        job(PYTHON, "-m", "raydpo", "precompute", run_files[1]) as other,
    ):
        one.wait().succeeded()
        other.wait().succeeded()
    assert files_of(store) == files_of(str(small.output_dir / "reference"))


@pytest.mark.parametrize("off_by", [0.0, 3.0])
def test_imported_values_are_verified_by_the_step_zero_law_or_named_as_its_cause(
    off_by: float, small: Run, inputs: Path, tmp_path: Path
) -> None:
    [computed] = list_keys(str(small.output_dir / "reference"))
    export_key(str(small.output_dir / "reference"), computed.digest, tmp_path / "computed.parquet")
    values = pq.read_table(tmp_path / "computed.parquet", columns=["ref_chosen_logps", "ref_rejected_logps", "row_id"])
    by_row = {row.pop("row_id"): {name: value - off_by for name, value in row.items()} for row in values.to_pylist()}
    tokens = sorted((small.output_dir / "tokens/train").glob("*.arrow"))
    row_ids = [row_id for path in tokens for row_id in read_shard(path)["row_id"].to_pylist()]
    pairs = [json.loads(line) for line in (inputs / "pairs.jsonl").read_text().splitlines()]
    given = [pair | by_row[row_id] for pair, row_id in zip(pairs, row_ids, strict=True)]

    store = str(tmp_path / "store")
    run_file = run_file_of(small, inputs, tmp_path, store)
    with job(
        PYTHON, "-m", "raydpo", "reference", "import", run_file, write_jsonl(tmp_path / "given.jsonl", given)
    ) as importing:
        assert f"{NUM_PAIRS} rows imported" in importing.wait().stdout
    [directory] = list_keys(store)
    assert KeySummary.of(directory).unverified_rows == NUM_PAIRS

    trained = raydpo("train", run_file)
    if off_by:
        assert trained.exit_code == 2
        assert "the reference values were imported" in trained.status["error"]
    else:
        trained.succeeded()
    assert KeySummary.of(directory).unverified_rows == (NUM_PAIRS if off_by else 0)
    assert all(marker.source == "imported" for marker in directory.markers())
