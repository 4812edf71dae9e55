"""Where rows come from: by the column that the run file names, or else by the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raydpo.config.schema import Data, RunFile
from raydpo.data.ingest import tokenize_chunk
from raydpo.data.reading import Chunk, read_chunks
from raydpo.data.shards import read_shard, to_rows, write_shard
from raydpo.data.sources import row_sources
from raydpo.data.tokens import TokenRow, TokenSettings
from raydpo.errors import UserError
from raydpo.stages.values import RunValues
from raydpo.workspace.provenance import made_from
from raydpo.workspace.rows import given_rows
from tests.helpers import row_tokenizer
from tests.models import save_tiny_model

pytestmark = pytest.mark.unit

PAIR = {"prompt": "The film", "chosen": " is fine", "rejected": " is bad"}
RANKED = {"prompt": "The film", "completions": [" is bad", " is fine"], "ranks": [2, 1]}
SETTINGS = TokenSettings(max_length=64, truncation="error", append_eos=True)


def tokenised(tmp_path: Path, data: Data, *rows: dict, others: bool = False) -> list[TokenRow]:
    """Rows of a file, as they come back from their shard."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    known = given_rows(data)
    [chunk] = read_chunks(str(path), known.fields, 100, data.ignore)
    assert isinstance(chunk, Chunk)
    table, _ = tokenize_chunk(chunk, row_tokenizer(), SETTINGS, known.kind, others=others)
    write_shard(table, tmp_path / "0.arrow")
    return to_rows(read_shard(tmp_path / "0.arrow"))


def reading(rows: str) -> Data:
    return Data.model_validate({"format": rows, "columns": {"source": "dataset"}})


@pytest.mark.parametrize(("kind", "row"), [("pairs", PAIR), ("ranked", RANKED)])
def test_a_row_keeps_its_source_and_its_name(tmp_path: Path, kind: str, row: dict) -> None:
    [found] = tokenised(tmp_path, reading(kind), {**row, "dataset": "news"})
    [bare] = tokenised(tmp_path, Data.model_validate({"format": kind}), {**row, "dataset": "news"})
    assert (found.source, bare.source) == ("news", None)
    assert (found.row_id, found.completions) == (bare.row_id, bare.completions)


def test_a_row_keeps_its_source_beside_a_completion_of_another_prompt(tmp_path: Path) -> None:
    rows = [{**PAIR, "prompt": prompt, "dataset": prompt} for prompt in ("The film", "A film")]
    found = tokenised(tmp_path, reading("pairs"), *rows, others=True)
    assert [row.source for row in found] == ["The film", "A film"]
    assert all(len(row.completions) == 3 for row in found)


@pytest.mark.parametrize("source", [None, "", " ", 3])
def test_a_row_without_a_source_is_refused_where_the_run_file_names_its_column(tmp_path: Path, source: object) -> None:
    with pytest.raises(UserError, match=r"row 2, column 'dataset', .*write where the row comes from"):
        tokenised(tmp_path, reading("pairs"), {**PAIR, "dataset": "news"}, {**PAIR, "dataset": source})


def test_rows_that_do_not_say_are_of_their_file(tmp_path: Path) -> None:
    [row] = tokenised(tmp_path, Data(), PAIR)
    [said] = tokenised(tmp_path, reading("pairs"), {**PAIR, "dataset": "news"})
    shards = [
        write_shard(read_shard(tmp_path / "0.arrow"), tmp_path / name)
        for name in ("part-00000-000000001.arrow", "part-00001-000000001.arrow", "part-00001-000001001.arrow")
    ]
    assert row_sources(shards, [row] * 3, ["/data/a.jsonl", "/data/b.jsonl"]) == ["a.jsonl", "b.jsonl", "b.jsonl"]
    assert row_sources(shards, [row] * 3, ["/a/x.jsonl", "/b/x.jsonl"]) == ["/a/x.jsonl", "/b/x.jsonl", "/b/x.jsonl"]
    assert row_sources(shards, [said] * 3, ["/data/a.jsonl", "/data/b.jsonl"]) == ["news"] * 3


def test_a_run_file_that_names_no_source_has_the_tokens_of_an_earlier_raydpo(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text(json.dumps(PAIR))
    columns = [_columns_of(tmp_path, named) for named in ({}, {"source": "dataset"})]
    assert "source" not in columns[0]
    assert columns[1] == {**columns[0], "source": "dataset"}


def _columns_of(folder: Path, columns: dict[str, str]) -> dict[str, str | None]:
    run = {
        "name": "x",
        "output_dir": str(folder / "out"),
        "model": {"path": str(folder / "model")},
        "data": {"train": [str(folder / "rows.jsonl")], "columns": columns},
    }
    found: dict[str, str | None] = made_from(RunValues(RunFile.model_validate(run)).token_source("train"))[
        "data.columns"
    ]
    return found
