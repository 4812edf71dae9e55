"""Laws of rows whose prompt stands in their completions: it is what both have in common, and nothing gets lost."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.data.detecting import rows_of_files
from raydpo.data.implicit import with_prompt
from raydpo.data.reading import read_chunks
from raydpo.data.rows import Row
from raydpo.data.tokenizer import RowTokenizer
from raydpo.data.tokens import TokenSettings, tokenize_pair
from raydpo.errors import UserError
from tests.helpers import row_tokenizer
from tests.tokenizers import KINDS, tokenizer_of

pytestmark = pytest.mark.unit

SETTINGS = TokenSettings(1000, "error", append_eos=True)
REAL = Path(os.environ.get("RAYDPO_DATA", "../shared/data"))
HH = REAL / "hh_helpful-base_test.original.jsonl.gz"
ASK = {"role": "user", "content": "Is it good?"}
YES = {"role": "assistant", "content": "Yes."}
NO = {"role": "assistant", "content": "No."}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: str, name: str | None = None) -> tuple[str, list[Row]]:
    rows = rows_of_files([path], name)
    chunks = read_chunks(path, rows.fields, 100, (), rows.convert)
    return rows.name, [row for chunk in chunks for row in chunk.rows]


TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": st.text("ab ")})


@given(prompt=st.lists(TURN, min_size=1, max_size=4), one=st.text("ab", min_size=1), other=st.text("ab", min_size=1))
def test_of_conversations_the_prompt_is_all_but_the_last_turn(
    prompt: list[dict[str, str]], one: str, other: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("chat") / "rows.jsonl"
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in (one, other))
    name, rows = read(write(path, [{"chosen": prompt + chosen, "rejected": prompt + rejected}]))
    assert name == "implicit"
    assert rows == [{"prompt": prompt, "chosen": chosen, "rejected": rejected}]


@pytest.mark.parametrize(
    ("chosen", "rejected", "says"),
    [
        ([ASK, YES], [{**ASK, "content": "Is it bad?"}, NO], "differ from message 1 on, before their last one"),
        ([ASK, YES, ASK, YES], [ASK, YES], "differ in their number of messages, before their last one"),
        ([YES], [NO], "there is no prompt that they answer; name its column in data.columns.prompt"),
        ([ASK, YES], "No.", "without a prompt both are whole texts, or whole conversations"),
    ],
)
def test_conversations_that_answer_different_prompts_are_named(
    chosen: Any, rejected: Any, says: str, tmp_path: Path
) -> None:
    good = {"chosen": [ASK, YES], "rejected": [ASK, NO]}
    with pytest.raises(UserError, match=f"rows.jsonl row 2: .*{says}"):
        read(write(tmp_path / "rows.jsonl", [good, {"chosen": chosen, "rejected": rejected}]))


def test_a_prompt_that_only_later_rows_have_is_named(tmp_path: Path) -> None:
    rows = [{"chosen": "a b", "rejected": "a c"}] * 16 + [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    with pytest.raises(UserError, match=r"row 17 has a prompt, 'a', and rows before it have none"):
        read(write(tmp_path / "rows.jsonl", rows))


WORDS = st.lists(st.sampled_from(["film", "good", "bad", "a", "the", "twice:", "cat", "cats"]), max_size=6)


@pytest.mark.parametrize("kind", KINDS)
@given(common=WORDS, one=WORDS, other=WORDS)
def test_texts_are_cut_at_tokens_and_lose_nothing(
    kind: str, common: list[str], one: list[str], other: list[str]
) -> None:
    tokenizer = RowTokenizer(tokenizer_of(kind))
    chosen, rejected = " ".join([*common, *one]), " ".join([*common, *other])
    if not chosen.strip() or not rejected.strip():
        return
    row = with_prompt({"chosen": chosen, "rejected": rejected}, tokenizer)
    assert row["prompt"] + row["chosen"] == chosen
    assert row["prompt"] + row["rejected"] == rejected
    assert row["chosen"].strip()
    assert row["rejected"].strip()
    prompt = tokenizer.encode(row["prompt"])
    for text in (chosen, rejected):
        assert tokenizer.encode(text)[: len(prompt)] == prompt


def test_the_prompt_is_the_longest_and_ends_before_a_word_that_differs() -> None:
    tokenizer = row_tokenizer()
    chosen, rejected = "The film is a quiet triumph", "The film is a tepid film"
    row = with_prompt({"chosen": chosen, "rejected": rejected}, tokenizer)
    ids, others = tokenizer.encode(chosen), tokenizer.encode(rejected)
    common = next(i for i, (one, other) in enumerate(zip(ids, others, strict=False)) if one != other)
    assert tokenizer.encode(row["prompt"]) == ids[:common]
    assert (row["prompt"], row["chosen"]) == ("The film is a", " quiet triumph")


def test_a_pair_is_the_same_row_with_its_prompt_written_out_and_without() -> None:
    tokenizer = row_tokenizer()
    whole = tokenize_pair({"chosen": "The film is good", "rejected": "The film is bad"}, tokenizer, SETTINGS)
    apart = tokenize_pair({"prompt": "The film is", "chosen": " good", "rejected": " bad"}, tokenizer, SETTINGS)
    assert whole == apart
    same = tokenize_pair({"chosen": "The film", "rejected": "The film"}, tokenizer, SETTINGS)
    assert same.event == "identical"
    assert not whole.notes
    assert tokenize_pair({"chosen": "The film", "rejected": "A film"}, tokenizer, SETTINGS).notes == {"no_prompt"}


SAID = st.text("ab .:\n", min_size=1).filter(lambda text: "\n\n" not in f"\n{text}\n" and text.strip() == text)


@given(
    turns=st.lists(SAID, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2 == 1),
    one=SAID,
    other=SAID,
)
def test_a_transcript_is_cut_behind_the_last_turn_of_the_assistant(
    turns: list[str], one: str, other: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    said = "".join(f"\n\n{'Assistant' if i % 2 else 'Human'}: {text}" for i, text in enumerate(turns))
    prompt = f"{said}\n\nAssistant:"
    path = tmp_path_factory.mktemp("hh") / "rows.jsonl"
    name, rows = read(write(path, [{"chosen": f"{prompt} {one}", "rejected": f"{prompt} {other}"}]))
    assert name == "hh"
    assert rows == [{"prompt": prompt, "chosen": f" {one}", "rejected": f" {other}"}]


@pytest.mark.skipif(not HH.exists(), reason="the HH files are not in RAYDPO_DATA, nor in ../shared/data")
def test_hh_as_published_gives_the_prompts_of_its_split_file() -> None:
    rows = rows_of_files([str(HH)], None)
    assert rows.name == "hh"
    assert rows.convert
    prompts = []
    refused = []
    with gzip.open(HH, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                prompts.append(rows.convert(json.loads(line), f"row {number}")[0]["prompt"])
            except UserError as error:
                refused.append(str(error))
    with gzip.open(REAL / "hh_helpful-base_test.jsonl.gz", "rt", encoding="utf-8") as lines:
        assert prompts == [json.loads(line)["prompt"] for line in lines]
    assert len(refused) == 9
    assert all("the transcripts differ before their last answer" in each for each in refused)
