"""Laws of the reference store: a number is there, whole and right, or it is missed by name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raydpo.config.errors import UserError
from raydpo.reference.store import SCHEMA, Key, Store

pytestmark = pytest.mark.unit

KEY = Key(weights="0123", dtype="float32", attention="segments", scorer_version=1)
ROWS = [bytes([i]) * 16 for i in range(6)]
LOGPS = np.random.default_rng(0).normal(-40, 20, (6, 2)).astype(np.float32)


def _table(rows: list[int], logps: np.ndarray = LOGPS) -> pa.Table:
    columns = {
        "row_id": [ROWS[i] for i in rows],
        "chosen_logps": logps[rows, 0].tolist(),
        "rejected_logps": logps[rows, 1].tolist(),
        "chosen_tokens": [2] * len(rows),
        "rejected_tokens": [1] * len(rows),
        "chosen_token_logps": [[logps[i, 0] / 2] * 2 for i in rows],
        "rejected_token_logps": [None] * len(rows),
    }
    return pa.table(columns, schema=SCHEMA)


def _full_store(root: Path) -> Store:
    store = Store(root, KEY)
    store.commit("a", _table([0, 1, 2]))
    store.commit("b", _table([3, 4, 5]))
    return store


def test_what_is_committed_is_found_bit_for_bit(tmp_path: Path) -> None:
    _full_store(tmp_path)
    found = Store(tmp_path, KEY).lookup(ROWS)
    assert found.dtype == np.float32
    assert np.array_equal(found, LOGPS)


@pytest.mark.parametrize("order", [[5, 4, 3, 2, 1, 0], [3], [2, 2, 5], []])
def test_a_lookup_answers_in_the_order_of_the_question(tmp_path: Path, order: list[int]) -> None:
    found = _full_store(tmp_path).lookup([ROWS[i] for i in order])
    assert found.shape == (len(order), 2)
    assert np.array_equal(found, LOGPS[order])


def test_row_ids_are_those_of_all_shards(tmp_path: Path) -> None:
    assert _full_store(tmp_path).row_ids() == set(ROWS)
    assert Store(tmp_path, replace(KEY, dtype="bfloat16")).row_ids() == set()


def test_a_missing_row_is_named_with_the_remedy(tmp_path: Path) -> None:
    store = Store(tmp_path, KEY)
    store.commit("a", _table([0, 1, 2]))
    with pytest.raises(UserError, match=rf"lacks 2 of 3 rows \(first: {ROWS[4].hex()}\).*raydpo precompute"):
        store.lookup([ROWS[1], ROWS[4], ROWS[3]])


def _flip(share: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(share * (len(content) - 1))] ^= 0x10
        path.write_bytes(content)

    return damage


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "shard, first byte flipped": ("b.parquet", _flip(0)),
    "shard, byte among the values flipped": ("b.parquet", _flip(0.1)),
    "shard, middle byte flipped": ("b.parquet", _flip(0.5)),
    "shard, last byte flipped": ("b.parquet", _flip(1)),
    "shard truncated": ("b.parquet", _truncate),
    "shard gone": ("b.parquet", Path.unlink),
    "marker gone": ("b.json", Path.unlink),
    "marker, first byte flipped": ("b.json", _flip(0)),
    "marker, middle byte flipped": ("b.json", _flip(0.5)),
    "marker truncated": ("b.json", _truncate),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_counts_as_missing_until_it_is_committed_again(tmp_path: Path, damage: str) -> None:
    store = _full_store(tmp_path)
    file, spoil = DAMAGES[damage]
    spoil(store.directory / file)
    assert store.row_ids() == set(ROWS[:3])
    with pytest.raises(UserError, match=r"lacks 3 of 6 rows.*raydpo precompute"):
        store.lookup(ROWS)
    assert np.array_equal(store.lookup(ROWS[:3]), LOGPS[:3])

    store.commit("b", _table([3, 4, 5]))
    assert np.array_equal(store.lookup(ROWS), LOGPS)


@pytest.mark.parametrize("column", ["chosen_logps", "rejected_logps"])
@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_no_number_is_refused(tmp_path: Path, column: str, value: float | None) -> None:
    table = _table([0, 1, 2])
    spoiled = pa.array([-1.0, value, -2.0], pa.float32())
    store = Store(tmp_path, KEY)
    with pytest.raises(ValueError, match=column):
        store.commit("a", table.set_column(table.schema.get_field_index(column), column, spoiled))
    assert store.row_ids() == set()


@pytest.mark.parametrize(
    "other", [{"weights": "4567"}, {"dtype": "bfloat16"}, {"attention": "eager"}, {"scorer_version": 2}]
)
def test_another_key_is_another_directory(tmp_path: Path, other: dict[str, object]) -> None:
    store = _full_store(tmp_path)
    elsewhere = Store(tmp_path, replace(KEY, **other))  # type: ignore[arg-type]
    assert elsewhere.directory != store.directory
    with pytest.raises(UserError, match="lacks 6 of 6"):
        elsewhere.lookup(ROWS)


def test_the_directory_says_what_its_key_is(tmp_path: Path) -> None:
    assert Key(**json.loads((_full_store(tmp_path).directory / "key.json").read_text())) == KEY


def test_equal_content_is_written_as_equal_bytes(tmp_path: Path) -> None:
    stores = [_full_store(tmp_path / name) for name in ("here", "there")]
    files = [{path.name: path.read_bytes() for path in store.directory.iterdir()} for store in stores]
    assert sorted(files[0]) == ["a.json", "a.parquet", "b.json", "b.parquet", "key.json"]
    assert files[0] == files[1]
