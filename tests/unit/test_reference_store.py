"""Laws of the reference store: a number is there, whole and right, or it is missed by name."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.errors import UserError
from raydpo.reference import shard as shards
from raydpo.reference.index import Asked, as_arrow, as_numpy
from raydpo.reference.maintenance import verify_store
from raydpo.reference.place import Place
from raydpo.reference.shard import SCHEMA
from raydpo.reference.store import Key, Store
from raydpo.storage import commit
from tests.stores import KEY, LOGPS, NAMES, claimed, files_of, full_store, ids, place_of, table

pytestmark = pytest.mark.unit


def test_what_is_committed_is_found_bit_for_bit(root: str) -> None:
    full_store(root)
    found = Store(root, KEY).lookup(ids(range(6)))
    assert found.dtype == np.float32
    assert np.array_equal(found, LOGPS)


@pytest.mark.parametrize("order", [[5, 4, 3, 2, 1, 0], [3], [2, 2, 5], []])
def test_a_lookup_answers_in_the_order_of_the_question(root: str, order: list[int]) -> None:
    found = full_store(root)[0].lookup(ids(order))
    assert found.shape == (len(order),)
    assert np.array_equal(found, LOGPS[order])


@pytest.mark.parametrize("order", [[5, 3, 1], [3], [1, 1, 5]])
def test_values_of_tokens_come_in_the_order_of_the_question(root: str, order: list[int]) -> None:
    found = full_store(root)[0].lookup_tokens(ids(order))
    assert found.to_pylist() == [[LOGPS[i] / 2] * 2 for i in order]


def test_completions_whose_tokens_were_not_kept_are_counted_with_the_remedy(root: str) -> None:
    with pytest.raises(UserError, match=r"no log-probs of tokens for 2 of 3 completions: .*another reference\.store"):
        full_store(root)[0].lookup_tokens(ids([1, 2, 4]))


def test_tokens_that_one_shard_has_kept_are_found_though_another_has_not(root: str) -> None:
    store, _ = full_store(root)
    kept = table([0]).set_column(3, SCHEMA.field("token_logps"), pa.array([[-1.0, -2.0]], pa.list_(pa.float32())))
    store.commit(kept)
    assert store.lookup_tokens(ids([0])).to_pylist() == [[-1.0, -2.0]]


def test_a_store_works_in_the_process_that_it_was_sent_to(root: str) -> None:
    sent: Store = pickle.loads(pickle.dumps(claimed(root)))
    sent.commit(table([1]))
    assert np.array_equal(sent.lookup(ids([1])), LOGPS[[1]])


def test_only_completions_without_a_value_are_missing_and_each_of_them_once(root: str) -> None:
    store = claimed(root)
    assert store.missing(ids([0, 1])).tolist() == [True, True]
    store.commit(table([0, 1, 2]))
    assert store.missing(ids([0, 3, 1, 3, 4, 2])).tolist() == [False, True, False, False, True, False]
    store.commit(table([3, 4]))
    assert not store.missing(ids([0, 3, 1, 3, 4, 2])).any()


@given(st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=40), st.data())
def test_any_ids_are_found_whatever_their_bytes(names: list[bytes], data: st.DataObject) -> None:
    known = data.draw(st.sets(st.sampled_from(names)))
    asked = as_numpy(pa.array(names, pa.binary(16)))
    assert as_arrow(asked).to_pylist() == names
    at, found = Asked(pa.array(sorted(known), pa.binary(16))).find(asked)
    assert found.tolist() == [name in known for name in names]
    assert [sorted(known)[i] for i, there in zip(at, found, strict=True) if there] == [
        name for name in names if name in known
    ]


def test_a_missing_completion_is_named_with_the_remedy(root: str) -> None:
    store = claimed(root)
    store.commit(table([0, 1, 2]))
    with pytest.raises(UserError, match=rf"lacks 2 of 3 completions \(first: {NAMES[4].hex()}\).*raydpo precompute"):
        store.lookup(ids([1, 4, 3]))


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_no_number_is_refused(root: str, value: float | None) -> None:
    good, spoiled = table([0, 1, 2]), pa.array([-1.0, value, -2.0], pa.float32())
    store = claimed(root)
    with pytest.raises(ValueError, match="logps holds"):
        store.commit(good.set_column(good.schema.get_field_index("logps"), "logps", spoiled))
    assert store.missing(ids([0, 1, 2])).all()


OTHER_KEYS = [
    {"weights": "4567"},
    {"dtype": "bfloat16"},
    {"fp32_head": True},
    {"attention": "eager"},
    {"scorer_version": 2},
]


def test_every_field_of_a_key_has_its_turn_below() -> None:
    assert {name for other in OTHER_KEYS for name in other} == set(Key.__dataclass_fields__)


@pytest.mark.parametrize("other", OTHER_KEYS)
def test_another_key_finds_nothing(root: str, other: dict[str, object]) -> None:
    full_store(root)
    with pytest.raises(UserError, match="lacks 6 of 6"):
        Store(root, replace(KEY, **other)).lookup(ids(range(6)))  # type: ignore[arg-type]  # any field


def test_the_directory_says_what_its_key_is(root: str) -> None:
    full_store(root)
    assert Key(**json.loads(files_of(root)["key.json"])) == KEY


def test_equal_content_is_written_as_equal_bytes_under_equal_names(root: str) -> None:
    base, query, options = root.partition("?")
    here, there = (f"{base}/{name}{query}{options}" for name in ("here", "there"))
    _, [first, second] = full_store(here)
    full_store(there)
    assert files_of(here) == files_of(there)
    expected = [f"{name}.{suffix}" for name in (first, second) for suffix in ("json", "parquet")]
    assert sorted(files_of(here)) == sorted([*expected, "key.json"])


def test_a_shard_is_named_after_its_completions_and_not_after_its_values(root: str) -> None:
    store, [first, second] = full_store(root)
    assert first != second
    assert claimed(root, replace(KEY, dtype="bfloat16")).commit(table([2, 0, 1], LOGPS * 2)) == first
    assert store.commit(table([0, 1])) not in (first, second)


def test_bytes_are_hashed_once_a_process_and_not_in_every_call(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = full_store(root)
    store.lookup(ids(range(6)))
    monkeypatch.setattr(commit, "sha256", lambda _: pytest.fail("hashed again"))
    Store(root, KEY).lookup(ids(range(6)))
    verify_store(root)


def test_a_lookup_reads_no_values_of_tokens(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = full_store(root)
    read, columns = pq.read_table, []
    monkeypatch.setattr(pq, "read_table", lambda *a, **k: columns.append(k["columns"]) or read(*a, **k))
    store.lookup(ids([1]))
    assert columns == [shards.SUMS] * 2


def test_messages_hold_no_credentials(s3: Callable[[], str]) -> None:
    store = claimed(s3())
    with pytest.raises(UserError) as refused:
        store.lookup(ids([0]))
    assert "s3://" in str(refused.value)
    assert "password" not in str(refused.value) + store.address


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("nowhere://bucket/prefix", "cannot be reached"),
        ("s3://?region=us-east-1", "cannot be reached|names no directory"),
    ],
)
def test_an_address_without_a_filesystem_is_refused(address: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Place.of(address)


def test_a_bucket_that_is_not_there_is_named_before_anything_is_scored(s3: Callable[[], str]) -> None:
    with pytest.raises(UserError, match=r"s3://absent/.* cannot be written.*set another reference.store"):
        claimed(s3().replace("@tests/", "@absent/"))


def test_files_that_are_no_shards_are_left_alone(root: str) -> None:
    store, _ = full_store(root)
    place_of(root).write("notes.txt", b"mine")
    assert np.array_equal(store.lookup(ids(range(6))), LOGPS)
    assert verify_store(root)[1] == []


def test_a_shard_is_known_by_its_completions_in_any_order_and_by_no_fewer(root: str) -> None:
    store, [first, _] = full_store(root)
    questions = [ids([2, 0, 1]), ids([0, 1]), ids([0, 1, 2, 3])]
    assert [store.shard_of(question) for question in questions] == [first, None, None]
    assert np.array_equal(store.sums(first, questions[0]), LOGPS[[2, 0, 1]])
    place_of(root).remove([f"{first}.json"])
    assert store.shard_of(questions[0]) is None


def test_what_is_not_known_is_nan_and_never_a_number(root: str) -> None:
    store = claimed(root)
    store.commit(table([1, 2]))
    known = store.known(ids([0, 2, 0, 1]))
    assert np.isnan(known[[0, 2]]).all()
    assert np.array_equal(known[[1, 3]], LOGPS[[2, 1]])
