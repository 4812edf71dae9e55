"""Values from elsewhere: matched by content, refused by row, and not trusted before training has compared them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydpo.cli import main
from raydpo.config.schema import RunFile
from raydpo.data.formats import Chunk
from raydpo.data.shards import TokenManifest, read_shard, tokenize_chunk, write_shard
from raydpo.data.tokens import TokenSettings
from raydpo.errors import UserError
from raydpo.model.tokenizer import load_row_tokenizer
from raydpo.reference.dataset import Dataset
from raydpo.reference.maintenance import KeySummary, export_key, list_keys
from raydpo.stages.importing import Imported, import_values, missing_rows, prepared_datasets
from raydpo.workspace.layout import reference_store
from raydpo.workspace.provenance import made_from, token_source
from tests.models import save_tiny_model

pytestmark = pytest.mark.unit

PAIRS = [{"prompt": f"The film {i}", "chosen": f" is good {i}", "rejected": " is bad"} for i in range(5)]
VALUES = [{"ref_chosen_logps": -10.5 - i, "ref_rejected_logps": -20.25 - i} for i in range(5)]
GIVEN = [pair | value for pair, value in zip(PAIRS, VALUES, strict=True)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_tiny_model(path)
    return path


@pytest.fixture
def run(model: Path, tmp_path: Path, root: str) -> RunFile:
    """A run whose five pairs are prepared, in shards of three and two rows, with its store on disk or on S3."""
    run = RunFile.model_validate(
        {
            "name": "small",
            "output_dir": str(tmp_path / "out"),
            "model": {"path": str(model), "dtype": "float32"},
            "data": {"train": [str(tmp_path / "pairs.jsonl")], "max_length": 64},
            "reference": {"store": root},
        }
    )
    prepare(run, PAIRS)
    return run


def prepare(run: RunFile, pairs: Sequence[dict[str, str]]) -> None:
    """What the prepare stage does, without Ray."""
    directory = Path(run.output_dir) / "tokens/train"
    as_jsonl(Path(run.data.train[0]), pairs)
    settings, tokenizer = TokenSettings(64, "error", append_eos=True), load_row_tokenizer(run.model.path)
    shards = []
    for first in range(0, len(pairs), 3):
        table, counts = tokenize_chunk(Chunk("", 1, list(pairs[first : first + 3])), tokenizer, settings, "pair")
        shards.append(write_shard(table, directory / f"part-{first}.arrow"))
    TokenManifest("pair", shards, counts, made_from=made_from(token_source(run, "train"))).write(
        directory / "manifest.json"
    )


def as_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path = path.with_suffix(".jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def as_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(list(rows)), path.with_suffix(".parquet"))
    return str(path.with_suffix(".parquet"))


def train_rows(run: RunFile) -> pa.FixedSizeBinaryArray:
    [dataset] = prepared_datasets(run)
    return dataset.row_ids


@pytest.mark.parametrize("write", [as_jsonl, as_parquet])
def test_rows_are_matched_by_content_in_any_order_and_marked_as_unverified(
    write: Callable[[Path, Sequence[dict[str, Any]]], str], run: RunFile, tmp_path: Path
) -> None:
    stranger = GIVEN[0] | {"prompt": "Another film"}
    counts = import_values(run, write(tmp_path / "values", [stranger, *reversed(GIVEN[1:])]))
    store = reference_store(run)
    assert counts == Imported(imported=4, known=0, unmatched=1, lacking=1, store=store.address)
    rows = train_rows(run)
    assert store.missing(rows).tolist() == [True, False, False, False, False]
    assert store.lookup(rows[1:]).tolist() == [list(value.values()) for value in VALUES[1:]]
    assert len(store.unverified(rows)) == 2
    store.mark_verified(store.unverified(rows))
    assert store.unverified(rows) == []


def test_values_that_are_there_are_kept(run: RunFile, tmp_path: Path) -> None:
    import_values(run, as_jsonl(tmp_path / "first", GIVEN[:2]))
    doubled = [row | {"ref_chosen_logps": -1.0} for row in GIVEN]
    counts = import_values(run, as_jsonl(tmp_path / "second", doubled))
    assert (counts.imported, counts.known, counts.unmatched, counts.lacking) == (3, 2, 0, 0)
    assert reference_store(run).lookup(train_rows(run))[:, 0].tolist() == [-10.5, -11.5, -1, -1, -1]


def test_an_export_can_be_imported_into_another_store(run: RunFile, tmp_path: Path) -> None:
    import_values(run, as_jsonl(tmp_path / "values", GIVEN))
    store, file = reference_store(run), tmp_path / "values.parquet"
    assert run.reference.store
    export_key(run.reference.store, store.key.digest, file)
    other = run.model_copy(update={"reference": run.reference.model_copy(update={"store": str(tmp_path / "other")})})
    assert import_values(other, str(file)).imported == 5
    assert np.array_equal(reference_store(other).lookup(train_rows(run)), store.lookup(train_rows(run)))


def test_a_list_of_the_tokens_values_is_summed(run: RunFile, tmp_path: Path) -> None:
    tokens = prepared_tokens(run)
    listed = [GIVEN[0] | {"ref_chosen_logps": [-0.5] * tokens[0]}]
    import_values(run, as_jsonl(tmp_path / "values", listed))
    assert reference_store(run).lookup(train_rows(run)[:1])[0, 0] == -0.5 * tokens[0]


def prepared_tokens(run: RunFile) -> list[int]:
    """Tokens of every chosen completion."""
    path = Path(run.output_dir) / "tokens/train/part-0.arrow"
    return [len(ids) for ids in read_shard(path)["chosen_ids"].to_pylist()]


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"ref_chosen_logps": None}, "row 2: ref_chosen_logps is None; it must be a finite number"),
    "NaN": ({"ref_rejected_logps": float("nan")}, "row 2: ref_rejected_logps is nan; it must be a finite number"),
    "infinite": ({"ref_rejected_logps": float("-inf")}, "row 2: ref_rejected_logps is -inf"),
    "text": ({"ref_chosen_logps": "-1.5"}, "row 2: ref_chosen_logps is '-1.5'"),
    "an empty list": ({"ref_chosen_logps": []}, r"row 2: ref_chosen_logps is \[\]"),
    "a hole in a list": ({"ref_chosen_logps": [-1.0, None]}, r"row 2: ref_chosen_logps is \[-1.0, None\]"),
    "too short a list": (
        {"ref_chosen_logps": [-1.0, -2.0]},
        "row 2: ref_chosen_logps is over 2 tokens, but the chosen",
    ),
    "another number of tokens": (
        {"ref_rejected_tokens": 99},
        "row 2: ref_rejected_logps is over 99 tokens, but the re",
    ),
    "no completion": ({"rejected": ""}, "row 2, column 'rejected', is ''"),
    "a row too long": ({"prompt": "a film " * 99}, "row 2: the prompt .* max_length=64"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_row_without_a_good_value_is_named_and_nothing_is_imported(
    mistake: str, run: RunFile, tmp_path: Path
) -> None:
    change, says = MISTAKES[mistake]
    rows = [GIVEN[0], GIVEN[1] | change, *GIVEN[2:]]
    with pytest.raises(UserError, match=rf"values.jsonl {says}"):
        import_values(run, as_jsonl(tmp_path / "values", rows))
    assert reference_store(run).missing(train_rows(run)).all()


def test_a_file_without_the_columns_or_of_another_data_set_is_refused(run: RunFile, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="row 1: ref_chosen_logps is None"):
        import_values(run, as_jsonl(tmp_path / "pairs", PAIRS))
    strangers = [row | {"prompt": "Another"} for row in GIVEN]
    with pytest.raises(UserError, match=r"none of the 5 rows of .* is among the run's prepared rows"):
        import_values(run, as_jsonl(tmp_path / "strangers", strangers))


def test_the_command_imports_with_the_run_files_overrides(
    model: Path, run: RunFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_file = tmp_path / "run.yaml"
    run_file.write_text(f"name: small\noutput_dir: {run.output_dir}\nmodel: {{path: {model}}}\ndata: {{train: [x]}}\n")
    overrides = ["model.dtype=float32", f"reference.store={run.reference.store}", "data.max_length=64"]
    values = as_jsonl(tmp_path / "values", GIVEN[:3])
    assert main(["reference", "import", str(run_file), values, *overrides]) == 0
    assert "3 rows imported" in capsys.readouterr().out
    assert run.reference.store
    [directory] = list_keys(run.reference.store)
    assert KeySummary.of(directory).unverified_rows == 3


def test_more_data_asks_only_for_what_is_new_and_a_duplicate_is_asked_for_once(run: RunFile, tmp_path: Path) -> None:
    import_values(run, as_jsonl(tmp_path / "values", GIVEN))
    new = PAIRS[0] | {"prompt": "A new film"}
    prepare(run, [PAIRS[4], new, PAIRS[0], new, *PAIRS[:4]])
    datasets = prepared_datasets(run)
    [work] = missing_rows(datasets, reference_store(run).missing(datasets[0].row_ids))
    assert (work[0], work[1].tolist()) == (datasets[0].shards[0], [1])


def test_work_is_cut_by_token_shard_over_all_datasets(run: RunFile) -> None:
    [train] = prepared_datasets(run)
    held_out: Dataset = replace(train, shards=("x", "y"))
    missing = np.asarray([1, 0, 1, 0, 0, 0, 0, 0, 1, 1], dtype=bool)
    work = [(path, offsets.tolist()) for path, offsets in missing_rows([train, held_out], missing)]
    assert work == [(train.shards[0], [0, 2]), ("y", [0, 1])]
    assert list(missing_rows([train, held_out], np.zeros(10, dtype=bool))) == []
