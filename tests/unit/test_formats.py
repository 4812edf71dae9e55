from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.data import jsonlines, reading
from raydpo.data.reading import check_files, read_chunks
from raydpo.data.rows import Row, is_ids, pair_fields, prompt_fields, sft_fields
from raydpo.errors import UserError

pytestmark = pytest.mark.unit

PAIR = {"prompt": "The film", "chosen": " is good", "rejected": " is bad"}
MESSAGES = [{"role": "user", "content": "Good?"}]


def write(path: Path, rows: list[dict]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return str(path)


def read(path: str, fields=None, rows_per_chunk: int = 100) -> list[Row]:
    return [row for chunk in read_chunks(path, fields or pair_fields(), rows_per_chunk) for row in chunk.rows]


@pytest.fixture(params=["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def file(request, tmp_path) -> Path:
    return tmp_path / request.param


@given(rows=st.integers(1, 150), rows_per_chunk=st.integers(1, 70))
def test_chunks_are_consecutive_and_lose_no_row(rows, rows_per_chunk, tmp_path_factory):
    for name in ("rows.jsonl", "rows.jsonl.gz", "rows.parquet"):
        path = tmp_path_factory.mktemp("chunks") / name
        write(path, [{"prompt": str(i)} for i in range(1, rows + 1)])
        chunks = list(read_chunks(str(path), prompt_fields(), rows_per_chunk))
        assert [row["prompt"] for chunk in chunks for row in chunk.rows] == [str(i) for i in range(1, rows + 1)]
        assert all(chunk.rows[0]["prompt"] == str(chunk.first_row) for chunk in chunks)
        assert {len(chunk.rows) for chunk in chunks[:-1]} <= {rows_per_chunk}


def test_every_format_gives_the_same_canonical_rows(file):
    rows = [
        {**PAIR, "source": "not ours"},
        {"prompt": "", "chosen": "é\u2028\U0001f600", "rejected": "b"},
    ]
    assert read(write(file, rows)) == [PAIR, rows[1]]


def test_columns_may_have_other_names(file):
    fields = pair_fields(prompt="question", chosen="better", rejected="worse")
    path = write(file, [{"question": "The film", "better": " is good", "worse": " is bad"}])
    assert read(path, fields) == [PAIR]


def test_exact_ids_win_over_text_and_need_no_text(file):
    ids = {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5]}
    expected = [{"prompt": [1, 2], "chosen": [3], "rejected": [4, 5]}]
    assert read(write(file, [{**PAIR, **ids}])) == expected
    assert read(write(file, [ids])) == expected


@pytest.mark.parametrize("row", [{"completion": "text"}, {"completion": "text", "prompt": None}])
def test_an_sft_row_needs_no_prompt(row, file):
    assert read(write(file, [row]), sft_fields()) == [{"prompt": "", "completion": "text"}]


def test_a_value_says_what_it_is():
    assert [is_ids(value) for value in ([1], [], "text", MESSAGES)] == [True, True, False, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": None}, "column 'chosen', is None; give text or chat messages, or remove the row"),
        ({"chosen": ""}, "column 'chosen', is ''"),
        ({"rejected": 3}, "column 'rejected', is 3"),
        ({"prompt": None}, "column 'prompt', is None"),
        ({"prompt": []}, r"column 'prompt', is \[\]"),
        ({"chosen": [{"role": 1, "content": "a"}]}, "column 'chosen', message 1 is .*; a chat message is"),
        ({"chosen_ids": [1.5]}, r"column 'chosen_ids', is \[1.5\]; give a list of whole numbers"),
        ({"chosen_ids": [True]}, r"column 'chosen_ids', is \[True\]"),
    ],
)
def test_a_bad_value_names_file_row_value_and_remedy(change, message, file):
    good = [PAIR] * 2 if file.suffix != ".parquet" else []  # a parquet column has one type
    path = write(file, [*good, {**PAIR, **change}])
    with pytest.raises(UserError, match=rf"{file.name} row {len(good) + 1}, {message}"):
        read(path)


def test_a_missing_column_lists_the_columns_there_are(file):
    path = write(file, [{"prompt": "The film", "better": " is good", "rejected": " is bad"}])
    with pytest.raises(UserError, match="no column 'chosen' for chosen; its columns are better, prompt, rejected;"):
        read(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": ', "row 2 is not JSON .*; write one JSON object a line"),
        (b'{"prompt": "\xe9"}', r"row 2 is not UTF-8 .byte 13 is 0xe9.; it looks like Latin-1 .* as UTF-8"),
        (b'{"prompt": "a", "prompt": "b"}', "row 2 has the key 'prompt' twice in one object; keep one"),
        (b'{"prompt": [{"role": "a", "role": "b"}]}', "row 2 has the key 'role' twice"),
        (b"[" * 100_000, "row 2 is not JSON"),
        (b"[1]", r"row 2 is \[1\], not a JSON object"),
        (b'{"prompt": "\\ud83d"}', "row 2, column 'prompt', holds half a surrogate pair"),
        (b"", "row 2 is blank; remove the line"),
        (b'"' + b"a" * 5000 + b'"', "row 2 is longer than 0 MiB"),
    ],
)
def test_a_bad_line_names_file_and_row(line, message, tmp_path, monkeypatch):
    if b"aaaa" in line:
        monkeypatch.setattr(jsonlines, "MAX_LINE_BYTES", 4096)
    good = b'{"prompt": "The film"}\n'
    path = tmp_path / "rows.jsonl"
    path.write_bytes(good + line + b"\n" + good)
    with pytest.raises(UserError, match=f"rows.jsonl {message}") as error:
        read(str(path), prompt_fields())
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"prompt": "a"}\n'.encode("utf-16"), "it looks like UTF-16: save the file as UTF-8"),
        ('{"prompt": "a"}\n'.encode("utf-16-be"), "it looks like UTF-16: save the file as UTF-8"),
        ('{"prompt": "a"}\n'.encode("utf-32-le"), "it looks like UTF-16: save the file as UTF-8"),
        (gzip.compress(b'{"prompt": "a"}', mtime=0), "it is compressed: name it .jsonl.gz"),
        (b"<!DOCTYPE html>\n<html></html>\n", "it looks like a web page: fetch the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\n", "`git lfs pull`"),
        (b'[\n{"prompt": "a"}\n]\n', "write its objects one a line"),
        (b'[{"prompt": "a"}]\n', "write its objects one a line"),
    ],
)
def test_a_file_that_is_something_else_is_told_what(content, says, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"rows.jsonl row 1 is .*{says}"):
        read(str(path), prompt_fields())


def test_a_byte_order_mark_of_utf8_is_no_part_of_the_first_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"prompt": "The film"}\n' * 2)
    assert read(str(path), prompt_fields()) == [{"prompt": "The film"}] * 2


def test_blank_lines_at_the_end_are_no_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "The film"}\n\n\n')
    assert read(str(path), prompt_fields()) == [{"prompt": "The film"}]


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.parquet"])
@pytest.mark.parametrize("damage", [lambda content: content[:-20], lambda content: b"no such format" * 9])
def test_a_damaged_file_is_named(name, damage, tmp_path):
    path = tmp_path / name
    write(path, [{"prompt": str(i) * 50} for i in range(50)])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=f"{name} cannot be read"):
        read(str(path), prompt_fields())


def test_a_parquet_file_that_expands_beyond_the_cap_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_BATCH_BYTES", 1 << 20)
    path = write(tmp_path / "rows.parquet", [{"prompt": "a" * (1 << 20)}] * 4)
    assert Path(path).stat().st_size < 1 << 20
    with pytest.raises(UserError, match=r"rows.parquet: 4 rows expand to 4 MiB, over the 1 MiB"):
        read(path, prompt_fields())


def test_a_gzip_file_of_several_members_is_read_to_its_end(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(b"".join(gzip.compress(b'{"prompt": "%d"}\n' % i, mtime=0) for i in range(3)))
    assert [row["prompt"] for row in read(str(path), prompt_fields())] == ["0", "1", "2"]


def test_the_first_rows_are_checked_without_reading_the_rest(tmp_path):
    path = tmp_path / "rows.jsonl"
    good = json.dumps(PAIR)
    path.write_text("\n".join([good] * 8 + ["broken"]))
    check_files([str(path)], pair_fields())
    path.write_text("\n".join([good] * 7 + ["broken"]))
    with pytest.raises(UserError, match=r"rows.jsonl row 8"):
        check_files([str(path)], pair_fields())


@pytest.mark.parametrize("without_bytes", [False, True])
def test_a_file_without_rows_is_named_and_refused_where_it_is_alone(file, without_bytes, tmp_path):
    if without_bytes:
        file.touch()
    elif file.suffix == ".parquet":
        pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), file)
    else:
        write(file, [])
    assert list(read_chunks(str(file), prompt_fields(), 10)) == []
    with pytest.raises(UserError, match=f"{file.name} holds no rows; give a file with rows"):
        check_files([str(file)], prompt_fields())
    good = write(tmp_path / "good.jsonl", [{"prompt": "The film"}])
    assert check_files([good, str(file)], prompt_fields()) == [str(file)]


def test_a_parquet_file_gives_as_many_rows_as_it_says(tmp_path, monkeypatch):
    path = write(tmp_path / "rows.parquet", [{"prompt": "The film"}] * 3)
    whole = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *a, **k: [b.slice(1) for b in whole(*a, **k)])
    with pytest.raises(UserError, match=r"rows.parquet says that it has 3 rows and gives 2"):
        read(path, prompt_fields())
