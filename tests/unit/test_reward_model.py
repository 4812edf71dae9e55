"""Reward models: what they read, what they are exported as, and what is refused."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from raydpo.errors import UserError
from raydpo.model.families import causal_models, check_has_classifier, sequence_classifiers
from raydpo.model.layout import is_packed
from raydpo.model.rate import rate_rows
from raydpo.model.reward_card import HeldOut, RewardCard, read_card
from raydpo.model.reward_head import RewardModel
from raydpo.model.reward_model import (
    is_reward_model,
    load_reward_model,
    own_rewards,
    padding_id,
    save_reward_model,
    start_reward_model,
)
from raydpo.model.tokenizer import load_tokenizer, vocabulary_digest
from tests.families import FAMILIES, PACKED, save_family
from tests.helpers import tiny_tokenizer
from tests.models import make_batch, make_row, random_rows, tiny_llama

pytestmark = pytest.mark.unit

KINDS = sorted(FAMILIES.keys() & sequence_classifiers().keys())


def saved(kind: str, directory: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> str:
    """A small random model of a family, and a tokenizer beside it."""
    (tokenizer or tiny_tokenizer()).save_pretrained(directory)
    return save_family(kind, directory)


def exported(source: str, directory: Path, *, heads: int = 1) -> tuple[RewardModel, Path]:
    """A new reward model, and its export."""
    lm = start_reward_model(source, dtype="float32", heads=heads, seed=3)
    state = {name: weight.detach() for name, weight in lm.state_dict().items()}
    save_reward_model(lm, load_tokenizer(source), directory, state, identity="run", step=7)
    return RewardModel(lm), directory


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_gives_the_rewards_of_an_export_one_text_at_a_time(kind: str, tmp_path: Path) -> None:
    source = saved(kind, tmp_path / "lm")
    lm = start_reward_model(source, dtype="float32", heads=1, seed=3)
    assert is_packed(lm) == (kind in PACKED)
    model, export = exported(source, tmp_path / "export")
    batch = make_batch(random_rows(4, seed=0, completions=3))
    torch.testing.assert_close(own_rewards(export, batch, dtype="float32"), model.rewards(batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("kind", ["llama", "gptj", "qwen2"])
def test_a_loaded_reward_model_is_the_one_that_was_exported(kind: str, heads: int, tmp_path: Path) -> None:
    model, export = exported(saved(kind, tmp_path / "lm"), tmp_path / "export", heads=heads)
    batch = make_batch(random_rows(6, seed=0, completions=3))
    loaded = load_reward_model(str(export), dtype="float32")
    assert torch.equal(loaded.head_rewards(batch), model.head_rewards(batch))
    assert loaded.head_rewards(batch).shape == (18, heads)


def test_the_one_head_of_an_ensembles_export_gives_the_mean_of_its_heads(tmp_path: Path) -> None:
    model, export = exported(saved("llama", tmp_path / "lm"), tmp_path / "export", heads=4)
    batch = make_batch(random_rows(6, seed=0))
    assert AutoModelForSequenceClassification.from_pretrained(export).score.weight.shape == (1, 64)
    torch.testing.assert_close(own_rewards(export, batch, dtype="float32"), model.rewards(batch), rtol=1e-5, atol=1e-5)
    assert model.head_rewards(batch).std(dim=1).min() > 1e-3, "the heads are one: no test"


def test_texts_padded_to_one_length_have_the_rewards_that_they_have_alone(tmp_path: Path) -> None:
    """A tokenizer that pads with EOS, as SmolLM2's does, would have transformers read the token before the EOS."""
    tokenizer = deepcopy(tiny_tokenizer())
    tokenizer.pad_token = tokenizer.eos_token
    model, export = exported(saved("llama", tmp_path / "lm", tokenizer), tmp_path / "export")
    lm = AutoModelForSequenceClassification.from_pretrained(export)
    padding = load_tokenizer(str(export)).pad_token_id
    assert padding == lm.config.pad_token_id != tokenizer.eos_token_id
    rows = [make_row(row.prompt_ids, *([*ids, tokenizer.eos_token_id] for ids in row.completions))
            for row in random_rows(5, seed=1)]  # fmt: skip
    texts = [torch.tensor(row.prompt_ids + list(ids)) for row in rows for ids in row.completions]
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=padding)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
    with torch.no_grad():
        padded = lm(input_ids=ids, attention_mask=mask).logits[:, 0]
    torch.testing.assert_close(padded, model.rewards(make_batch(rows)), rtol=1e-5, atol=1e-5)


def test_padding_is_a_token_that_no_completion_ends_with() -> None:
    tokenizer = deepcopy(tiny_tokenizer())
    assert padding_id(tokenizer, []) == tokenizer.bos_token_id  # it has no padding of its own
    tokenizer.pad_token = tokenizer.eos_token
    assert padding_id(tokenizer, []) == tokenizer.bos_token_id
    assert padding_id(tokenizer, [tokenizer.bos_token_id]) is None  # as GPT-2's, whose one special token is all three


def test_a_reward_reads_its_own_completion_alone() -> None:
    """Neither the completions beside it nor what is packed with it moves a reward."""
    lm = tiny_llama()
    rows = random_rows(4, seed=0, completions=3)
    model = _of(lm)
    alone = torch.cat([model.rewards(make_batch([make_row(row.prompt_ids, ids)])) for row in rows
                       for ids in row.completions])  # fmt: skip
    torch.testing.assert_close(model.rewards(make_batch(rows)), alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        rate_rows(model, rows, tokens_per_microbatch=80).mean(dim=1), alone, rtol=1e-5, atol=1e-5
    )


def test_the_last_token_of_a_completion_moves_its_reward() -> None:
    [row] = random_rows(1, seed=3)
    model = _of(tiny_llama())
    other = make_row(row.prompt_ids, *([*ids[:-1], (ids[-1] + 1) % 200] for ids in row.completions))
    assert (model.rewards(make_batch([row])) - model.rewards(make_batch([other]))).abs().min() > 1e-3


def _of(lm: torch.nn.Module) -> RewardModel:
    from raydpo.model.reward_model import _classifier, _with_heads

    draws = torch.Generator().manual_seed(0)
    return RewardModel(_with_heads(_classifier(lm, "tiny"), torch.randn(1, 64, generator=draws)))


def test_heads_are_the_same_for_a_seed_and_differ_between_seeds(tmp_path: Path) -> None:
    source = saved("llama", tmp_path)
    first, same, other = (start_reward_model(source, dtype="float32", heads=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.score.weight, same.score.weight)
    assert not torch.equal(first.score.weight, other.score.weight)
    assert not torch.equal(first.score.weight[0], first.score.weight[1])
    assert is_reward_model(first)


@pytest.mark.parametrize("kind", sorted(FAMILIES.keys() - sequence_classifiers().keys() - {"gemma3"})[:3])
def test_a_family_without_a_classifier_is_refused_with_those_that_have_one(kind: str) -> None:
    with pytest.raises(UserError, match=rf"no sequence classifier for model_type '{kind}'.*gpt2.*llama.*qwen2"):
        check_has_classifier("m", kind)


def test_what_is_read_of_transformers_is_what_it_has() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as NAMES

    assert dict(sequence_classifiers()) == dict(NAMES)
    assert sequence_classifiers().keys() & causal_models().keys()


def test_a_card_is_read_as_it_was_written_and_its_lack_is_named(tmp_path: Path) -> None:
    card = RewardCard("last", 3, "tokens", "run", 7, HeldOut(10, 0.7, 0.1, 1.5))
    with pytest.raises(UserError, match=r"has no reward_model\.json.*raydpo reward"):
        read_card(str(tmp_path))
    card.write(tmp_path)
    assert read_card(str(tmp_path)) == card
    (tmp_path / "reward_model.json").write_text('{"head": "last"}')
    with pytest.raises(UserError, match="is damaged"):
        read_card(str(tmp_path))


def test_the_name_of_a_vocabulary_survives_saving_and_another_padding(tmp_path: Path) -> None:
    source = saved("llama", tmp_path / "lm")
    _, export = exported(source, tmp_path / "export")
    assert read_card(str(export)).tokenizer == vocabulary_digest(tiny_tokenizer())
    assert vocabulary_digest(load_tokenizer(str(export))) == vocabulary_digest(tiny_tokenizer())


def test_an_export_without_its_heads_is_refused(tmp_path: Path) -> None:
    _, export = exported(saved("llama", tmp_path / "lm"), tmp_path / "export", heads=3)
    (export / "ensemble" / "heads.safetensors").unlink()
    with pytest.raises(UserError, match="has 1 heads, and should have 3"):
        load_reward_model(str(export), dtype="float32")
