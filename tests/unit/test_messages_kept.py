"""What a message says beside its text reaches the template, or an error names it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.config.schema import Data
from raydpo.data.ingest import tokenize_chunk
from raydpo.data.messages import text_or_messages
from raydpo.data.prompts import contents_hash, read_prompts
from raydpo.data.reading import Chunk, read_chunks
from raydpo.data.rows import Row, canonical_row, pair_fields, ranked_fields
from raydpo.data.tokenizer import RowTokenizer
from raydpo.data.tokens import TokenRow, TokenSettings, tokenize_pair
from raydpo.errors import UserError
from raydpo.model.tokenizer import load_row_tokenizer, load_tokenizer
from raydpo.model.tokenizer_files import tokenizer_digest
from raydpo.workspace.rows import given_rows
from tests.helpers import CHAT_TEMPLATE
from tests.models import save_tiny_model
from tests.templates import CARELESS, CHATML, GEMMA, TEXT_ARGUMENTS, THINKING
from tests.tokenizers import tokenizer_of

pytestmark = pytest.mark.unit

SETTINGS = TokenSettings(max_length=10_000, truncation="error", append_eos=True)
ASK = {"role": "user", "content": "Is it good?"}
YES = {"role": "assistant", "content": "Yes."}
NO = {"role": "assistant", "content": "No."}
CHAT = {"prompt": [ASK], "chosen": [YES], "rejected": [NO]}
TOOL = {"type": "function", "function": {"name": "rate", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "rate", "arguments": {"film": "it"}}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "9 of 10", "name": "rate", "tool_call_id": "c1"}


def tokenizer_with(template: str) -> RowTokenizer:
    return RowTokenizer(tokenizer_of("byte-level", template))


def canonical(raw: dict[str, Any], *ignore: str) -> Row:
    return canonical_row(raw, pair_fields(), "a.jsonl row 1", ignore)


def tokenized(raw: dict[str, Any], template: str = CHATML, *ignore: str) -> tuple[TokenRow, str, frozenset[str]]:
    tokenizer = tokenizer_with(template)
    outcome = tokenize_pair(canonical(raw, *ignore), tokenizer, SETTINGS)
    assert outcome.row
    text = tokenizer.decode(outcome.row.prompt_ids) + "|" + tokenizer.decode(outcome.row.completions[0])
    return outcome.row, text, outcome.notes


def test_calls_and_tools_are_rendered_in_prompt_and_completion() -> None:
    _, text, notes = tokenized(CHAT | {"prompt": [ASK, CALLS, RESULT], "chosen": [CALLS], "tools": [TOOL]})
    prompt, completion = text.split("|<call>")
    assert '"name": "rate", "parameters"' in prompt
    assert '<call>rate {"film": "it"}</call></s>' in prompt
    assert "9 of 10" in prompt
    assert completion == 'rate {"film": "it"}</call></s>'
    assert notes == {"unrendered"}, "the template does not write to which call a result belongs"


@pytest.mark.parametrize("content", [None, "", "missing"])
@pytest.mark.parametrize("template", [CHATML, CARELESS])
def test_a_message_of_calls_needs_no_content(template: str, content: str | None) -> None:
    message = {key: value for key, value in CALLS.items() if key != "content"}
    message |= {} if content == "missing" else {"content": content}
    row, text, _ = tokenized(CHAT | {"chosen": [message]}, template)
    assert "None" not in text
    assert row == tokenized(CHAT | {"chosen": [CALLS]}, template)[0]


@pytest.mark.parametrize(("template", "written"), [(CHATML, '{"film": "it"}'), (TEXT_ARGUMENTS, '{"film":"it"}')])
def test_arguments_of_a_call_are_what_the_template_takes(template: str, written: str) -> None:
    function = {"name": "rate", "arguments": '{"film":"it"}'}
    _, text, _ = tokenized(CHAT | {"chosen": [CALLS | {"tool_calls": [{"function": function}]}]}, template)
    assert f"<call>rate {written}</call>" in text


def test_tools_are_a_list_or_its_json() -> None:
    assert tokenized(CHAT | {"tools": json.dumps([TOOL])}) == tokenized(CHAT | {"tools": [TOOL]})


def test_arguments_of_the_template_come_with_the_row() -> None:
    _, text, _ = tokenized(CHAT | {"chat_template_kwargs": {"enable_thinking": False}}, THINKING_SWITCH)
    assert "<think></think>|Yes." in text
    _, text, _ = tokenized(CHAT, THINKING_SWITCH)
    assert "<think>" not in text


THINKING_SWITCH = CHATML.replace(
    "{{ m.content or '' }}",
    "{% if m.role == 'assistant' and enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    "{{ m.content or '' }}",
)


def test_thoughts_are_trained_on_and_those_of_earlier_turns_are_counted() -> None:
    thinking = YES | {"reasoning_content": "two and two"}
    _, text, notes = tokenized(CHAT | {"chosen": [thinking]})
    assert text.endswith("|<think>two and two</think>Yes.</s>")
    assert not notes
    _, text, notes = tokenized(CHAT | {"prompt": [ASK, thinking, ASK], "chosen": [thinking]})
    assert text.count("two and two") == 1
    assert notes == {"unrendered"}
    row, text, notes = tokenized(CHAT | {"prompt": [ASK, thinking, ASK]})
    assert row == tokenized(CHAT | {"prompt": [ASK, YES, ASK]})[0]
    assert notes == {"unrendered"}


@pytest.mark.parametrize(
    ("change", "key", "ignored"),
    [
        ({"chosen": [YES | {"reasoning_content": "two and two"}]}, "reasoning_content", "reasoning_content"),
        ({"chosen": [YES | {"weight": 0.5}]}, "weight", "weight"),
        ({"prompt": [ASK | {"name": "Ann"}]}, "name", "name"),
        ({"chosen": [YES | {"tool_calls": [CALL]}]}, "tool_calls", "tool_calls"),
        ({"tools": [TOOL]}, "tools", "tools"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "enable_thinking", "chat_template_kwargs"),
    ],
)
def test_what_a_template_does_not_render_is_refused_or_ignored_knowingly(
    change: dict[str, Any], key: str, ignored: str
) -> None:
    with pytest.raises(UserError, match=rf"chosen: .*{key!r}, which the chat template does not render") as error:
        tokenized(CHAT | change, CHAT_TEMPLATE)
    assert f"data.ignore: [{ignored}]" in str(error.value)
    assert tokenized(CHAT | change, CHAT_TEMPLATE, ignored)[0] == tokenized(CHAT, CHAT_TEMPLATE)[0]


KEYS = st.dictionaries(st.sampled_from(["name", "thinking", "weight", "mood"]), st.text("ab", min_size=1), max_size=3)
SHOWS = st.sets(st.sampled_from(["name", "thinking", "weight", "mood"]))


@given(keys=KEYS, shows=SHOWS)
def test_a_key_is_in_the_tokens_or_in_the_message_of_an_error(keys: dict[str, str], shows: set[str]) -> None:
    shown = "".join(f"{{{{ '({key}=' + m.{key} + ')' if m.{key} }}}}" for key in sorted(shows))
    template = CHAT_TEMPLATE.replace("{{ m['content'] }}", f"{{{{ m['content'] }}}}{shown}")
    assert template != CHAT_TEMPLATE or not shows
    refusal = ""
    text = ""
    try:
        _, text, _ = tokenized(CHAT | {"chosen": [YES | keys]}, template)
    except UserError as error:
        refusal = str(error)
    lost = keys.keys() - shows
    assert bool(refusal) == bool(lost)
    assert not refusal or any(repr(key) in refusal for key in lost)
    assert refusal or all(f"({key}={value})" in text for key, value in keys.items())


def test_parts_of_text_are_one_text_and_others_are_named() -> None:
    parts = [{"type": "text", "text": "Is it "}, {"type": "text", "text": "good?"}]
    assert canonical(CHAT | {"prompt": [ASK | {"content": parts}]}) == CHAT
    with pytest.raises(
        UserError, match=r"message 1: content is a list of parts, and one of them is .*image.*only parts"
    ):
        canonical(CHAT | {"prompt": [ASK | {"content": [*parts, {"type": "image", "image": "cat.png"}]}]})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
)


@given(message=st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "name", "x"]), JSON))
def test_any_message_is_one_that_json_holds_or_is_named(message: dict[str, Any]) -> None:
    refusal = "here"
    kept: Any = []
    try:
        kept = text_or_messages([message, ASK], "here", may_be_empty=False, ignore=())
    except UserError as error:
        refusal = str(error)
    assert refusal.startswith("here")
    assert json.loads(json.dumps(kept, allow_nan=False)) == kept


def test_a_system_column_stands_before_the_prompt_and_before_a_transcript_of_it() -> None:
    system = {"role": "system", "content": "Be brief."}
    whole = {"prompt": [system, ASK], "chosen": [YES], "rejected": [NO]}
    assert canonical(CHAT | {"system": "Be brief."}) == whole
    assert canonical(CHAT | {"prompt": ASK["content"], "system": "Be brief."}) == whole
    assert canonical(whole | {"system": "Be brief."}) == whole
    transcript = CHAT | {"chosen": [ASK, YES], "rejected": [ASK, NO], "system": "Be brief."}
    assert tokenized(transcript)[0] == tokenized(whole)[0]
    group = {"prompt": [ASK], "completions": [[YES], [NO]], "ranks": [1, 2], "system": "Be brief."}
    assert canonical_row(group, ranked_fields(), "row")["prompt"] == [system, ASK]
    with pytest.raises(UserError, match="begins with another system message; keep one"):
        canonical(whole | {"system": "Be long."})


def test_the_system_column_may_have_another_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(CHAT | {"persona": "Be brief."}) + "\n")
    data = Data.model_validate({"train": [str(path)], "columns": {"system": "persona"}})
    rows = given_rows(data)
    [chunk] = read_chunks(str(path), rows.fields, 10, (), rows.convert)
    assert chunk.rows == [canonical(CHAT | {"system": "Be brief."})]


def test_a_row_of_text_has_no_template_and_its_system_column_is_refused() -> None:
    with pytest.raises(UserError, match="columns that would be lost: 'system'"):
        canonical({"prompt": "a", "chosen": "b", "rejected": "c", "system": "Be brief."})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tools": "[not json"}, "column 'tools', is .*, which is not JSON"),
        ({"tools": [3]}, "column 'tools', is .*; it is a list of tools"),
        ({"chat_template_kwargs": [3]}, "'chat_template_kwargs', is .*; it is an object with the names"),
        (
            {"chat_template_kwargs": {"tokenize": True}},
            "'chat_template_kwargs', has tokenize, which a",
        ),
        ({"system": 3}, "column 'system', is 3; it is a text"),
    ],
)
def test_columns_for_the_template_of_another_shape_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=rf"a.jsonl row 1, {says}|a.jsonl row 1, column {says}"):
        canonical(CHAT | change)


def test_parquet_gives_messages_the_keys_that_they_were_written_with(tmp_path: Path) -> None:
    rows = [CHAT | {"prompt": [ASK, CALLS, RESULT], "tools": [TOOL]}, CHAT]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    [chunk] = read_chunks(str(tmp_path / "rows.parquet"), pair_fields(), 10)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    [lines] = read_chunks(str(tmp_path / "rows.jsonl"), pair_fields(), 10)
    assert chunk.rows == lines.rows


def test_the_prompt_of_a_template_that_opens_thoughts_is_what_both_ways_have_in_common() -> None:
    tokenizer = tokenizer_with(THINKING)
    chunk = Chunk("a.jsonl", 7, [CHAT, CHAT])
    noticed: list[tuple[str, str]] = []
    table, counts = tokenize_chunk(
        chunk, tokenizer, SETTINGS, "pair", notice=lambda note, place: noticed.append((note, place))
    )
    assert counts.moved_boundary == counts.kept == 2
    assert noticed[0] == ("moved_boundary", "a.jsonl row 7")
    row = table.to_pylist()[0]
    for answer, ids in (("Yes.", row["completions"][0]), ("No.", row["completions"][1])):
        whole = f"<|user|>Is it good?<|assistant|>{answer}</s>"
        assert row["prompt_ids"] + ids == tokenizer.encode(whole)
        assert tokenizer.decode(ids).endswith(f"{answer}</s>")
        assert "good" not in tokenizer.decode(ids), "nobody's words but the assistant's are trained on"
    before = tokenizer.encode("<|user|>Is it good?<|assistant|><think>")
    assert row["prompt_ids"] == before[: len(row["prompt_ids"])]


def test_where_the_common_tokens_leave_no_answer_the_row_is_named() -> None:
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content if m.role == 'user' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
    )
    with pytest.raises(UserError, match=r"a.jsonl row 1: chosen: the chat template renders the answer to nothing"):
        tokenize_chunk(Chunk("a.jsonl", 1, [CHAT]), tokenizer_with(template), SETTINGS, "pair")


@pytest.mark.parametrize("template", [CHATML, THINKING, GEMMA, TEXT_ARGUMENTS, CARELESS, CHAT_TEMPLATE])
@given(
    turns=st.lists(st.text("ab .", min_size=1).map(str.strip).filter(bool), min_size=1, max_size=3),
    said=st.sampled_from(["Yes.", "No. It is not.", " a"]),
)
def test_prompt_and_completion_are_the_whole_that_the_template_renders(
    template: str, turns: list[str], said: str
) -> None:
    tokenizer = tokenizer_with(template)
    prompt = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    prompt = prompt if len(prompt) % 2 else prompt[:-1]
    chosen = [{"role": "assistant", "content": said}]
    outcome = tokenize_pair({"prompt": prompt, "chosen": chosen, "rejected": [NO]}, tokenizer, SETTINGS)
    assert outcome.row
    whole = tokenizer.chat.whole([*prompt, *chosen])
    ids = [*outcome.row.prompt_ids, *outcome.row.completions[0]]
    text = tokenizer.decode(ids)
    assert whole.startswith(text) or text.removesuffix("</s>") == whole.rstrip().removesuffix("</s>"), (text, whole)


def test_a_template_file_is_used_instead_of_the_tokenizers_own(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    path = tmp_path / "own.jinja"
    path.write_text(CHATML)
    model = str(tmp_path / "model")
    assert "<|user|>" in load_row_tokenizer(model, None, str(path)).chat.prompt([ASK])
    load_tokenizer(model, str(path)).save_pretrained(tmp_path / "export")
    shutil.copy(tmp_path / "model" / "config.json", tmp_path / "export")
    assert "<|user|>" in load_row_tokenizer(str(tmp_path / "export")).chat.prompt([ASK]), "exports have it"
    digests = {tokenizer_digest(model), tokenizer_digest(model, str(path))}
    path.write_text(CHATML + " ")
    assert len(digests | {tokenizer_digest(model, str(path))}) == 3
    path.write_text(" \n")
    with pytest.raises(UserError, match=r"data.chat_template: .*own.jinja is empty"):
        load_row_tokenizer(model, None, str(path))
    with pytest.raises(UserError, match=r"data.chat_template: .*none.jinja cannot be read"):
        load_row_tokenizer(model, None, str(tmp_path / "none.jinja"))


def test_prompts_to_sample_from_have_what_their_rows_tell_the_template(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": [ASK], "tools": [TOOL], "system": "Be brief."}))
    [prompt] = read_prompts([str(path)], "prompt", tokenizer_with(CHATML), limit=None)
    assert '"name": "rate"' in prompt.text
    assert "Be brief." in prompt.text
    before = contents_hash([str(path)], "prompt", limit=None)
    path.write_text(json.dumps({"prompt": [ASK], "system": "Be brief."}))
    assert contents_hash([str(path)], "prompt", limit=None) != before
    path.write_text(json.dumps({"prompt": [ASK | {"name": "Ann"}]}))
    with pytest.raises(UserError, match=r"prompts.jsonl row 1: message 1 has 'name', which the chat template does not"):
        read_prompts([str(path)], "prompt", tokenizer_with(CHATML), limit=None)
