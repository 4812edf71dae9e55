"""What a chat template may not do: each is an error that says which, and what helps."""

from __future__ import annotations

import datetime

import pytest

from raydpo.data.ingest import tokenize_chunk
from raydpo.data.reading import Chunk
from raydpo.data.tokenizer import RowTokenizer
from raydpo.data.tokens import TokenSettings, tokenize_pair, tokenize_prompt
from raydpo.errors import UserError
from tests.tokenizers import tokenizer_of

pytestmark = pytest.mark.unit

SETTINGS = TokenSettings(max_length=1000, truncation="error", append_eos=True)
QUESTION = {"role": "user", "content": "Is the film good?"}
YES = {"role": "assistant", "content": "Yes."}
NO = {"role": "assistant", "content": "No."}
ROW = {"prompt": [QUESTION], "chosen": [YES], "rejected": [NO]}
DATED = (
    "{% if not day is defined %}{% set day = strftime_now('%d %b %Y %H:%M') %}{% endif %}Today is {{ day }}.\n"
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token if m['role'] == 'assistant' }}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer_with(template: object, day: datetime.date | None = None) -> RowTokenizer:
    return RowTokenizer(tokenizer_of("byte-level", template), day=day)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m['content'] + 1 }}{% endfor %}", "fails on these messages .TypeError: .*mend"),
        ("{{ messages[0]['content'] | no_such_filter }}", "refuses these messages .*no_such_filter"),
        ("{{ 1 / 0 }}", "fails on these messages .ZeroDivisionError: .*; mend chat_template.jinja"),
        ("{{ raise_exception('no such role') }}", "refuses these messages .no such role.; mend the row"),
        ("", "has no chat template; use an instruct model's tokenizer"),
        ("{% if false %}x{% endif %}", "renders the messages to nothing; mend chat_template.jinja"),
        ("ask:{% if not add_generation_prompt %} {% endif %}", "renders the answer to nothing; use a template"),
        ("ask:{% if not add_generation_prompt %}yes{% endif %}", "chosen and rejected differ, but the chat template"),
        ("{{ messages | length }}", "renders the prompt differently once an answer follows"),
        ("{{ strftime_now('%Y') }}", "prints today's date.*; set data.date, for example data.date: 2026-01-31"),
    ],
)
def test_a_template_that_cannot_be_used_is_an_error_of_the_row(template: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"pairs.jsonl row 3: .*{message}"):
        tokenize_chunk(Chunk("pairs.jsonl", 3, [ROW]), tokenizer_with(template), SETTINGS, "pair")


def test_named_templates_without_a_default_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_with(DATED, datetime.date(2026, 1, 31))
    monkeypatch.setattr(tokenizer.raw, "chat_template", {"rag": "x", "tool_use": "y"})
    with pytest.raises(UserError, match="has chat templates named rag, tool_use and none named default; put the one"):
        tokenize_pair(ROW, tokenizer, SETTINGS)
    monkeypatch.setattr(tokenizer.raw, "chat_template", {"rag": "x", "default": DATED})
    assert tokenize_pair(ROW, tokenizer, SETTINGS).event == "kept"


def test_answers_that_differ_only_in_what_a_template_trims_are_identical() -> None:
    template = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] | trim }};{% endfor %}"
    template += "{% if add_generation_prompt %}assistant:{% endif %}"
    row = {**ROW, "rejected": [{**YES, "content": " Yes.\n"}]}
    assert tokenize_pair(row, tokenizer_with(template), SETTINGS).event == "identical"


def test_the_date_in_a_prompt_is_the_runs_and_not_the_clocks() -> None:
    day = datetime.date(2026, 1, 31)
    tokenizer = tokenizer_with(DATED, day)
    before = tokenize_prompt([QUESTION], tokenizer)
    assert tokenizer.decode(before) == "Today is 31 Jan 2026 00:00.\n<user>Is the film good?\n<assistant>"
    assert tokenize_prompt([QUESTION], tokenizer_with(DATED, day.replace(day=1))) != before


def test_a_date_changes_nothing_where_no_template_asks_for_it() -> None:
    text = "The film is fine"
    plain = tokenizer_with(DATED)
    assert tokenize_prompt(text, plain) == tokenize_prompt(text, tokenizer_with(DATED, datetime.date(2026, 1, 31)))
