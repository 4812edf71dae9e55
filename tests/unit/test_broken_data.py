"""Whatever a data file holds, reading it gives valid rows or one message that names the file and the row."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydpo.data.reading import read_chunks
from raydpo.data.rows import Field, is_ids, pair_fields, prompt_fields, sft_fields
from raydpo.errors import UserError

pytestmark = pytest.mark.unit

COLUMNS = ["prompt", "chosen", "rejected", "completion", "prompt_ids", "chosen_ids", "system", "id"]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.just("\ud800"),
    st.sampled_from(["assistant", "user", "The film is a film"]),
)
MESSAGE = st.dictionaries(st.sampled_from(["role", "content", "name", "from"]), SCALARS, max_size=3)
TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text(max_size=5)})
VALUES = st.one_of(
    SCALARS, st.lists(SCALARS, max_size=3), st.lists(MESSAGE | TURN, max_size=3), MESSAGE, st.lists(st.integers(0, 9))
)
ROWS = st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=6)
TEXT = st.fixed_dictionaries(dict.fromkeys(["prompt", "chosen", "rejected", "completion"], st.text("ab", min_size=1)))
FIELDS = st.sampled_from([pair_fields(), sft_fields(), prompt_fields()])
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252"])


def check(path: Path, fields: tuple[Field, ...]) -> None:
    """Read a file; every row is valid, or a UserError names the file."""
    refusal = ""
    chunks = []
    try:
        chunks = list(read_chunks(str(path), fields, 2))
    except UserError as error:
        refusal = str(error)
    assert not refusal or refusal.startswith(str(path))
    assert not refusal or " row " in refusal or path.suffix != ".jsonl"
    assert len(refusal) < 2000
    for chunk in chunks:
        for row in chunk.rows:
            assert row.keys() - {"system"} == {field.name for field in fields}
            assert all(_is_valid(value) for value in row.values())
            json.dumps(row).encode()


def _is_valid(value: Any) -> bool:
    if isinstance(value, str):
        return value.encode("utf-8", "strict") is not None
    if is_ids(value):
        return all(type(token) is int for token in value)
    return all({"role", "content"} <= message.keys() <= {"role", "content", "name", "from"} for message in value)


@settings(max_examples=150)
@given(rows=st.lists(ROWS | TEXT, max_size=4), fields=FIELDS, encoding=ENCODINGS, cut=st.integers(0, 40))
def test_lines_of_any_shape_encoding_and_end(
    rows: list[Any], fields: tuple[Field, ...], encoding: str, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("broken") / "rows.jsonl"
    text = "".join(json.dumps(row) + "\n" for row in rows)
    content = text.encode(encoding)
    path.write_bytes(content[: len(content) - cut])
    check(path, fields)
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) for row in rows).encode(encoding, "replace"))
    check(path, fields)


@settings(max_examples=150)
@given(
    content=st.one_of(
        st.binary(max_size=60),
        st.text('{}[]":,\\n\n promtchsenj0eE+-.NaInfity\ud83d', max_size=60).map(
            lambda text: text.encode("utf-8", "surrogatepass")
        ),
        st.integers(1, 9000).map(lambda depth: b'{"prompt": ' + b"[" * depth),
        st.integers(4000, 6000).map(lambda digits: b'{"prompt": ' + b"9" * digits + b"}"),
        st.sampled_from([b'{"prompt": "a", "prompt": "b"}', b"\x00", b"\n\n", b"null", b'{"prompt": NaN}', b"{}"]),
    ),
    compressed=st.booleans(),
    cut=st.integers(0, 9),
)
def test_bytes_of_any_kind(
    content: bytes, compressed: bool, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("broken") / ("rows.jsonl.gz" if compressed else "rows.jsonl")
    content = gzip.compress(content) if compressed else content
    path.write_bytes(content[: len(content) - cut])
    check(path, prompt_fields())


@settings(max_examples=100)
@given(
    rows=st.lists(ROWS | TEXT, min_size=1, max_size=3),
    fields=FIELDS,
    at=st.integers(0, 400),
    byte=st.binary(max_size=1),
)
def test_parquet_of_any_schema_and_damage(
    rows: list[Any], fields: tuple[Field, ...], at: int, byte: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("broken") / "rows.parquet"
    try:
        pq.write_table(pa.Table.from_pylist(rows), path)
    except (pa.ArrowException, TypeError, OverflowError, UnicodeEncodeError):
        return  # no parquet file holds such rows
    check(path, fields)
    content = path.read_bytes()
    path.write_bytes(content[:at] + byte + content[at + len(byte) :])
    check(path, fields)
