"""Bad rows end the job, or go to a side file, as many as the run file allows; no other row changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.config.schema import Data
from raydpo.data.bad_rows import FILE, BadRow, BadRows
from raydpo.data.detecting import rows_of_files
from raydpo.data.ingest import tokenize_chunk
from raydpo.data.reading import check_files, read_chunks
from raydpo.data.rows import pair_fields
from raydpo.data.shards import to_rows
from raydpo.data.tokens import TokenSettings
from raydpo.errors import UserError
from tests.helpers import row_tokenizer

pytestmark = pytest.mark.unit

SETTINGS = TokenSettings(64, "error", append_eos=True)
GOOD = {"prompt": "The film", "chosen": " is good", "rejected": " is bad"}
BROKEN = [
    b'{"prompt": ',
    b"[1]",
    b'{"prompt": "a", "prompt": "b"}',
    b'{"prompt": "\xe9"}',
    json.dumps(GOOD | {"chosen": ""}).encode(),
    json.dumps(GOOD | {"rejected": None}).encode(),
    json.dumps(GOOD | {"system": "Be brief."}).encode(),
    json.dumps(GOOD | {"chosen": " is good" * 99}).encode(),
    json.dumps(GOOD | {"chosen_ids": [99999]}).encode(),
]
LINES = st.lists(st.sampled_from([json.dumps(GOOD).encode(), *BROKEN]), min_size=1, max_size=9)


@given(lines=LINES, rows_per_chunk=st.integers(1, 4))
def test_bad_rows_are_kept_apart_with_their_numbers_and_good_ones_are_what_they_are_alone(
    lines: list[bytes], rows_per_chunk: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("bad") / "rows.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    bad: list[BadRow] = []
    good = []
    for chunk in read_chunks(str(path), pair_fields(), rows_per_chunk, keep_bad=True):
        table, counts = tokenize_chunk(chunk, row_tokenizer(), SETTINGS, "pair", bad=bad.append)
        good += to_rows(table)
        assert counts.rows_read == len(chunk.rows) == counts.kept + counts.bad
    wrong = [number for number, line in enumerate(lines, start=1) if line in BROKEN]
    assert [row for _, row, _ in bad] == wrong
    assert all(file == str(path) and reason.startswith(f"{path} row {row}") for file, row, reason in bad)
    alone = tokenize_chunk(_chunk_of_good(path), row_tokenizer(), SETTINGS, "pair")[0]
    assert good == to_rows(alone) * (len(lines) - len(wrong))


def _chunk_of_good(path: Path) -> Any:
    own = path.with_name("good.jsonl")
    own.write_text(json.dumps(GOOD) + "\n")
    return next(read_chunks(str(own), pair_fields(), 10))


@pytest.mark.parametrize("line", BROKEN[:7])
def test_without_leave_the_first_bad_row_ends_the_reading(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + line + b"\n")
    with pytest.raises(UserError, match=r"rows.jsonl row 2"):
        list(read_chunks(str(path), pair_fields(), 10))
    with pytest.raises(UserError, match=r"rows.jsonl row 2"):
        check_files([str(path)], pair_fields())
    assert check_files([str(path)], pair_fields(), keep_bad=True) == []


def test_a_format_is_told_although_the_first_row_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(BROKEN[0] + b"\n" + json.dumps(GOOD).encode() + b"\n")
    assert rows_of_files([str(path)], None).name == "pairs"
    path.write_bytes(BROKEN[0] + b"\n")
    with pytest.raises(UserError, match=r"rows.jsonl row 1 is not JSON"):
        rows_of_files([str(path)], None)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"rows.jsonl holds no rows; give a file with rows"):
        rows_of_files([str(path)], None)


def bad(*numbers: int) -> list[BadRow]:
    return [("a.jsonl", number, f"a.jsonl row {number} is blank") for number in numbers]


def test_as_many_as_are_allowed_go_to_a_side_file(tmp_path: Path) -> None:
    rows = BadRows(tmp_path / "tokens", 3)
    assert rows.close(10) is None
    rows.add(bad(2, 4))
    rows.add(bad(7))
    said = rows.close(10)
    assert said
    assert said.startswith("3 of 10 rows are bad and left out")
    assert "a.jsonl row 2 is blank" in said
    lines = [json.loads(line) for line in (tmp_path / "tokens" / FILE).read_text().splitlines()]
    assert [(line["file"], line["row"], line["reason"]) for line in lines] == bad(2, 4, 7)
    with pytest.raises(UserError, match=r"4 rows or more are bad, more than data.max_bad_rows=3; .*row 2 is blank"):
        rows.add(bad(9))


@given(count=st.integers(0, 30), share=st.floats(0.01, 0.99))
def test_of_a_share_the_whole_decides(count: int, share: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    rows = BadRows(tmp_path_factory.mktemp("share"), share)
    rows.add(bad(*range(count)))
    if count > 30 * share:
        with pytest.raises(UserError, match="of 30 are bad, more than"):
            rows.close(30)
    else:
        assert (rows.close(30) is None) == (count == 0)


@pytest.mark.parametrize("value", [-1, 1.5, 0.0001, 0.2, 7])
def test_the_run_file_says_a_number_or_a_share(value: float) -> None:
    if value in (-1, 1.5):
        with pytest.raises(ValueError, match="max_bad_rows"):
            Data(max_bad_rows=value)
    else:
        assert Data(max_bad_rows=value).max_bad_rows == value
