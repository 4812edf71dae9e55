from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jobs.assets import BOS, EOS
from raydpo.data.tokens import (
    TokenRow,
    TokenSettings,
    Truncation,
    hash_fraction,
    row_id,
    tokenize_pair,
    tokenize_prompt,
    tokenize_sft,
)
from raydpo.errors import UserError
from tests.helpers import row_tokenizer, tiny_tokenizer

pytestmark = pytest.mark.unit

WIDE = TokenSettings(max_length=10_000, truncation="error", append_eos=True)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40).filter(lambda text: "<|" not in text)
IDS = st.lists(st.integers(0, 300), min_size=1, max_size=12)
VARIANTS = [
    pytest.param({"template": f"{BOS} $A"}, id="bos"),
    pytest.param({"template": f"{BOS} $A {EOS}"}, id="bos_and_eos"),
    pytest.param({"template": f"$A {EOS}"}, id="eos"),
    pytest.param({"template": "$A"}, id="neither"),
    pytest.param({"template": "$A", "bos": False}, id="no_bos_token"),
]
QUESTION = {"role": "user", "content": "Is the film good?"}
YES, NO = ({"role": "assistant", "content": text} for text in ("Yes, a triumph.", "No."))


def pair(prompt, chosen, rejected, settings=WIDE, **tokenizer) -> TokenRow | None:
    return tokenize_pair(
        {"prompt": prompt, "chosen": chosen, "rejected": rejected}, row_tokenizer(**tokenizer), settings
    ).row


@pytest.mark.parametrize("variant", VARIANTS)
@given(prompt=TEXT, chosen=TEXT.filter(bool), rejected=TEXT.filter(bool))
def test_ids_are_prompt_and_completion_tokenised_apart_and_concatenated(variant, prompt, chosen, rejected):
    assume(chosen != rejected)
    tokenizer = tiny_tokenizer(**variant)
    row = pair(prompt, chosen, rejected, **variant)
    for completion, text in zip(row.completions, (chosen, rejected), strict=True):
        assert completion[-1] == tokenizer.eos_token_id
        # Byte-level ids spell the bytes out, so nothing was lost, added or merged across the boundary.
        assert tokenizer.decode(row.prompt_ids + completion, skip_special_tokens=True) == prompt + text


@pytest.mark.parametrize("variant", VARIANTS)
@given(prompt=TEXT)
def test_a_prompt_has_one_bos_where_the_tokenizer_puts_one_and_never_an_eos_behind(variant, prompt):
    tokenizer = tiny_tokenizer(**variant)
    ids = tokenize_prompt(prompt, row_tokenizer(**variant))
    wants_bos = variant["template"].startswith(BOS) or not prompt
    start = tokenizer.bos_token_id if variant.get("bos", True) else tokenizer.eos_token_id
    assert ids.count(start) == wants_bos
    assert (ids[0] == start) == wants_bos
    if prompt:
        assert tokenizer.eos_token_id not in ids


@pytest.mark.parametrize("spelled", [BOS, BOS * 3])
def test_a_bos_spelled_out_in_the_text_is_not_a_second_one(spelled):
    assert tokenize_prompt(f"{spelled}The film", row_tokenizer()) == tokenize_prompt("The film", row_tokenizer())


def test_a_completion_that_begins_with_bos_is_refused():
    with pytest.raises(UserError, match=r"chosen: the completion begins with '<\|bos\|>'; remove it"):
        pair("The film", f"{BOS} is good", " is bad")


def test_eos_is_appended_only_when_asked_and_never_twice():
    bare = TokenSettings(max_length=100, truncation="error", append_eos=False)
    eos = tiny_tokenizer().eos_token_id
    closed, appended = pair("The film", f" is good{EOS}", " is good, it is").completions
    assert closed.count(eos) == appended.count(eos) == 1
    assert all(eos not in completion for completion in pair("The film", " is good", " is bad", bare).completions)


@given(IDS, IDS, IDS)
def test_given_ids_are_taken_as_they_are(prompt, chosen, rejected):
    assume(chosen != rejected)
    row = pair(prompt, chosen, rejected)
    assert (row.prompt_ids, row.completions) == (prompt, (chosen, rejected))
    assert row.row_id == row_id(prompt, (chosen, rejected))


@pytest.mark.parametrize("token", [-1, 320, 2**40])
def test_an_id_outside_the_vocabulary_is_refused(token):
    with pytest.raises(UserError, match=rf"rejected: token id {token} is outside the vocabulary 0\.\.319"):
        pair([1], [2], [3, token])


def test_full_transcript_and_answer_alone_give_the_same_ids():
    alone = pair([QUESTION], [YES], [NO], chat=True)
    assert alone == pair([QUESTION], [QUESTION, YES], [QUESTION, NO], chat=True)
    assert alone == pair(QUESTION["content"], [YES], [NO], chat=True)


def test_chat_ids_are_the_rendered_template_without_a_second_bos():
    tokenizer = tiny_tokenizer(chat=True)
    row = pair([QUESTION], [YES], [NO], chat=True)
    assert tokenizer.decode(row.prompt_ids) == "<user>Is the film good?\n<assistant>"
    assert [tokenizer.decode(ids) for ids in row.completions] == [f"Yes, a triumph.{EOS}", f"No.{EOS}"]


@pytest.mark.parametrize(
    ("prompt", "chosen", "message"),
    [
        ([QUESTION], " is good", "the prompt is chat messages and the completion is text"),
        ([1, 2], [YES], "the prompt is token ids and the completion chat messages"),
        ([QUESTION], [{"role": "user", "content": "And?"}], "does not go on from the prompt"),
        ([QUESTION], [QUESTION], "does not go on from the prompt"),
        ([QUESTION], [{"role": "assistant", "content": ""}], "the completion has no tokens"),
        ("The film", "", "the completion has no tokens"),
        ("The film", EOS, "the completion has no tokens"),
        ([1], [], "the completion has no tokens"),
    ],
)
def test_a_completion_that_answers_nothing_is_an_error_of_its_row(prompt, chosen, message):
    with pytest.raises(UserError, match=message):
        tokenize_sft({"prompt": prompt, "completion": chosen}, row_tokenizer(chat=True), WIDE)


def test_chat_without_a_template_names_the_remedy():
    with pytest.raises(UserError, match="no chat template; use an instruct model's tokenizer"):
        pair([QUESTION], [YES], [NO])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no such role') }}", "refuses these messages .no such role."),
        ("{{ messages | length }}", "renders the prompt differently once an answer follows"),
    ],
)
def test_a_template_that_cannot_be_used_is_an_error(template, message, monkeypatch):
    tokenizer = row_tokenizer(chat=True)
    monkeypatch.setattr(tokenizer.raw, "chat_template", template)
    with pytest.raises(UserError, match=message):
        tokenize_sft({"prompt": [QUESTION], "completion": [YES]}, tokenizer, WIDE)


@pytest.mark.parametrize("truncation", [policy for policy in get_args(Truncation) if policy != "error"])
@given(prompt=IDS, chosen=IDS, rejected=IDS, max_length=st.integers(1, 20))
def test_truncation_keeps_to_max_length_and_empties_nothing(truncation, prompt, chosen, rejected, max_length):
    settings = TokenSettings(max_length, truncation, append_eos=True)
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    outcome = tokenize_pair(row, row_tokenizer(), settings)
    fits = len(prompt) + max(len(chosen), len(rejected)) <= max_length
    if outcome.row is None:
        assert outcome.event in {"dropped_too_long", "identical"}
        assert outcome.event == "identical" or not fits
        return
    kept_prompt, kept = outcome.row.prompt_ids, outcome.row.completions
    assert len(kept_prompt) + max(map(len, kept)) <= max_length
    assert kept_prompt
    assert all(kept)
    assert (outcome.event == "kept") == fits
    # What is left is the prompt's end, behind its BOS where it had one, and the completions' beginnings.
    tail = kept_prompt[1:] if kept_prompt[0] == prompt[0] == tiny_tokenizer().bos_token_id else kept_prompt
    assert tail == prompt[len(prompt) - len(tail) :]
    assert kept == (chosen[: len(kept[0])], rejected[: len(kept[1])])
    assert (kept_prompt == prompt) or truncation == "truncate_prompt_left"
    assert (kept == (chosen, rejected)) or truncation == "truncate_completion"


def test_a_prompt_cut_from_the_left_keeps_its_bos():
    settings = TokenSettings(6, "truncate_prompt_left", append_eos=False)
    row = pair("The film is a quiet triumph", [5, 6, 7], [8], settings)
    assert len(row.prompt_ids) == 3
    assert row.prompt_ids[0] == tiny_tokenizer().bos_token_id


def test_a_row_too_long_is_an_error_that_names_the_length_it_needs():
    with pytest.raises(UserError, match=r"max_length=4; set data.max_length to 5 or more, or data.truncation to drop"):
        pair([1, 2, 3], [4, 5], [6], TokenSettings(4, "error", append_eos=False))


def test_a_pair_of_equal_completions_is_dropped_also_when_truncation_made_them_equal():
    row = {"prompt": [1, 2], "chosen": [3, 4], "rejected": [3, 5]}
    cut = TokenSettings(3, "truncate_completion", append_eos=False)
    assert tokenize_pair(row, row_tokenizer(), WIDE).event == "kept"
    assert tokenize_pair(row, row_tokenizer(), cut).event == "identical"
    assert tokenize_pair({**row, "rejected": [3, 4]}, row_tokenizer(), WIDE).event == "identical"


@given(IDS, IDS, IDS, IDS, IDS, IDS)
def test_row_id_is_the_same_only_for_the_same_ids_and_boundaries(p, c, r, p2, c2, r2):
    assert (row_id(p, (c, r)) == row_id(p2, (c2, r2))) == ((p, c, r) == (p2, c2, r2))


@given(st.lists(st.integers(0, 2**31 - 1), min_size=3, max_size=12), st.data())
def test_row_id_changes_with_a_boundary_and_with_an_id(ids, data):
    def name(ids, a, b):
        return row_id(ids[:a], (ids[a:b], ids[b:]))

    cuts = st.tuples(st.integers(0, len(ids)), st.integers(0, len(ids))).map(sorted)
    one, other = data.draw(cuts), data.draw(cuts)
    assert (name(ids, *one) == name(ids, *other)) == (one == other)
    place = data.draw(st.integers(0, len(ids) - 1))
    changed = [*ids[:place], ids[place] ^ 1, *ids[place + 1 :]]
    assert name(changed, *one) != name(ids, *one)
    assert len(name(ids, *one)) == 16


def test_hash_fraction_is_uniform_on_zero_to_one():
    values = [hash_fraction(str(i).encode()) for i in range(2000)]
    assert all(0 <= value < 1 for value in values)
    assert abs(sum(value < 0.25 for value in values) / 2000 - 0.25) < 0.03
