"""Nothing that a row says is left out in silence: it becomes tokens, or an error names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydpo.config.load import load_run_file
from raydpo.data.reading import read_chunks
from raydpo.data.rows import Field, Row, pair_fields, prompt_fields, sft_fields
from raydpo.errors import UserError

pytestmark = pytest.mark.unit

PAIR = {"prompt": "Is the film any good?", "chosen": "Yes, very.", "rejected": "No, not at all."}
ASK = {"role": "user", "content": "Is it good?"}
YES = {"role": "assistant", "content": "Yes."}
NO = {"role": "assistant", "content": "No."}
CHAT = {"prompt": [ASK], "chosen": [YES], "rejected": [NO]}
CALL = [{"type": "function", "function": {"name": "rating", "arguments": "{}"}}]


@pytest.fixture(params=["rows.jsonl", "rows.parquet"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def read(path: Path, row: dict[str, Any], fields: tuple[Field, ...], *ignore: str) -> Row:
    """The canonical form of a file's only row."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps(row) + "\n")
    [chunk] = read_chunks(str(path), fields, 10, ignore)
    [found] = chunk.rows
    return found


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("system", "Answer like a pirate."),
        ("history", [["My name is Ann.", "Hello Ann."]]),
        ("tools", [{"type": "function", "function": {"name": "rating"}}]),
        ("images", ["cat.png"]),
        ("chat_template_kwargs", {"enable_thinking": False}),
        ("margin", 0.5),
        ("score_chosen", 7.0),
        ("better_response_id", 1),
        ("weight", 0.0),
        ("input", "the second half"),
        ("System-Prompt", "Be brief."),
    ],
)
def test_a_column_with_a_meaning_is_refused_or_ignored_knowingly(file: Path, column: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"{file.name} row 1 has columns that would be lost: '{column}' \(") as error:
        read(file, PAIR | {column: value}, pair_fields())
    assert f"data.ignore: [{column}]" in str(error.value)
    assert read(file, PAIR | {column: value}, pair_fields(), column) == PAIR


def test_all_lost_columns_of_a_row_are_named_at_once(file: Path) -> None:
    with pytest.raises(UserError, match=r"data.ignore: \[system, margin\]"):
        read(file, PAIR | {"system": "Be brief.", "margin": 1.0}, pair_fields())


@pytest.mark.parametrize("extra", [{"id": "7"}, {"source": "here"}, {"system": None}, {"system": ""}, {"images": []}])
def test_a_column_that_says_nothing_is_left_alone(file: Path, extra: dict[str, Any]) -> None:
    assert read(file, PAIR | extra, pair_fields()) == PAIR


def test_a_column_that_repeats_what_is_read_is_no_loss(file: Path) -> None:
    assert read(file, CHAT | {"messages": [YES]}, pair_fields()) == CHAT
    with pytest.raises(UserError, match="'messages' "):
        read(file, CHAT | {"messages": [ASK, NO]}, pair_fields())


def test_what_a_column_means_depends_on_what_is_read(file: Path) -> None:
    row = {"prompt": "The film", "label": 1, "system": None}
    assert read(file, row, prompt_fields()) == {"prompt": "The film"}
    with pytest.raises(UserError, match="'system'"):
        read(file, row | {"system": "Be brief."}, prompt_fields())
    with pytest.raises(UserError, match="'instruction'"):
        read(file, {"instruction": "Say yes.", "completion": "yes"}, sft_fields())


def test_a_prompt_column_that_the_run_file_names_must_be_there(file: Path) -> None:
    row = {"question": None, "completion": "yes"}
    assert read(file, row, sft_fields(prompt="question")) == {"prompt": "", "completion": "yes"}
    with pytest.raises(UserError, match="no column 'query' for prompt"):
        read(file, row, sft_fields(prompt="query"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("tool_calls", CALL), ("name", "Ann"), ("reasoning_content", "two and two is four"), ("weight", 0)],
)
@pytest.mark.parametrize("column", ["prompt", "chosen"])
def test_a_key_of_a_message_is_kept_for_the_template_or_ignored_knowingly(
    file: Path, column: str, key: str, value: object
) -> None:
    row = CHAT | {column: [CHAT[column][0] | {key: value}]}
    assert read(file, row, pair_fields()) == row
    assert read(file, row, pair_fields(), key) == CHAT


def test_a_key_without_a_value_is_absent(file: Path) -> None:
    row = CHAT | {"chosen": [YES | {"tool_calls": None, "name": ""}]}
    assert read(file, row, pair_fields()) == CHAT


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ([{"role": "assistant", "content": None}], 'message 1: content is null; write the text, "" for none'),
        ([{"role": "assistant"}], "content is null"),
        (
            [YES | {"content": [{"type": "image", "image": "a.png"}]}],
            "is a list of parts, .*only parts of text",
        ),
        (YES, r"is one object, .*; write a list of messages: \[\{...\}\]"),
        ([{"from": "gpt", "value": "Yes."}], 'write "from" as "role"'),
        (["Yes."], r"message 1 is 'Yes\.'; a chat message is"),
    ],
)
def test_a_value_of_another_shape_is_told_what_to_write(file: Path, chosen: Any, says: str) -> None:
    with pytest.raises(UserError, match=f"{file.name} row 1, column 'chosen',? .*{says}"):
        read(file, CHAT | {"chosen": chosen}, pair_fields())


@pytest.mark.parametrize("role", ["user", "system", "tool", "assistant"])
@pytest.mark.parametrize("transcript", [False, True])
@pytest.mark.parametrize("prompt", [[ASK], ASK["content"]])
def test_nobody_but_the_assistant_speaks_in_a_completion_and_only_once(
    file: Path, role: str, transcript: bool, prompt: Any
) -> None:
    turn = {"role": role, "content": "Really?"}
    for turns in ([YES, turn], [YES, turn, YES]):
        chosen = [ASK, *turns] if transcript else turns
        with pytest.raises(UserError, match=rf"column 'chosen', goes on .* a turn of '{role}' \(message ") as error:
            read(file, {"prompt": prompt, "chosen": chosen, "rejected": [NO]}, pair_fields())
        assert f"(message {chosen.index(turn) + 1})" in str(error.value)
    with pytest.raises(UserError, match=f"column 'completion', goes on .* a turn of '{role}'"):
        read(file, {"prompt": prompt, "completion": [YES, turn]}, sft_fields())


def test_turns_of_others_are_fine_in_the_prompt(file: Path) -> None:
    row = {"prompt": [ASK, YES, ASK], "chosen": [ASK, YES, ASK, YES], "rejected": [ASK, YES, ASK, NO]}
    assert read(file, row, pair_fields()) == row


def test_completions_that_repeat_their_prompt_are_refused(file: Path) -> None:
    row = {"prompt": "Q: 1+1? A: ", "chosen": "Q: 1+1? A: 2", "rejected": " Q: 1+1? A: 3"}
    with pytest.raises(UserError, match=r"row 1: the completion begins with the whole prompt, 'Q: 1.*remove"):
        read(file, row, pair_fields())
    with pytest.raises(UserError, match="begins with the whole prompt"):
        read(file, {"prompt": row["prompt"], "completion": row["chosen"]}, sft_fields())


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "", "chosen": "a", "rejected": "b"},
        {"prompt": "Hello", "chosen": "Hello, how are you?", "rejected": "Hello."},
        {"prompt": "Q: 1+1? A:", "chosen": "Q: 1+1? A: 2", "rejected": "3"},
    ],
)
def test_a_greeting_or_one_quoting_completion_is_no_repeated_prompt(file: Path, row: dict[str, str]) -> None:
    assert read(file, row, pair_fields()) == row


def test_a_run_file_cannot_ignore_what_it_reads(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: a\noutput_dir: out\nmodel: {path: m}\ndata: {train: [a.jsonl], ignore: [chosen]}\n")
    with pytest.raises(UserError, match=r"data.ignore names chosen, which is read"):
        load_run_file(path)
    assert load_run_file(path, ["data.ignore=[system]"]).data.ignore == ["system"]
