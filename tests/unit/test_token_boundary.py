"""Where a completion begins and ends: the ids are those that a sampler could have made."""

from __future__ import annotations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from raydpo.data.tokenizer import TAIL_LETTERS, RowTokenizer
from raydpo.data.tokens import TokenSettings, tokenize_prompt, tokenize_sft
from raydpo.errors import UserError
from tests.tokenizers import KINDS, tokenizer_of

pytestmark = pytest.mark.unit

BARE = TokenSettings(max_length=10_000, truncation="error", append_eos=False)
CLOSED = TokenSettings(max_length=10_000, truncation="error", append_eos=True)
PIECES = st.sampled_from(
    ["The", " film", "foo", "(", "bar", ")", " ", "  ", "\n", "\n\n", "'s", ".", "12", "345", " a", "b", " is", ":"]
)
TEXT = st.lists(PIECES, max_size=6).map("".join)
ANY_LETTERS = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]) | st.sampled_from("é日🙂\n"), max_size=12)
LOSSLESS = [kind for kind in KINDS if kind != "unigram"]  # Unigram without bytes has no token for a strange letter

GEMMA = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
PHI = (
    "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% else %}{{ eos_token }}{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}{% if not loop.last %}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}\nassistant:{% endif %}"
)
QUESTION = {"role": "user", "content": "foo?"}
ANSWER = {"role": "assistant", "content": "It is so."}


def completion(tokenizer: RowTokenizer, prompt, value, settings=BARE) -> list[int]:  # type: ignore[no-untyped-def]
    row = tokenize_sft({"prompt": prompt, "completion": value}, tokenizer, settings).row
    assert row is not None
    return row.completions[0]


@pytest.mark.parametrize("kind", KINDS)
@given(prompt=TEXT, text=TEXT)
@example(prompt="foo(", text="bar)")
@example(prompt="The film", text=" is")
@example(prompt="The ", text="film")
@example(prompt="foo", text="bar")
@example(prompt="(", text="'s")
@example(prompt="", text="film")
def test_prompt_and_completion_decode_to_the_whole_text_and_are_its_ids_where_it_has_a_boundary(
    kind: str, prompt: str, text: str
) -> None:
    assume(text.strip())
    tokenizer = RowTokenizer(tokenizer_of(kind))
    whole = tokenizer.encode(prompt + text)
    head = tokenizer.encode(prompt)
    ids = completion(tokenizer, prompt, text)
    assert tokenizer.decode(head + ids) == tokenizer.decode(whole)
    if whole[: len(head)] == head:
        assert head + ids == whole


@pytest.mark.parametrize("kind", KINDS)
@given(
    filler=st.sampled_from(["The film is fine. ", "=", " ", "ab", "\n", "foo(bar) "]),
    letters=st.integers(2 * TAIL_LETTERS, 2 * TAIL_LETTERS + 40),
    end=TEXT,
    text=TEXT,
)
def test_behind_a_long_prompt_the_ids_are_those_of_the_whole_text_too(
    kind: str, filler: str, letters: int, end: str, text: str
) -> None:
    assume(text.strip())
    tokenizer = RowTokenizer(tokenizer_of(kind))
    prompt = (filler * letters)[:letters] + end
    whole = tokenizer.encode(prompt + text)
    head = tokenizer.encode(prompt)
    ids = completion(tokenizer, prompt, text)
    assert tokenizer.decode(head + ids) == tokenizer.decode(whole)
    if whole[: len(head)] == head:
        assert head + ids == whole


@pytest.mark.parametrize("kind", LOSSLESS)
@given(prompt=ANY_LETTERS, text=ANY_LETTERS)
def test_no_letter_is_lost_or_added_at_the_boundary(kind: str, prompt: str, text: str) -> None:
    assume(text.strip() and not any(token in prompt + text for token in ("<s>", "</s>", "<end>", "<pad>", "<unk>")))
    tokenizer = RowTokenizer(tokenizer_of(kind))
    decoded = tokenizer.decode(tokenizer.encode(prompt) + completion(tokenizer, prompt, text))
    # A prefix space that the tokenizer puts in front of the whole text is its own, and some decoders keep it.
    assert decoded.removeprefix(" ") == (prompt + text).removeprefix(" ")


@pytest.mark.parametrize("kind", ["sentencepiece", "metaspace always", "byte-level, prefix space"])
def test_a_dummy_prefix_stays_out_of_the_middle_of_a_text(kind: str) -> None:
    tokenizer = RowTokenizer(tokenizer_of(kind))
    assert tokenizer.decode(completion(tokenizer, "foo(", "bar)")) == "bar)"
    spaced = completion(tokenizer, "The film", " is fine")
    assert tokenizer.decode(tokenizer.encode("The film") + spaced).strip() == "The film is fine"
    assert completion(tokenizer, tokenizer.encode("foo("), "bar)") == completion(tokenizer, "foo(", "bar)")


@given(prompt=TEXT)
def test_policy_and_sampler_are_given_the_same_prompt_whatever_answers_it(prompt: str) -> None:
    tokenizer = RowTokenizer(tokenizer_of("sentencepiece"))
    row = tokenize_sft({"prompt": prompt, "completion": "bar"}, tokenizer, BARE).row
    assert row is not None
    assert row.prompt_ids == tokenize_prompt(prompt, tokenizer)


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@pytest.mark.parametrize("settings", [BARE, CLOSED], ids=["bare", "append_eos"])
@pytest.mark.parametrize("template", [GEMMA, PHI], ids=["newline behind", "newline and eos behind"])
def test_a_chat_completion_ends_in_the_token_that_closes_the_turn(
    kind: str, settings: TokenSettings, template: str
) -> None:
    raw = tokenizer_of(kind, template)
    tokenizer = RowTokenizer(raw)
    end = raw.convert_tokens_to_ids("<end>")
    assert tokenizer.stop_ids == {end, raw.eos_token_id}
    ids = completion(tokenizer, [QUESTION], [ANSWER], settings)
    assert ids.count(end) == 1
    assert ids[-1] == end
    assert tokenizer.decode(ids).strip() == "It is so.<end>"


def test_a_template_that_closes_no_turn_gets_eos_once() -> None:
    tokenizer = RowTokenizer(tokenizer_of("byte-level", PLAIN))
    ids = completion(tokenizer, [QUESTION], [ANSWER], CLOSED)
    assert tokenizer.decode(ids) == "It is so.</s>"


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@pytest.mark.parametrize("text", [" fine<end>", " fine<end>\n", " fine</s>", " fine<end></s>"])
def test_a_text_that_ends_in_a_stop_token_is_not_ended_again(kind: str, text: str) -> None:
    raw = tokenizer_of(kind)
    tokenizer = RowTokenizer(raw, stop_ids=[raw.convert_tokens_to_ids("<end>")])
    ids = completion(tokenizer, "The film is", text, CLOSED)
    assert sum(token in tokenizer.stop_ids for token in ids) == 1
    assert ids[-1] in tokenizer.stop_ids


def test_a_boundary_that_no_tokenizer_could_draw_is_an_error_with_a_remedy() -> None:
    words = tokenizer_of("byte-level")

    class OneWord(RowTokenizer):
        def decode(self, ids, *, skip_special_tokens: bool = False) -> str:  # type: ignore[no-untyped-def, override]
            return " ".join(str(token) for token in ids)

    with pytest.raises(UserError, match="cannot be cut apart by this tokenizer; move the boundary"):
        completion(OneWord(words), "fil", "m")
