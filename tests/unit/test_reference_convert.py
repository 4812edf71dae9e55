"""A store of an earlier raydpo: taken over to the bit, refused until it is, and kept until nobody would miss it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydpo.cli import main
from raydpo.config.schema import RunFile
from raydpo.errors import UserError
from raydpo.reference.dataset import Dataset
from raydpo.reference.maintenance import KeySummary, find_waste, list_keys, remove_waste, verify_store
from raydpo.reference.place import Place
from raydpo.reference.unconverted import check_converted
from raydpo.runtime.pools.pool import score_missing
from raydpo.stages.converting import Converted, convert_values
from raydpo.stages.values import RunValues
from raydpo.workspace.prepared import prepared_datasets
from tests.prepared import PAIRS, prepare, prepared_run

pytestmark = pytest.mark.unit

# As raydpo 0.1 wrote it, column by column; never to be taken from the code that reads it.
LAYOUT = pa.schema(
    [
        ("row_id", pa.binary(16)),
        ("chosen_logps", pa.float32()),
        ("rejected_logps", pa.float32()),
        ("chosen_tokens", pa.int32()),
        ("rejected_tokens", pa.int32()),
        ("chosen_token_logps", pa.list_(pa.float32())),
        ("rejected_token_logps", pa.list_(pa.float32())),
    ]
)
LOGPS = np.random.default_rng(0).normal(-40, 20, (5, 2)).astype(np.float32)  # of the run's rows
STRANGER = b"s" * 16  # a row of another run


@pytest.fixture
def run(model: Path, tmp_path: Path, root: str) -> RunFile:
    """A run whose five pairs are prepared; nothing has been scored."""
    return prepared_run(model, tmp_path, root)


def write_old_shard(
    run: RunFile, row_ids: Sequence[bytes], logps: np.ndarray, *, source: str = "computed", verified: bool = True
) -> str:
    """A shard and its marker as an earlier raydpo left them; returns its name."""
    table = pa.table(
        {
            "row_id": row_ids,
            "chosen_logps": logps[:, 0],
            "rejected_logps": logps[:, 1],
            "chosen_tokens": [2] * len(row_ids),
            "rejected_tokens": [1] * len(row_ids),
            "chosen_token_logps": [[value / 2, value / 2] for value in logps[:, 0]],
            "rejected_token_logps": [None] * len(row_ids),
        },
        schema=LAYOUT,
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    content = sink.getvalue().to_pybytes()
    store = RunValues(run).store()
    store.claim()
    marker = {
        "key": store.key.digest,
        "rows": len(row_ids),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "source": source,
        "verified": verified,
    }
    name = hashlib.blake2b(b"".join(sorted(row_ids)), digest_size=12).hexdigest()
    place = place_of(run)
    place.write(f"{name}.parquet", content)
    place.write(f"{name}.json", json.dumps(marker, indent=1).encode())
    return name


def place_of(run: RunFile) -> Place:
    assert run.reference.store
    return Place.of(run.reference.store) / RunValues(run).store().key.digest


def train_rows(run: RunFile) -> Dataset:
    [dataset] = prepared_datasets(RunValues(run).rows())
    return dataset


def converted(run: RunFile) -> Converted:
    return convert_values(RunValues(run).rows(), RunValues(run).store())


def old_store(run: RunFile) -> list[str]:
    """All rows of the run and one of another, in two shards."""
    names = train_rows(run).row_ids.to_pylist()
    strange = np.asarray([[-1, -2]], np.float32)
    return [
        write_old_shard(run, names[:3], LOGPS[:3]),
        write_old_shard(run, [*names[3:], STRANGER], np.concatenate([LOGPS[3:], strange])),
    ]


def unread_shards(run: RunFile) -> list[str]:
    """What gc takes."""
    assert run.reference.store
    return sorted(found.files[0] for found in find_waste(run.reference.store, older_than_s=-60))


def test_every_value_of_the_runs_rows_is_taken_over_to_the_bit_and_the_others_are_counted(run: RunFile) -> None:
    old_store(run)
    store = RunValues(run).store()
    counts = converted(run)
    assert counts == Converted(pairs=5, completions=10, others=1, damaged=0, store=store.address)
    ids = train_rows(run).completion_ids
    assert np.array_equal(store.lookup(ids), LOGPS.ravel())
    assert store.unverified(ids) == []
    [directory] = list_keys(str(run.reference.store))
    tables = pa.concat_tables(directory.read(list(directory.survey()[0])))
    by_id = {row.pop("completion_id"): row for row in tables.to_pylist()}
    for completion, (name, value) in enumerate(zip(ids.to_pylist(), LOGPS.ravel().tolist(), strict=True)):
        chosen = completion % 2 == 0
        tokens = [value / 2, value / 2] if chosen else None
        assert by_id[name] == {"logps": value, "tokens": 2 if chosen else 1, "token_logps": tokens}


def test_converting_again_changes_nothing(run: RunFile) -> None:
    old_store(run)
    first = converted(run)
    place = place_of(run)
    files = {entry.base_name: place.read(entry.base_name) for entry in place.entries()}
    assert converted(run) == first
    assert {entry.base_name: place.read(entry.base_name) for entry in place.entries()} == files


def test_old_values_are_never_scored_again_but_named_with_the_command(run: RunFile) -> None:
    old_store(run)
    store = RunValues(run).store()
    says = r"holds the values of 5 of the run's pairs .* run `raydpo reference convert` with this run file"
    with pytest.raises(UserError, match=says):
        check_converted(store, [train_rows(run)])
    with pytest.raises(UserError, match=says):
        score_missing(RunValues(run).scoring(), store, [Path(run.output_dir) / "tokens/train"])
    converted(run)
    check_converted(store, [train_rows(run)])


def test_rows_that_the_old_store_does_not_have_are_no_reason_to_convert(run: RunFile) -> None:
    write_old_shard(run, [STRANGER], LOGPS[:1])
    check_converted(RunValues(run).store(), [train_rows(run)])


def test_old_shards_stay_until_every_row_of_them_is_converted(run: RunFile) -> None:
    first, _ = old_store(run)
    assert unread_shards(run) == []
    converted(run)
    assert unread_shards(run) == [f"{first}.json"], "the other one has a row of another run"
    remove_waste(find_waste(str(run.reference.store), older_than_s=-60))
    assert np.array_equal(RunValues(run).store().lookup(train_rows(run).completion_ids), LOGPS.ravel())
    assert not [entry for entry in place_of(run).entries() if entry.base_name.startswith(first)]
    assert converted(run).pairs == 2


def test_a_shard_is_converted_by_one_run_file_after_the_other(run: RunFile) -> None:
    names = train_rows(run).row_ids.to_pylist()
    shard = write_old_shard(run, names, LOGPS)
    prepare(run, PAIRS[:3])
    assert converted(run).others == 2
    assert unread_shards(run) == []
    prepare(run, PAIRS[3:])
    assert converted(run).others == 3
    assert unread_shards(run) == [f"{shard}.json"]
    prepare(run, PAIRS)
    assert np.array_equal(RunValues(run).store().lookup(train_rows(run).completion_ids), LOGPS.ravel())


def test_old_shards_outlive_the_loss_of_what_was_made_of_them(run: RunFile) -> None:
    names = train_rows(run).row_ids.to_pylist()
    old = write_old_shard(run, names, LOGPS)
    converted(run)
    [directory] = list_keys(str(run.reference.store))
    [shard] = directory.survey()[0]
    place_of(run).write(f"{shard}.parquet", b"PAR1")
    assert unread_shards(run) == [f"{shard}.json"], "and not the last whole copy of the values"
    with pytest.raises(UserError, match="raydpo reference convert"):
        check_converted(RunValues(run).store(), [train_rows(run)])
    converted(run)
    assert unread_shards(run) == [f"{old}.json"]
    assert np.array_equal(RunValues(run).store().lookup(train_rows(run).completion_ids), LOGPS.ravel())


def test_imported_values_stay_unverified_and_computed_ones_win_as_before(run: RunFile) -> None:
    names = train_rows(run).row_ids.to_pylist()
    write_old_shard(run, names, LOGPS - 1, source="imported", verified=False)
    write_old_shard(run, names[:2], LOGPS[:2])
    converted(run)
    store, ids = RunValues(run).store(), train_rows(run).completion_ids
    assert np.array_equal(store.lookup(ids), [*LOGPS[:2].ravel(), *(LOGPS[2:] - 1).ravel()])
    assert len(store.unverified(ids)) == 1


def test_a_completion_that_two_rows_share_has_the_value_of_the_first(run: RunFile) -> None:
    prepare(run, [PAIRS[0], PAIRS[0] | {"chosen": " is better"}])
    write_old_shard(run, train_rows(run).row_ids.to_pylist(), np.asarray([[-1, -2], [-3, -2.125]], np.float32))
    assert converted(run).completions == 3
    assert RunValues(run).store().lookup(train_rows(run).completion_ids).tolist() == [-1, -2, -3, -2]


def test_the_pairs_of_a_group_are_taken_over_though_they_are_one_row_now(run: RunFile) -> None:
    """As `sample` with pairs: all wrote them; and one completion has come to the group since."""
    answers = [" is best", " is good", " is bad"]
    pairs = [{"prompt": "The film", "chosen": answers[i], "rejected": answers[j]} for i, j in [(0, 1), (0, 2), (1, 2)]]
    prepare(run, pairs)
    logps = np.asarray([[-1, -2], [-1, -3], [-2, -3]], np.float32)
    write_old_shard(run, train_rows(run).row_ids.to_pylist(), logps)
    group = {
        "prompt": "The film",
        "completions": [answers[1], answers[0], answers[2], " is new"],
        "ranks": [1, 0, 2, 3],
    }
    prepare(run, [group], kind="ranked")
    with pytest.raises(UserError, match="holds the values of 3 of the run's pairs"):
        check_converted(RunValues(run).store(), [train_rows(run)])
    assert converted(run) == Converted(RunValues(run).store().address, pairs=3, completions=3, others=0, damaged=0)
    known = RunValues(run).store().known(train_rows(run).completion_ids)
    assert np.array_equal(known, [-1, -2, -3, np.nan], equal_nan=True)
    check_converted(RunValues(run).store(), [train_rows(run)])


def test_a_damaged_old_shard_is_named_and_not_converted(run: RunFile) -> None:
    first, _ = old_store(run)
    content = place_of(run).read(f"{first}.parquet")
    place_of(run).write(f"{first}.parquet", content[:-1])
    counts = converted(run)
    assert (counts.pairs, counts.damaged) == (2, 1)
    [problem] = verify_store(str(run.reference.store))[1]
    assert f"{first}.parquet has {len(content) - 1} bytes" in str(problem)


def test_a_lost_key_is_written_again_and_no_value_is_lost_with_it(run: RunFile) -> None:
    old_store(run)
    place_of(run).remove(["key.json"])
    assert converted(run).pairs == 5
    assert np.array_equal(RunValues(run).store().lookup(train_rows(run).completion_ids), LOGPS.ravel())


def test_a_store_without_the_old_layout_has_nothing_to_convert(run: RunFile) -> None:
    with pytest.raises(UserError, match="holds no shard of the old layout, so there is nothing to convert"):
        converted(run)


def test_the_commands_say_what_is_there_and_what_became_of_it(
    run: RunFile, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old_store(run)
    store = str(run.reference.store)
    [directory] = list_keys(store)
    assert KeySummary.of(directory).old_pairs == 6
    assert main(["reference", "ls", store]) == 0
    assert "and 6 pairs in the layout of an earlier raydpo: `raydpo reference convert`" in capsys.readouterr().out
    assert main(["reference", "verify", store]) == 0
    assert "earlier raydpo: 6 pairs" in capsys.readouterr().out
    run_file = tmp_path / "run.yaml"
    run_file.write_text(f"name: small\noutput_dir: {run.output_dir}\nmodel: {{path: {model}}}\ndata: {{train: [x]}}\n")
    overrides = ["model.dtype=float32", f"reference.store={store}", "data.max_length=64"]
    train = f"data.train=[{run.data.train[0]}]"
    assert main(["reference", "convert", str(run_file), *overrides, train]) == 0
    said = capsys.readouterr().out
    assert "5 pairs of the run converted" in said
    assert "10 completions, none scored again; 1 pairs are of other runs" in said
