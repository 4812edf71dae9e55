"""Laws of formats: each is told by its first rows, gives our row, and takes no row for what it is not."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydpo.config.schema import Data, Format, Sft
from raydpo.data.detecting import read_as, rows_of_files
from raydpo.data.formats import FOR_SFT, FORMATS, detect, first_values
from raydpo.data.formats.contract import Format as Shape
from raydpo.data.own import OwnFunction
from raydpo.data.reading import read_chunks
from raydpo.data.rows import Row, RowFormat, canonical_row
from raydpo.errors import UserError
from raydpo.workspace.rows import given_rows, given_sft_rows
from tests.formats import ASK, BAD, CHAT, EXAMPLES, GOOD, SYSTEM, said, user

pytestmark = pytest.mark.unit


def write(path: Path, *rows: dict[str, Any]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: str, rows: RowFormat, *ignore: str) -> list[Row]:
    return [row for chunk in read_chunks(path, rows.fields, 100, ignore, rows.convert) for row in chunk.rows]


def test_the_run_file_names_the_formats_that_there_are_and_each_has_examples() -> None:
    assert list(get_args(Format)) == list(FORMATS)
    assert EXAMPLES.keys() == FORMATS.keys()


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_row_as_it_is_published_is_told_and_becomes_ours(name: str, suffix: str, tmp_path: Path) -> None:
    for number, (raw, ours) in enumerate(EXAMPLES[name]):
        path = write(tmp_path / f"{number}.{suffix}", raw)
        found = rows_of_files([path], None)
        assert (found.name, found.kind) == (name, FORMATS[name].kind)
        assert read(path, found) == [ours]
        assert read(path, rows_of_files([path], name)) == [ours], "named, it is read as it is when it is detected"


@pytest.mark.parametrize("name", FORMATS)
def test_a_column_with_a_meaning_that_a_format_does_not_read_is_refused(name: str, tmp_path: Path) -> None:
    for raw, ours in EXAMPLES[name]:
        path = write(tmp_path / "rows.jsonl", raw | {"images": ["cat.png"]})
        rows = rows_of_files([path], None)
        with pytest.raises(UserError, match=r"rows.jsonl row 1.* columns that would be lost: 'images'"):
            read(path, rows)
        assert read(path, rows_of_files([path], None, ["images"]), "images") == [ours]


KEYS = sorted({key for examples in EXAMPLES.values() for raw, _ in examples for key in raw})
PARTS = ["role", "content", "from", "value", "rank", "completion", "answer", "response", "overall_score"]
SCALARS = st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text("ab\ud800", max_size=3)
WORDS = ["user", "assistant", "human", "function_call", '{"name": "f"}', "\n\nHuman: a\n\nAssistant: b"]
SCALARS |= st.sampled_from(WORDS)
ITEMS = SCALARS | st.dictionaries(st.sampled_from(PARTS), SCALARS | st.lists(SCALARS, max_size=2), max_size=3)
VALUES = ITEMS | st.lists(ITEMS, max_size=3) | st.lists(st.lists(SCALARS, max_size=3), max_size=2)
ROWS = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6)
PUBLISHED = st.sampled_from([raw for examples in EXAMPLES.values() for raw, _ in examples])


@settings(max_examples=200)
@given(first=PUBLISHED | ROWS, change=ROWS, shape=st.sampled_from([*FORMATS.values(), *FOR_SFT.values()]))
def test_any_row_becomes_one_of_ours_or_is_named(first: Row, change: Row, shape: Shape) -> None:
    with suppress(UserError):  # else any of them, as if the run file named it
        shape = detect(first, "a.jsonl")
    before = json.dumps([first, change])
    rows = read_as(shape, first, "a.jsonl")
    assert rows.convert
    for raw in (first, first | change, change):
        refusal = "a.jsonl row 1"
        row = None
        try:
            ours, place = rows.convert(raw, "a.jsonl row 1")
            row = canonical_row(ours, rows.fields, place)
        except UserError as error:
            refusal = str(error)
        assert refusal.startswith("a.jsonl row 1")
        assert row is None or row.keys() == {field.name for field in rows.fields} - {"scores"}
    assert json.dumps([first, change]) == before, "the rows of others are left as they are"


def test_every_column_that_first_rows_have_tells_although_some_are_null() -> None:
    rows = [{"a": None, "b": 1}, {"a": "x", "b": 2, "c": None}]
    assert first_values(rows) == {"a": "x", "b": 1}
    assert first_values(rows, ["b"]) == {"a": "x"}


def test_rows_of_no_known_format_are_told_what_can_be_done(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"question": ASK, "better": GOOD})
    with pytest.raises(
        UserError,
        match=r"rows.jsonl: its rows are of no format .*'better' is 'Yes.*data.format .*data.columns.*function",
    ):
        rows_of_files([path], None)


def test_a_row_of_another_format_in_the_middle_is_named(tmp_path: Path) -> None:
    rows = [EXAMPLES["alpaca"][0][0]] * 20
    path = write(tmp_path / "rows.jsonl", *rows, {"prompt": ASK, "chosen": GOOD, "rejected": BAD})
    with pytest.raises(UserError, match=r"row 21 has no value in the column 'instruction', which its format needs"):
        read(path, rows_of_files([path], None))


def test_our_column_beside_what_a_format_makes_of_others_is_no_silent_loss(tmp_path: Path) -> None:
    rows = [EXAMPLES["alpaca"][0][0]] * 20
    path = write(tmp_path / "rows.jsonl", *rows, rows[0] | {"prompt": "another"})
    with pytest.raises(UserError, match=r"row 21 has a column 'prompt', 'another', and its format makes one of others"):
        read(path, rows_of_files([path], None))


def test_messages_say_what_a_row_was_read_as_where_its_columns_are_other_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", EXAMPLES["nectar"][0][0] | {"answers": [{"answer": "", "rank": 1}] * 2})
    with pytest.raises(UserError, match=r"row 1, read as nectar, has no 'answer'|row 1, .*completion 1, is ''"):
        read(path, rows_of_files([path], None))


def test_ties_of_ranks_and_scores_stay_ties(tmp_path: Path) -> None:
    answers = [{"answer": text, "rank": rank} for text, rank in (("a", 2), ("b", 1), ("c", 2))]
    path = write(tmp_path / "rows.jsonl", {"prompt": TURN_OF_NECTAR, "answers": answers})
    [row] = read(path, rows_of_files([path], None))
    assert row["ranks"] == [1, 0, 1]


TURN_OF_NECTAR = "\n\nHuman: Good?\n\nAssistant: "


def test_columns_are_put_together_as_text(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl",
        {"topic": "films", "stance": 3, "better": GOOD, "worse": BAD, "id": 7},
        {"topic": "films", "stance": None, "better": GOOD, "worse": BAD, "id": 8},
        {"topic": ["films"], "stance": 1, "better": GOOD, "worse": BAD, "id": 9},
    )
    columns = {"prompt": "{topic} ({stance}):\n", "chosen": "better", "rejected": "worse"}
    rows = given_rows(Data.model_validate({"train": [path], "columns": columns}))
    chunks = read_chunks(path, rows.fields, 1, (), rows.convert)
    assert [next(chunks).rows[0]["prompt"] for _ in range(2)] == ["films (3):\n", "films ():\n"]
    with pytest.raises(
        UserError, match=r"row 3, data.columns.prompt: column 'topic' is \['films'\], and .* takes texts"
    ):
        next(chunks)


@pytest.mark.parametrize("text", ["{a.b}", "{a[0]}", "{}", "{a!r}", "{a:>3}", "{a"])
def test_braces_hold_the_name_of_a_column_and_nothing_else(text: str) -> None:
    with pytest.raises(ValueError, match=r"in braces|expected '}'"):
        Data.model_validate({"columns": {"prompt": text}})


def test_a_text_of_columns_that_are_ignored_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data.ignore names topic, which is read"):
        Data.model_validate({"columns": {"prompt": "{topic}:"}, "ignore": ["topic"]})


def test_columns_beside_a_format_that_has_its_own_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rows of data.format=nectar have those of their format"):
        Data.model_validate({"columns": {"prompt": "question"}, "format": "nectar"})


def upside_down(row: Row) -> Row:
    return {"input": row["q"], "chosen": row["a"][0], "rejected": row["a"][1]}


def failing(row: Row) -> Row:
    return {"input": row["nothing"]}


def nothing(row: Row) -> None:
    return None


def test_a_function_makes_rows_of_any_format_of_others(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"q": ASK, "a": [GOOD, BAD]})
    tree = {"train": [path], "function": f"{__name__}:upside_down"}
    rows = given_rows(Data.model_validate(tree))
    assert rows.name == "openrlhf"
    assert read(path, rows) == [{"prompt": ASK, "chosen": GOOD, "rejected": BAD}]
    named = given_rows(Data.model_validate(tree | {"columns": {"prompt": "{input}!"}}))
    assert read(path, named) == [{"prompt": f"{ASK}!", "chosen": GOOD, "rejected": BAD}]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            f"{__name__}:failing",
            r"row 1: data.function .*:failing' raised KeyError: 'nothing' \(.*test_wild_formats.py:",
        ),
        (f"{__name__}:nothing", r"row 1: data.function .*:nothing' gave None; return a row"),
        (f"{__name__}:missing", "has no function 'missing'"),
        ("nowhere.at:all", "there is no module 'nowhere'; install it, or put its folder on PYTHONPATH"),
    ],
)
def test_a_function_that_fails_is_named_with_the_row(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        OwnFunction(name)({"q": ASK}, "a.jsonl row 1")


@pytest.mark.parametrize(
    ("raw", "ours"),
    [
        ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b"}),
        ({"completion": "b", "messages": None}, {"prompt": "", "completion": "b"}),
        (
            {"messages": [SYSTEM, user(ASK), said(GOOD)]},
            {"prompt": [SYSTEM, user(ASK)], "completion": [said(GOOD)]},
        ),
        (
            {"instruction": "Is it?", "input": "The film.", "output": GOOD},
            {"prompt": [user("Is it?\nThe film.")], "completion": [said(GOOD)]},
        ),
        (
            {"conversations": [{"from": "human", "value": ASK}, {"from": "gpt", "value": GOOD}]},
            {"prompt": [user(ASK)], "completion": [said(GOOD)]},
        ),
    ],
)
def test_rows_of_the_sft_stage_may_be_conversations_and_instructions(raw: Row, ours: Row, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", raw)
    assert read(path, given_sft_rows(Sft(train=[path]), ())) == [ours]


def test_pairs_that_are_whole_are_read_as_ever(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", CHAT)
    assert read(path, given_rows(Data(train=[path]))) == read(path, given_rows(Data(format="pairs"))) == [CHAT]
