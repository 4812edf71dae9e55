"""Reference scoring of more tokens than memory is set aside for: they never pass through Ray's object store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raydpo.config.schema import RunFile
from raydpo.data.completions import completion_ids
from raydpo.data.shards import Counts, TokenManifest, schema, write_shard
from raydpo.reference.shard import SCHEMA
from raydpo.runtime.pools.pool import score_missing
from raydpo.stages.values import RunValues
from tests.cluster.own_ray import own_ray
from tests.cluster.runfiles import save_model

pytestmark = pytest.mark.cluster

OBJECT_STORE_MIB = 80
SHARDS, LONG = 5, 20_000_000  # prompt tokens of the one long row of a shard, 80 MB


def test_token_shards_of_several_times_the_object_store_are_scored_without_filling_it(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    run = RunFile.model_validate(
        {
            "name": "large",
            "output_dir": str(tmp_path),
            "model": {"path": str(tmp_path / "model"), "dtype": "float32"},
            "data": {"train": ["none"]},
        }
    )
    store = RunValues(run).store()
    store.claim()
    tables = [token_table(number) for number in range(SHARDS)]
    assert sum(table.nbytes for table in tables) > 4 * OBJECT_STORE_MIB * 2**20
    infos = [write_shard(table, tmp_path / f"tokens/{i}.arrow") for i, table in enumerate(tables)]
    TokenManifest("pair", infos, Counts(2 * SHARDS, 2 * SHARDS)).write(tmp_path / "tokens/manifest.json")
    for table in tables:
        store.commit(
            made_up_sums(completion_ids(table.slice(0, 1)))
        )  # of the long row: nobody could wait for its score

    with own_ray(cpus=2, object_store_mib=OBJECT_STORE_MIB) as session:
        figures = score_missing(RunValues(run).scoring(), store, [tmp_path / "tokens"])
        assert not list(session.glob("ray_spilled_objects*/*"))
    assert (figures["scored"], figures["found"]) == (2 * SHARDS, 2 * SHARDS)


def token_table(number: int) -> pa.Table:
    """A long row and a short one."""
    lists = pa.array(np.arange(LONG + 8, dtype=np.int32) % 256)
    prompts = pa.ListArray.from_arrays(pa.array([0, LONG, LONG + 8], pa.int32()), lists)
    answers = [[[3, 4], [5]], [[5, number], [6, number]]]
    names = pa.array([bytes([number, i]) * 8 for i in range(2)], pa.binary(16))
    return pa.table([names, prompts, pa.array(answers, pa.list_(pa.list_(pa.int32())))], schema=schema())


def made_up_sums(ids: pa.FixedSizeBinaryArray) -> pa.Table:
    logps = pa.array([-1.0] * len(ids), pa.float32())
    tokens = pa.array([2] * len(ids), pa.int32())
    return pa.table([ids, logps, tokens, pa.nulls(len(ids), pa.list_(pa.float32()))], schema=SCHEMA)
