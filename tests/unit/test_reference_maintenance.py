"""Looking after a store: what ls says, what gc takes and what it leaves, what an export holds."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydpo.cli import main
from raydpo.errors import UserError
from raydpo.reference.maintenance import KeySummary, find_waste, list_keys, remove_waste, verify_store
from tests.stores import KEY, LOGPS, NAMES, claimed, files_of, full_store, ids, place_of, table

pytestmark = pytest.mark.unit


def test_ls_counts_every_key_by_its_markers(root: str) -> None:
    full_store(root)
    other = claimed(root, replace(KEY, dtype="bfloat16"))
    other.commit(table([0, 1]), "imported")
    found = {summary.key: summary for summary in map(KeySummary.of, list_keys(root))}
    first, second = found[KEY.digest], found[other.key.digest]
    assert (first.completions, first.shards, first.unverified) == (6, 2, 0)
    assert (second.completions, second.shards, second.unverified) == (2, 1, 2)
    assert first.made_of == asdict(KEY)
    assert first.bytes == sum(len(content) for name, content in files_of(root).items() if name.endswith(".parquet"))
    assert -2 < first.age_s < 60


def test_what_counts_is_no_waste(root: str) -> None:
    full_store(root)
    claimed(root, replace(KEY, dtype="bfloat16")).commit(table([0, 1]), "imported")
    assert find_waste(root, older_than_s=-60) == []


def test_gc_takes_what_killed_writers_left_and_nothing_else(root: str) -> None:
    full_store(root)
    whole, place = files_of(root), place_of(root)
    place.write(".0123.parquet.1f2e3d4c.tmp", b"PAR1")
    place.write("0123.parquet", b"PAR1")
    place.write("4567.json", b"{}")
    place.write("notes.txt", b"mine")
    assert find_waste(root, older_than_s=3600) == [], "a writer may be at work on them"
    waste = find_waste(root, older_than_s=-60)
    assert {file for found in waste for file in found.files} == {
        ".0123.parquet.1f2e3d4c.tmp",
        "0123.parquet",
        "4567.json",
    }
    remove_waste(waste)
    assert files_of(root) == whole | {"notes.txt": b"mine"}


@pytest.mark.parametrize("parts", [[[1, 2]], [[2], [3]], [[0, 1, 2, 3, 4, 5]], [[1, 3], [3, 1, 2], [2, 3]]])
def test_gc_takes_shards_only_while_every_completion_stays_found(root: str, parts: list[list[int]]) -> None:
    store, _ = full_store(root)
    for rows in parts:
        store.commit(table(rows))
    waste = find_waste(root, older_than_s=-60)
    assert waste
    remove_waste(waste)
    assert np.array_equal(store.lookup(ids(range(6))), LOGPS)
    assert find_waste(root, older_than_s=-60) == []
    assert verify_store(root)[1] == []


def test_computed_values_win_over_imported_ones_and_make_them_waste(root: str) -> None:
    store = claimed(root)
    imported = store.commit(table(range(6), LOGPS - 1), "imported")
    store.commit(table([1, 2]))
    assert np.array_equal(store.lookup(ids([0, 1])), [LOGPS[0] - 1, LOGPS[1]])
    store.commit(table([0, 3, 4, 5]))
    assert [found.files[0] for found in find_waste(root, older_than_s=-60)] == [f"{imported}.json"]


def test_unverified_values_go_when_asked_and_verified_ones_stay(root: str) -> None:
    store = claimed(root)
    good, bad = (store.commit(table(rows), "imported") for rows in ([0, 1], [2, 3]))
    assert store.unverified(ids([1, 3])) == sorted([good, bad])
    assert store.unverified(ids([4])) == []
    store.mark_verified([good])
    assert store.unverified(ids([1, 3])) == [bad]
    remove_waste(find_waste(root, unverified=True, older_than_s=3600))  # asked for, so their age does not matter
    assert store.missing(ids([0, 1, 2, 3])).tolist() == [False, False, True, True]


def test_a_named_key_goes_whole_and_the_others_stay(root: str) -> None:
    full_store(root)
    other = claimed(root, replace(KEY, dtype="bfloat16"))
    other.commit(table([0, 1]))
    with pytest.raises(UserError, match=f"no key 4711 in this store; it has .*{KEY.digest}"):
        find_waste(root, keys=["4711"])
    remove_waste(find_waste(root, keys=[other.key.digest]))
    assert [directory.digest for directory in list_keys(root)] == [KEY.digest]
    assert verify_store(root) == ({"keys": 1, "shards": 2, "completions": 6, "old_pairs": 0}, [])


def test_the_shards_of_a_damaged_key_are_nobodys_waste(root: str) -> None:
    full_store(root)
    place_of(root).write("key.json", b"{")
    assert find_waste(root, older_than_s=-60) == []


def test_an_export_holds_every_completion_once_under_names_that_say_whose_they_are(root: str, tmp_path: Path) -> None:
    store, _ = full_store(root)
    store.commit(table([1, 4, 5]))
    assert main(["reference", "export", root, KEY.digest, str(tmp_path / "values.parquet")]) == 0
    found = pq.read_table(tmp_path / "values.parquet").sort_by("completion_id")
    assert found["completion_id"].to_pylist() == NAMES
    assert found["ref_logps"].to_pylist() == LOGPS.tolist()
    assert found["ref_tokens"].to_pylist() == [2] * 6
    assert found["ref_token_logps"].type == pa.list_(pa.float32())


def test_verify_exits_with_1_and_names_the_file(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, [_, second] = full_store(root)
    assert main(["reference", "verify", root]) == 0
    assert "whole: 6 completions in 2 shards of 1 keys" in capsys.readouterr().out
    place_of(root).remove([f"{second}.json"])
    assert main(["reference", "verify", root]) == 1
    assert f"{second}.parquet has no marker" in capsys.readouterr().out


def test_gc_removes_nothing_without_yes(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    full_store(root)
    place_of(root).write("0123.parquet", b"PAR1")
    before = files_of(root)
    assert main(["reference", "gc", root, "--older-than", "-1"]) == 0
    said = capsys.readouterr().out
    assert "0123.parquet: it does not count" in said
    assert "1 files, 0.0 MiB: may go; --yes removes them" in said
    assert files_of(root) == before
    assert main(["reference", "gc", root, "--older-than", "-1", "--yes"]) == 0
    assert files_of(root).keys() == before.keys() - {"0123.parquet"}


def test_ls_prints_a_line_a_key(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    full_store(root)
    claimed(root).commit(table([0]), "imported")
    assert main(["reference", "ls", root]) == 0
    _, line = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{KEY.digest}            7")
    assert "no: 1 imported" in line
    assert line.endswith("dtype=float32 fp32_head=False attention=segments scorer_version=1")


@pytest.mark.parametrize("command", ["ls", "verify", "gc"])
def test_a_store_that_is_not_there_is_a_mistake(command: str, root: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reference", command, root]) == 2
    said = capsys.readouterr()
    assert f"raydpo reference {command}: there is no reference store at" in said.err
    assert "password" not in said.err


def test_a_marker_says_where_values_come_from(root: str) -> None:
    store = claimed(root)
    computed, imported = store.commit(table([0])), store.commit(table([0]), "imported")
    markers = {name: json.loads(files_of(root)[f"{name}.json"]) for name in (computed, imported)}
    assert (markers[computed]["source"], markers[computed]["verified"]) == ("computed", True)
    assert (markers[imported]["source"], markers[imported]["verified"]) == ("imported", False)
