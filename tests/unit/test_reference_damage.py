"""Whatever happens to a store's files: named by verify, refused by a lookup in the same words, mended row by row."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydpo.errors import UserError
from raydpo.reference.maintenance import verify_store
from raydpo.reference.place import Place
from raydpo.storage import commit
from tests.stores import KEY, LOGPS, claimed, files_of, full_store, ids, place_of, table

pytestmark = pytest.mark.unit

Spoil = Callable[[Place, str], None]  # the directory, and a shard's name


def _rewrite(suffix: str, change: Callable[[bytes], bytes]) -> Spoil:
    return lambda place, name: place.write(f"{name}.{suffix}", change(place.read(f"{name}.{suffix}")))


def _flipped(share: float) -> Callable[[bytes], bytes]:
    def flip(content: bytes) -> bytes:
        at = int(share * (len(content) - 1))
        return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]

    return flip


def _half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _lost(suffix: str) -> Spoil:
    return lambda place, name: place.remove([f"{name}.{suffix}"])


def _of_another_key(place: Place, name: str) -> None:
    """Shard and marker as they would be after a copy from elsewhere."""
    marker = json.loads(place.read(f"{name}.json"))
    place.write(f"{name}.json", json.dumps(marker | {"key": "4711"}).encode())


def _with_other_columns(place: Place, name: str) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": [1], "logp": [-1.0]}), sink)
    content = sink.getvalue().to_pybytes()
    marker = json.loads(place.read(f"{name}.json"))
    promised = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    place.write(f"{name}.parquet", content)
    place.write(f"{name}.json", json.dumps(marker | promised).encode())


OF_A_SHARD: dict[str, tuple[Spoil, str]] = {
    "first byte flipped": (_rewrite("parquet", _flipped(0)), r"\.parquet does not match the sha256 of its marker"),
    "a value's byte flipped": (_rewrite("parquet", _flipped(0.1)), r"\.parquet does not match the sha256"),
    "middle byte flipped": (_rewrite("parquet", _flipped(0.5)), r"\.parquet does not match the sha256"),
    "last byte flipped": (_rewrite("parquet", _flipped(1)), r"\.parquet does not match the sha256"),
    "truncated": (_rewrite("parquet", _half), r"\.parquet has \d+ bytes where its marker promises \d+"),
    "emptied": (_rewrite("parquet", lambda _: b""), r"\.parquet has 0 bytes where its marker promises \d+"),
    "gone": (_lost("parquet"), r"\.parquet is missing, though its marker is there"),
    "other columns": (_with_other_columns, r"\.parquet has the columns id, logp: not a shard"),
    "another key's": (_of_another_key, r"\.parquet belongs to the key 4711: it was copied"),
    "marker gone": (_lost("json"), r"\.parquet has no marker [0-9a-f]+\.json"),
    "marker flipped": (_rewrite("json", _flipped(0)), r"\.json is not a marker"),
    "marker's promise flipped": (_rewrite("json", _flipped(0.7)), r"\.parquet does not match the sha256|not a marker"),
    "marker truncated": (_rewrite("json", _half), r"\.json is not a marker"),
    "marker without a promise": (_rewrite("json", lambda _: b"{}"), r"\.json is not a marker"),
}


@pytest.fixture(autouse=True)
def another_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """What a process has found whole it does not look at again; call this to be another one."""

    def forget() -> None:
        monkeypatch.setattr(commit, "FOUND_WHOLE", set())

    forget()
    return forget


@pytest.mark.parametrize("damage", OF_A_SHARD)
def test_a_damaged_shard_is_named_and_refused_until_its_completions_are_committed_again(
    root: str, damage: str, another_process: Callable[[], None]
) -> None:
    store, [_, second] = full_store(root)
    whole = files_of(root)
    spoil, cause = OF_A_SHARD[damage]
    spoil(place_of(root), second)
    another_process()

    [found] = verify_store(root)[1]
    assert re.search(f"{second}{cause}", str(found))
    with pytest.raises(UserError, match=rf"lacks 3 of 6 completions.*raydpo precompute.*\n- {re.escape(str(found))}"):
        store.lookup(ids(range(6)))
    assert np.array_equal(store.lookup(ids(range(3))), LOGPS[:3]), "what is whole still counts"

    missing = store.missing(ids(range(6)))
    assert missing.tolist() == [False] * 3 + [True] * 3, "and only the damaged shard is to be computed again"
    assert store.commit(table([3, 4, 5])) == second
    assert files_of(root) == whole
    assert verify_store(root) == ({"keys": 1, "shards": 2, "completions": 6, "old_pairs": 0}, [])


OF_A_KEY: dict[str, tuple[Callable[[bytes], bytes] | None, str]] = {
    "gone": (None, "key.json is missing"),
    "truncated": (_half, "key.json is not JSON"),
    "first byte flipped": (_flipped(0), "key.json is not JSON"),
}


@pytest.mark.parametrize("damage", OF_A_KEY)
def test_no_shard_counts_under_a_damaged_key_until_precompute_claims_it_again(root: str, damage: str) -> None:
    store, _ = full_store(root)
    change, cause = OF_A_KEY[damage]
    if change:
        place_of(root).write("key.json", change(place_of(root).read("key.json")))
    else:
        place_of(root).remove(["key.json"])
    assert re.search(cause, str(verify_store(root)[1][0]))
    with pytest.raises(UserError, match=rf"(?s)lacks 6 of 6 completions.*\n- .*{cause}"):
        store.lookup(ids(range(6)))
    assert np.array_equal(claimed(root).lookup(ids(range(6))), LOGPS)


def test_a_foreign_key_is_refused_and_never_written_over(root: str) -> None:
    store, _ = full_store(root)
    foreign = place_of(root).read("key.json").replace(b"float32", b"float64")
    place_of(root).write("key.json", foreign)
    cause = "key.json is of another key than its directory .* a foreign store"
    assert re.search(cause, str(verify_store(root)[1][0]))
    with pytest.raises(UserError, match=rf"(?s)lacks 6 of 6 completions.*{cause}"):
        store.lookup(ids(range(6)))
    with pytest.raises(UserError, match=rf"{cause}. Remove that directory, or set another reference.store"):
        store.claim()
    assert place_of(root).read("key.json") == foreign


def test_a_half_written_directory_is_named_and_finished_by_the_next_writer(root: str) -> None:
    place_of(root).write("0123.parquet", b"PAR1")
    of_key, of_shard = map(str, verify_store(root)[1])
    assert "key.json is missing" in of_key
    assert "0123.parquet has no marker" in of_shard
    store = claimed(root)
    assert store.missing(ids(range(6))).all()
    store.commit(table(range(6)))
    assert np.array_equal(store.lookup(ids(range(6))), LOGPS)


def test_a_directory_that_is_no_store_is_named(root: str) -> None:
    with pytest.raises(UserError, match="there is no reference store at"):
        verify_store(root)
    (Place.of(root) / "photos").write("1.jpg", b"something else")
    [found] = verify_store(root)[1]
    assert "photos/key.json is missing: not the directory of a key" in str(found)


def test_a_store_that_was_never_filled_is_not_called_damaged(root: str) -> None:
    with pytest.raises(UserError) as refused:
        claimed(root).lookup(ids([0]))
    assert "does not count" not in str(refused.value)
    assert KEY.digest in str(refused.value)
