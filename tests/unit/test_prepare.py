"""What prepare promises without a cluster: no row is lost on the way, and nothing that is not its own is removed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.config.schema import RunFile
from raydpo.data.ledger import RowLedger
from raydpo.data.paths import Found
from raydpo.data.rows import pair_fields
from raydpo.data.shards import Counts
from raydpo.data.tokens import TokenSettings
from raydpo.errors import UserError
from raydpo.reference.dataset import MANIFEST
from raydpo.runtime import prepare
from raydpo.runtime.feed import readers
from raydpo.runtime.feed.readers import never_ends_the_data, read_files
from raydpo.runtime.prepare import Source, Tokeniser, check_something_is_left, clear_tokens
from raydpo.stages.inputs import check_inputs
from raydpo.workspace.own_files import clear_ray_files
from tests.models import save_tiny_model

pytestmark = pytest.mark.unit

PAIR = {"prompt": "The film", "chosen": " is good", "rejected": " is bad"}


def chunks_of(path: Path, rows: int, rows_per_chunk: int) -> list[dict[str, Any]]:
    """A file of so many rows as its reading task sends it on."""
    path.write_text("".join(json.dumps(PAIR) + "\n" for _ in range(rows)))
    batch = {"files": [json.dumps([[0, str(path)]])]}
    return list(read_files(batch, fields=pair_fields(), rows_per_chunk=rows_per_chunk, ignore=()))


def arrived(path: Path, chunks: list[dict[str, Any]]) -> list[int]:
    """Rows of the file when these chunks of it, and no others, have arrived."""
    ledger = RowLedger([str(path)])
    for chunk in chunks:
        [total] = chunk["total"]
        ledger.add(0, chunk["first_row"][0], len(json.loads(chunk["rows"][0])), None if total < 0 else total)
    return ledger.close()


@given(rows=st.integers(0, 12), rows_per_chunk=st.integers(1, 5), data=st.data())
def test_a_chunk_that_does_not_arrive_is_missed(
    rows: int, rows_per_chunk: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("read") / "rows.jsonl"
    chunks = chunks_of(path, rows, rows_per_chunk)
    assert arrived(path, chunks) == [rows]
    lost = data.draw(st.integers(0, len(chunks) - 1))
    with pytest.raises(RuntimeError, match=r"rows\.jsonl"):
        arrived(path, chunks[:lost] + chunks[lost + 1 :])


def test_a_file_whose_reader_counted_more_is_not_whole() -> None:
    ledger = RowLedger(["a.jsonl", "b.jsonl"])
    ledger.add(0, 1, 3, 3)
    ledger.add(1, 1, 3, 4)
    with pytest.raises(RuntimeError, match=r"3 of 4 rows of b\.jsonl"):
        ledger.close()


def test_a_stop_iteration_is_an_error_and_no_end_of_the_data() -> None:
    @never_ends_the_data
    def work(rows: list[int]) -> int:
        return next(row for row in rows if row < 0)

    assert work([-1]) == -1
    with pytest.raises(RuntimeError, match="work has raised StopIteration in the middle of the data"):
        work([1])


def test_every_map_function_of_ours_is_safe_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise StopIteration

    [chunk] = chunks_of(tmp_path / "rows.jsonl", 3, 5)
    tokeniser = object.__new__(Tokeniser)
    tokeniser._source = small_source(tmp_path, 0.0)
    tokeniser._tokenizer = None
    monkeypatch.setattr(prepare, "tokenize_chunk", stop)
    with pytest.raises(RuntimeError, match=r"Tokeniser\.__call__ has raised StopIteration"):
        tokeniser(chunk)
    monkeypatch.setattr(readers, "read_shard", stop)
    with pytest.raises(RuntimeError, match="read_rows has raised StopIteration"):
        readers.read_rows(pa.table({"shard": [0], "offset": [0]}), shards=["absent.arrow"], scorers=None)
    monkeypatch.setattr(readers, "read_chunks", stop)
    with pytest.raises(RuntimeError, match="StopIteration"):
        chunks_of(tmp_path / "rows.jsonl", 3, 5)


def test_prepare_removes_its_own_files_and_nothing_else(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    ours = [MANIFEST, "part-00000-000000001.arrow", ".part-00012-000001001.arrow.0a1b2c3d.tmp"]
    theirs = ["pairs.jsonl", "part-0.arrow", "part-00000-000000001.arrow.bak", "deep/part-00000-000000001.arrow"]
    (tokens / "deep").mkdir(parents=True)
    for name in ours + theirs:
        (tokens / name).write_text("x")
    clear_tokens(tokens)
    assert sorted(str(path.relative_to(tokens)) for path in tokens.rglob("*") if path.is_file()) == sorted(theirs)


def test_a_directory_with_nothing_but_tokens_goes_with_them(tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / MANIFEST).write_text("x")
    clear_tokens(tmp_path / "tokens")
    assert not (tmp_path / "tokens").exists()
    clear_tokens(tmp_path / "tokens")  # where there is none, there is nothing to do


def small_source(tmp_path: Path, held_out_fraction: float) -> Source:
    return Source(
        files=[Found("pairs.jsonl", 1)],
        fields=pair_fields(),
        kind="pair",
        tokenizer="model",
        settings=TokenSettings(8, "drop", append_eos=True),
        rows_per_shard=4,
        train=tmp_path / "train",
        held_out=tmp_path / "held_out",
        held_out_fraction=held_out_fraction,
        ignore=(),
        day=None,
    )


@pytest.mark.parametrize(
    ("fraction", "counts", "train", "held_out", "says"),
    [
        (0.0, Counts(rows_read=3, dropped_too_long=2, identical=1), 0, 0, "2 are too long, .*raise data.max_length"),
        (0.0, Counts(rows_read=3, dropped_too_long=1, identical=2), 0, 0, "give rows whose completions differ"),
        (0.0, Counts(rows_read=3, tied=2, identical=1), 0, 0, "2 completions of equal rank only; give rows with a com"),
        (0.1, Counts(rows_read=3, kept=3), 1, 0, "data.held_out_fraction=0.1 holds back .* caught none; raise it"),
        (0.9, Counts(rows_read=3, kept=3), 0, 1, "data.held_out_fraction=0.9 has caught every prompt .*; lower it"),
    ],
)
def test_a_side_without_rows_is_told_its_own_reason(
    fraction: float, counts: Counts, train: int, held_out: int, says: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        check_something_is_left(small_source(tmp_path, fraction), counts, train=train, held_out=held_out)


@pytest.mark.parametrize(
    ("key", "below"),
    [
        ("data.train", "tokens/train"),
        ("data.held_out", "tokens/mine/deeper"),
        ("evaluate.prompts", "train/ray"),
        ("model.path", "exports/step-000010"),
        ("reference.model", "train"),
    ],
)
@pytest.mark.parametrize("link", [False, True])
def test_an_input_among_the_own_output_is_refused_before_anything_is_removed(
    key: str, below: str, link: bool, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    folder = output / below
    folder.mkdir(parents=True)
    for place in (folder, tmp_path):
        (place / "pairs.jsonl").write_text(json.dumps(PAIR) + "\n")
        (place / "config.json").write_text("{}")
    save_tiny_model(tmp_path)
    if link:
        (tmp_path / "elsewhere").symlink_to(folder)
        folder = tmp_path / "elsewhere"
    tree: dict[str, Any] = {
        "name": "a",
        "output_dir": str(output),
        "model": {"path": str(tmp_path)},
        "data": {"train": [str(tmp_path / "pairs.jsonl")]},
        "evaluate": {"prompts": [str(tmp_path / "pairs.jsonl")]},
        "sampler": {"max_model_len": 256},
    }
    check_inputs(RunFile.model_validate(tree), "run")
    section, name = key.split(".")
    tree.setdefault(section, {})[name] = str(folder) if section in ("model", "reference") else [f"{folder}/*.jsonl"]
    with pytest.raises(UserError, match=rf"{key}: .* lies in {output}/\w+, which the run's own stages write over"):
        check_inputs(RunFile.model_validate(tree), "run")
    assert (folder / "pairs.jsonl").exists()


def test_a_file_without_rows_among_others_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in (("a.jsonl", json.dumps(PAIR)), ("b.jsonl", "")):
        (tmp_path / name).write_text(text)
    save_tiny_model(tmp_path)
    tree = {"name": "a", "output_dir": str(tmp_path / "out"), "model": {"path": str(tmp_path)}}
    check_inputs(RunFile.model_validate(tree | {"data": {"train": [f"{tmp_path}/*.jsonl"]}}), "prepare")
    assert capsys.readouterr().out == f"data.train: {tmp_path}/b.jsonl holds no rows and is left out\n"


def test_what_ray_train_leaves_goes_and_what_lies_beside_it_stays(tmp_path: Path) -> None:
    group = tmp_path / "ray" / "group"
    (group / "checkpoint_2026-11-27_20-51-25.112074").mkdir(parents=True)
    of_ray = [
        group / "checkpoint_manager_snapshot.json",
        group / ".validate_storage_marker",
        group / "checkpoint_2026-11-27_20-51-25.112074" / "export.json",
    ]
    mine = [tmp_path / "ray" / "pairs.jsonl", group / "notes.txt"]
    for path in (*of_ray, *mine):
        path.write_text("")
    clear_ray_files(tmp_path / "ray")
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(mine)
    for path in mine:
        path.unlink()
    clear_ray_files(tmp_path / "ray")
    assert list(tmp_path.iterdir()) == []
    clear_ray_files(tmp_path / "absent")
