"""Values from elsewhere: matched by content, refused by row, and not trusted before training has compared them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydpo.cli import main
from raydpo.config.schema import RunFile
from raydpo.data.shards import read_shard
from raydpo.errors import UserError
from raydpo.reference.maintenance import KeySummary, export_key, list_keys
from raydpo.stages.importing import Imported, import_values
from raydpo.stages.values import RunValues
from raydpo.workspace.prepared import prepared_datasets
from tests.prepared import PAIRS, prepare, prepared_run

pytestmark = pytest.mark.unit

VALUES = [{"ref_chosen_logps": -10.5 - i, "ref_rejected_logps": -20.25 - i} for i in range(5)]
FLAT = [value for pair in VALUES for value in pair.values()]
GIVEN = [pair | value for pair, value in zip(PAIRS, VALUES, strict=True)]


@pytest.fixture
def run(model: Path, tmp_path: Path, root: str) -> RunFile:
    """A run whose five pairs are prepared, with its store on disk or on S3."""
    return prepared_run(model, tmp_path, root)


def as_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path = path.with_suffix(".jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def as_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(list(rows)), path.with_suffix(".parquet"))
    return str(path.with_suffix(".parquet"))


def imported(run: RunFile, file: str) -> Imported:
    return import_values(RunValues(run).rows(), RunValues(run).store(), file)


def completions(run: RunFile) -> pa.FixedSizeBinaryArray:
    """Of the train rows, chosen and rejected in turn."""
    [dataset] = prepared_datasets(RunValues(run).rows())
    return dataset.completion_ids


@pytest.mark.parametrize("write", [as_jsonl, as_parquet])
def test_rows_are_matched_by_content_in_any_order_and_marked_as_unverified(
    write: Callable[[Path, Sequence[dict[str, Any]]], str], run: RunFile, tmp_path: Path
) -> None:
    stranger = GIVEN[0] | {"prompt": "Another film"}
    counts = imported(run, write(tmp_path / "values", [stranger, *reversed(GIVEN[1:])]))
    store = RunValues(run).store()
    assert counts == Imported(imported=8, known=0, unmatched=2, lacking=2, store=store.address)
    ids = completions(run)
    assert store.missing(ids).tolist() == [True] * 2 + [False] * 8
    assert store.lookup(ids[2:]).tolist() == FLAT[2:]
    assert len(store.unverified(ids)) == 2
    store.mark_verified(store.unverified(ids))
    assert store.unverified(ids) == []


def test_values_that_are_there_are_kept(run: RunFile, tmp_path: Path) -> None:
    imported(run, as_jsonl(tmp_path / "first", GIVEN[:2]))
    doubled = [row | {"ref_chosen_logps": -1.0} for row in GIVEN]
    counts = imported(run, as_jsonl(tmp_path / "second", doubled))
    assert (counts.imported, counts.known, counts.unmatched, counts.lacking) == (6, 4, 0, 0)
    assert RunValues(run).store().lookup(completions(run))[::2].tolist() == [-10.5, -11.5, -1, -1, -1]


def test_an_export_can_be_imported_into_another_store(run: RunFile, tmp_path: Path) -> None:
    imported(run, as_jsonl(tmp_path / "values", GIVEN))
    store, file = RunValues(run).store(), tmp_path / "values.parquet"
    assert run.reference.store
    export_key(run.reference.store, store.key.digest, file)
    other = run.model_copy(update={"reference": run.reference.model_copy(update={"store": str(tmp_path / "other")})})
    assert imported(other, str(file)).imported == 10
    assert np.array_equal(RunValues(other).store().lookup(completions(run)), store.lookup(completions(run)))


def test_a_list_of_the_tokens_values_is_summed(run: RunFile, tmp_path: Path) -> None:
    tokens = prepared_tokens(run)
    listed = [GIVEN[0] | {"ref_chosen_logps": [-0.5] * tokens[0]}]
    imported(run, as_jsonl(tmp_path / "values", listed))
    assert RunValues(run).store().lookup(completions(run)[:1])[0] == -0.5 * tokens[0]


def prepared_tokens(run: RunFile) -> list[int]:
    """Tokens of every chosen completion."""
    path = Path(run.output_dir) / "tokens/train/part-0.arrow"
    return [len(chosen) for chosen, _ in read_shard(path)["completions"].to_pylist()]


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"ref_chosen_logps": None}, "row 2: ref_chosen_logps is None; it must be a finite number"),
    "NaN": ({"ref_rejected_logps": float("nan")}, "row 2: ref_rejected_logps is nan; it must be a finite number"),
    "infinite": ({"ref_rejected_logps": float("-inf")}, "row 2: ref_rejected_logps is -inf"),
    "text": ({"ref_chosen_logps": "-1.5"}, "row 2: ref_chosen_logps is '-1.5'"),
    "an empty list": ({"ref_chosen_logps": []}, r"row 2: ref_chosen_logps is \[\]"),
    "a hole in a list": ({"ref_chosen_logps": [-1.0, None]}, r"row 2: ref_chosen_logps is \[-1.0, None\]"),
    "too short a list": (
        {"ref_chosen_logps": [-1.0, -2.0]},
        "row 2: ref_chosen_logps is over 2 tokens, but the completion has",
    ),
    "another number of tokens": (
        {"ref_rejected_tokens": 99},
        "row 2: ref_rejected_logps is over 99 tokens, but the co",
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
        imported(run, as_jsonl(tmp_path / "values", rows))
    assert RunValues(run).store().missing(completions(run)).all()


def test_a_file_without_the_columns_or_of_another_data_set_is_refused(run: RunFile, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="row 1: ref_chosen_logps is None"):
        imported(run, as_jsonl(tmp_path / "pairs", PAIRS))
    strangers = [row | {"prompt": "Another"} for row in GIVEN]
    with pytest.raises(UserError, match=r"none of the 6 completions of .* is among the run's prepared rows"):
        imported(run, as_jsonl(tmp_path / "strangers", strangers))


def test_the_command_imports_with_the_run_files_overrides(
    model: Path, run: RunFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_file = tmp_path / "run.yaml"
    run_file.write_text(f"name: small\noutput_dir: {run.output_dir}\nmodel: {{path: {model}}}\ndata: {{train: [x]}}\n")
    overrides = ["model.dtype=float32", f"reference.store={run.reference.store}", "data.max_length=64"]
    values = as_jsonl(tmp_path / "values", GIVEN[:3])
    assert main(["reference", "import", str(run_file), values, *overrides]) == 0
    assert "6 completions imported" in capsys.readouterr().out
    assert run.reference.store
    [directory] = list_keys(run.reference.store)
    assert KeySummary.of(directory).unverified == 6


def test_more_data_asks_only_for_what_is_new_and_a_duplicate_is_asked_for_once(run: RunFile, tmp_path: Path) -> None:
    imported(run, as_jsonl(tmp_path / "values", GIVEN))
    new = PAIRS[0] | {"prompt": "A new film"}
    prepare(run, [PAIRS[4], new, PAIRS[0], new, *PAIRS[:4]])
    datasets = prepared_datasets(RunValues(run).rows())
    missing = RunValues(run).store().missing(datasets[0].completion_ids)
    [(path, wanted)] = datasets[0].where(np.flatnonzero(missing))
    assert (path, wanted.tolist()) == (datasets[0].shards[0], [2, 3])


def test_a_completion_of_several_rows_has_one_value_and_another_one_is_a_mistake(run: RunFile, tmp_path: Path) -> None:
    bad = {"chosen": " is better", "rejected": " is bad", "ref_chosen_logps": -9.0}
    prepare(run, [PAIRS[0], PAIRS[0] | {"chosen": bad["chosen"]}])
    rounded = GIVEN[0] | bad | {"ref_rejected_logps": VALUES[0]["ref_rejected_logps"] + 0.25}
    assert imported(run, as_jsonl(tmp_path / "rounded", [GIVEN[0], rounded])).imported == 3
    assert RunValues(run).store().lookup(completions(run)).tolist() == [-10.5, -20.25, -9.0, -20.25]
    wrong = rounded | {"ref_rejected_logps": -30.0}
    says = r"values.jsonl row 2: ref_rejected_logps is -30, but ref_rejected_logps of row 1 is -20.25 for the same"
    with pytest.raises(UserError, match=says):
        imported(run, as_jsonl(tmp_path / "values", [GIVEN[0], wrong]))
