"""Laws of rows with a label and of rows in order, from the file to the token shard."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.config.schema import Data, RunFile
from raydpo.data import shards
from raydpo.data.ingest import tokenize_chunk
from raydpo.data.ranked import tokenize_ranked
from raydpo.data.reading import Chunk, read_chunks
from raydpo.data.rows import Row, RowFormat, canonical_row, row_format
from raydpo.data.shards import Counts, ShardInfo, TokenManifest, to_rows
from raydpo.data.tokens import TokenRow, TokenSettings, tokenize_pair, tokenize_unpaired
from raydpo.errors import UserError
from raydpo.objective import contract
from raydpo.objective.contract import Objective, ScoredRows
from raydpo.stages.inputs import check_inputs
from raydpo.workspace.rows import check_format, given_rows, refuse_ties
from tests.helpers import row_tokenizer
from tests.models import save_tiny_model

pytestmark = pytest.mark.unit

PAIRS, UNPAIRED, RANKED = (row_format(name) for name in ("pairs", "unpaired", "ranked"))
WITH_MARGIN = row_format("pairs", {"margin": "margin"})
LABELLED = {"prompt": "The film", "completion": " is good", "label": True}
RANKS = {"prompt": "The film", "completions": [" is bad", " is good", " is fine"], "ranks": [3, 1, 2]}
SCORES = {"prompt": "The film", "completions": [" is bad", " is good", " is fine"], "scores": [-1, 7.5, 0.0]}
MARGIN = {"prompt": "The film", "chosen": " is good", "rejected": " is bad", "margin": 1.5}
SETTINGS = TokenSettings(64, "error", append_eos=True)


@pytest.fixture(params=["rows.jsonl", "rows.parquet"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def read(path: Path, row: dict[str, Any], rows: RowFormat) -> Row:
    """The canonical form of a file's only row."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps(row) + "\n")
    [chunk] = read_chunks(str(path), rows.fields, 10)
    [found] = chunk.rows
    return found


def test_every_format_has_a_canonical_form(file: Path) -> None:
    assert read(file, LABELLED, UNPAIRED) == LABELLED
    ordered = {"prompt": "The film", "completions": RANKS["completions"], "ranks": [2, 0, 1]}
    assert read(file, RANKS, RANKED) == ordered
    assert read(file, SCORES, RANKED) == ordered
    assert read(file, RANKS | {"scores": SCORES["scores"]}, RANKED) == ordered
    assert read(file, MARGIN, WITH_MARGIN) == MARGIN


def test_completions_are_texts_messages_or_exact_ids(file: Path) -> None:
    yes, no = ([{"role": "assistant", "content": text}] for text in ("Yes.", "No."))
    chat = {"prompt": [{"role": "user", "content": "Good?"}], "completions": [yes, no], "ranks": [1, 2]}
    assert read(file, chat, RANKED)["completions"] == [yes, no]
    ids = {"prompt_ids": [1], "completions_ids": [[3], [4, 5]], "ranks": [2, 1]}
    assert read(file, ids, RANKED) == {"prompt": [1], "completions": [[3], [4, 5]], "ranks": [1, 0]}


def test_the_run_file_names_columns(file: Path) -> None:
    data = Data.model_validate({"format": "ranked", "columns": {"completions": "answers", "scores": "stars"}})
    row = {"prompt": "The film", "answers": [" is bad", " is good"], "stars": [1, 5]}
    assert read(file, row, given_rows(data))["ranks"] == [1, 0]


@pytest.mark.parametrize(
    ("good", "change", "rows", "says"),
    [
        (LABELLED, {"label": 1}, UNPAIRED, "column 'label', is 1; write true for a completion that is wanted"),
        (LABELLED, {"label": "true"}, UNPAIRED, "column 'label', is 'true'; write true"),
        (LABELLED, {"label": None}, UNPAIRED, "column 'label', is None; write true"),
        (RANKS, {"completions": [" is bad"], "ranks": [1]}, RANKED, " has one completion, .*; give two or more"),
        (RANKS, {"completions": []}, RANKED, r"column 'completions', is \[\]; give a list of completions"),
        (RANKS, {"completions": " is bad"}, RANKED, "column 'completions', is ' is bad'; give a list of completions"),
        (RANKS, {"completions": ["a", "", "b"]}, RANKED, "column 'completions', completion 2, is ''; give text"),
        (RANKS, {"ranks": [1, 2]}, RANKED, " has 3 completions and 2 ranks; give one a completion"),
        (
            RANKS,
            {"ranks": [1.0, 2.5, 3.0]},
            RANKED,
            r"column 'ranks', is \[1.0, 2.5, 3.0\]; write a list of whole",
        ),
        (RANKS, {"ranks": [True, False, True]}, RANKED, r"column 'ranks', is \[True.*; write a list of whole numbers"),
        (RANKS, {"ranks": None}, RANKED, " has neither ranks nor scores; give one number a completion"),
        (SCORES, {"scores": [1.0, 2.0]}, RANKED, " has 3 completions and 2 scores; give one a completion"),
        (
            SCORES,
            {"scores": [1.0, float("nan"), 2.0]},
            RANKED,
            r"column 'scores', is \[1.0, nan, 2.0\]; write a",
        ),
        (SCORES, {"scores": [1.0, float("inf"), 2.0]}, RANKED, r"column 'scores', is \[1.0, inf, 2.0\]; write a"),
        (
            SCORES,
            {"ranks": [1, 2, 3]},
            RANKED,
            ": by its rank, 1 against 2, .* by its score, -1 against 7.5",
        ),
        (
            MARGIN,
            {"margin": float("nan")},
            WITH_MARGIN,
            "column 'margin', is nan; write a",
        ),
        (
            MARGIN,
            {"margin": "wide"},
            WITH_MARGIN,
            "column 'margin', is 'wide'; write a fin",
        ),
    ],
)
def test_a_bad_row_names_file_row_value_and_remedy(
    good: dict[str, Any], change: dict[str, Any], rows: RowFormat, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (good, good | change)))
    with pytest.raises(UserError, match=rf"rows.jsonl row 2,?{says if says[0] in ' :' else ' ' + says}"):
        list(read_chunks(str(path), rows.fields, 10))


@pytest.mark.parametrize(("row", "rows"), [(LABELLED, PAIRS), (RANKS, UNPAIRED), (LABELLED, RANKED)])
def test_rows_of_another_format_are_told_where_to_say_it(row: dict[str, Any], rows: RowFormat) -> None:
    with pytest.raises(UserError, match=r"has no column .* say in data.format what a row is"):
        canonical_row(row, rows.fields, "a.jsonl row 1")


@pytest.mark.parametrize(("row", "rows"), [(LABELLED, UNPAIRED), (RANKS, RANKED)])
def test_a_completion_of_a_pair_beside_others_is_no_silent_loss(row: dict[str, Any], rows: RowFormat) -> None:
    with pytest.raises(UserError, match=r"columns that would be lost: 'rejected' \(the worse completion of a pair\)"):
        canonical_row(row | {"rejected": " is awful"}, rows.fields, "a.jsonl row 1")


def ranked(completions: list[Any], ranks: list[int], settings: TokenSettings = SETTINGS) -> TokenRow | None:
    row = {"prompt": "The film", "completions": completions, "ranks": ranks}
    return tokenize_ranked(row, row_tokenizer(), settings).row


IDS = st.lists(st.integers(5, 8), min_size=1, max_size=2)


@given(st.lists(st.tuples(IDS, st.integers(0, 3)), min_size=2, max_size=6))
def test_the_order_of_a_row_is_kept_and_each_completion_stands_there_once(answers: list[tuple[list[int], int]]) -> None:
    completions, ranks = [ids for ids, _ in answers], [rank for _, rank in answers]
    outcome = tokenize_ranked({"prompt": [1], "completions": completions, "ranks": ranks}, row_tokenizer(), SETTINGS)
    best = {tuple(ids): min(rank for other, rank in answers if other == ids) for ids in completions}
    assert outcome.merged == len(answers) - len(best)
    if outcome.row is None:
        assert outcome.event == ("identical" if len(best) == 1 else "tied")
        assert len(set(best.values())) == 1
        return
    found = dict(zip(map(tuple, outcome.row.completions), outcome.row.columns["rank"], strict=True))
    assert found.keys() == best.keys()
    for one, other in combinations(best, 2):
        assert (found[one] < found[other]) == (best[one] < best[other])
    rank = list(outcome.row.columns["rank"])
    assert rank == sorted(rank)
    assert set(rank) == set(range(rank[-1] + 1))


def test_a_ranked_row_of_two_is_the_pair_with_its_tokens_and_its_name() -> None:
    pair = tokenize_pair({"prompt": "The film", "chosen": " is good", "rejected": " is bad"}, row_tokenizer(), SETTINGS)
    row = ranked([" is bad", " is good"], [1, 0])
    assert row
    assert pair.row
    assert (row.row_id, row.prompt_ids, row.completions) == (
        pair.row.row_id,
        pair.row.prompt_ids,
        pair.row.completions,
    )


def test_labels_and_margins_are_columns_of_completions() -> None:
    unpaired = tokenize_unpaired(LABELLED | {"label": False}, row_tokenizer(), SETTINGS).row
    assert unpaired
    assert unpaired.columns == {"label": [False]}
    pair = tokenize_pair(MARGIN, row_tokenizer(), SETTINGS).row
    assert pair
    assert pair.columns == {"margin": [1.5, 0.0]}, "the better one's minus the worse one's is the margin"


def test_what_becomes_of_ranked_rows_is_counted() -> None:
    rows = [
        {"prompt": "The film", "completions": [" is good", " is bad"], "ranks": [0, 1]},
        {"prompt": "The film", "completions": [" is good", " is bad", " is bad"], "ranks": [0, 1, 1]},
        {"prompt": "The film", "completions": [" is good", " is bad", " is fine"], "ranks": [0, 1, 1]},
        {"prompt": "The film", "completions": [" is good", " is bad"], "ranks": [0, 0]},
        {"prompt": "The film", "completions": [" is good", " is good"], "ranks": [0, 1]},
        {"prompt": "The film", "completions": [" is good", " is bad" * 30], "ranks": [0, 1]},
    ]
    settings = TokenSettings(64, "drop", append_eos=True)
    table, counts = tokenize_chunk(Chunk("a", 1, rows), row_tokenizer(), settings, "ranked")
    assert counts == Counts(
        rows_read=6, kept=3, dropped_too_long=1, identical=1, tied=1, with_ties=1, merged_completions=2
    )
    assert [len(row.completions) for row in to_rows(table)] == [2, 2, 3]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (
            {"format": "unpaired", "columns": {"chosen": "a"}},
            "data.columns.chosen is set, and rows of data.format",
        ),
        ({"columns": {"label": "a"}}, "data.columns.label is set, and rows of data.format=pairs have no such column"),
        ({"format": "ranked", "columns": {"margin": "a"}}, "data.columns.margin is set"),
        ({"format": "ranked", "ignore": ["scores"]}, "data.ignore names scores, which is read"),
    ],
)
def test_a_column_that_no_row_of_the_format_has_is_refused(data: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Data.model_validate(data)
    Data.model_validate({"ignore": ["scores", "label", "completions"]})  # which a pair does not have


def reading(unit: Any, *needs: str) -> Objective:
    """An objective of which only this much is looked at."""
    return Objective(
        loss=ScoredRows.logps,
        metrics=lambda _: {},
        mean_over=unit,
        compares=ScoredRows.logps,
        needs=frozenset(needs),
    )


@pytest.mark.parametrize(
    ("rows", "objective", "says"),
    [
        (UNPAIRED, reading("pairs"), "rows of data.format=unpaired have one each; choose a loss of single completions"),
        (UNPAIRED, reading("rows", "rank"), "needs completions in order, .* set data.format: ranked"),
        (PAIRS, reading("pairs", "margin"), "the rows have none; name their column in data.columns.margin"),
        (RANKED, reading("pairs", "margin"), "the rows have none; name their column in data.columns.margin"),
    ],
)
def test_a_loss_that_reads_what_the_rows_lack_is_refused(rows: RowFormat, objective: Objective, says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_format(rows, objective)


@pytest.mark.parametrize(
    ("rows", "objective"),
    [
        (PAIRS, reading("pairs", "ref_logps")),
        (PAIRS, reading("completions", "ref_logps", "label")),  # the chosen completion is the wanted one
        (PAIRS, reading("rows", "rank")),
        (WITH_MARGIN, reading("pairs", "margin")),
        (RANKED, reading("pairs")),
        (RANKED, reading("rows", "rank")),
        (UNPAIRED, reading("completions", "label")),
    ],
)
def test_a_loss_that_finds_what_it_reads_is_taken(rows: RowFormat, objective: Objective) -> None:
    check_format(rows, objective)


def test_ties_are_refused_by_a_loss_on_whole_orders_and_by_no_other() -> None:
    tied = TokenManifest("ranked", [ShardInfo("a", 9, "", 0)], Counts(kept=9, with_ties=2), columns=["rank"])
    with pytest.raises(UserError, match="2 of 9 rows have two completions of one rank; give every completion a rank"):
        refuse_ties(tied, reading("rows", "rank"))
    refuse_ties(tied, reading("pairs"))
    refuse_ties(replace(tied, counts=Counts(kept=9)), reading("rows", "rank"))


@pytest.mark.parametrize(
    ("loss_type", "says"),
    [
        ("sigmoid", "rows of data.format=unpaired have one each; choose a loss of single completions"),
        ("plackett_luce", "needs completions in order"),
        ("kto", None),
    ],
)
def test_rows_and_loss_that_do_not_go_together_are_told_before_anything_is_read(
    loss_type: str, says: str | None, tmp_path: Path
) -> None:
    save_tiny_model(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text(json.dumps(LABELLED) + "\n")
    tree = {
        "name": "a",
        "output_dir": str(tmp_path / "out"),
        "model": {"path": str(tmp_path / "model")},
        "data": {"train": [str(tmp_path / "rows.jsonl")], "format": "unpaired"},
        "train": {"objective": {"loss_type": loss_type}},
    }
    run = RunFile.model_validate(tree)
    if says is None:
        check_inputs(run, "run")
        return
    with pytest.raises(UserError, match=says):
        check_inputs(run, "run")


def test_an_objective_knows_every_column_that_rows_may_have() -> None:
    assert shards.COLUMNS.keys() <= contract.COLUMNS.keys()
