"""The models that benchmarks run: a directory that is given, or random weights in the shape of SmolLM2-135M."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from raydpo.model.load import DTYPES
from raydpo.model.reward_model import pad_as, save_reward_model, start_reward_model
from raydpo.model.tokenizer import load_tokenizer

TEXT = Path(__file__).parents[1] / "LICENSE"  # English that is always here and does not change
VOCAB_SIZE = 49152
EOS_ID = 2


def smollm_config() -> LlamaConfig:
    """SmolLM2-135M's architecture."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=EOS_ID,
        pad_token_id=EOS_ID,
    )


def write_random_model(directory: Path) -> Path:
    """SmolLM2-135M's architecture with random weights, always the same, and a tokenizer of numbers."""
    torch.manual_seed(0)
    LlamaForCausalLM(smollm_config()).to(torch.bfloat16).save_pretrained(directory)
    numbers = Tokenizer(models.WordLevel({str(i): i for i in range(VOCAB_SIZE)}, unk_token="0"))
    eos = str(EOS_ID)
    PreTrainedTokenizerFast(tokenizer_object=numbers, eos_token=eos, pad_token=eos).save_pretrained(directory)
    return directory


def write_other_weights(model: Path, directory: Path, *, dtype: str) -> Path:
    """The model with every weight moved a little: as reference, it makes the first loss say something (not ln 2)."""
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=DTYPES[dtype])
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in lm.parameters():
            weight.add_(torch.randn_like(weight) * 0.01 * weight.abs().mean())
    lm.save_pretrained(directory)
    AutoTokenizer.from_pretrained(model).save_pretrained(directory)
    return directory


def write_classifier(model: Path, directory: Path, *, dtype: str) -> Path:
    """The reward model that raydpo starts from on a run's seed of 0, untrained, for others to start from too."""
    classifier = start_reward_model(str(model), dtype=dtype, heads=1, seed=0)
    tokenizer = pad_as(load_tokenizer(str(model)), classifier)
    state = {name: value.clone() for name, value in classifier.state_dict().items()}
    save_reward_model(classifier, tokenizer, directory, state, identity="benchmark", step=0)
    return directory


def source_ids(model: Path | None) -> list[int]:
    """A text as the model's token ids, to cut pairs from; random ids for random weights.

    A trained model finds random ids so unlikely that float32 sums of their log-probs lose the digits being compared.
    """
    if model is None:
        ids: list[int] = np.random.default_rng(0).integers(EOS_ID + 1, VOCAB_SIZE, 4096).tolist()
        return ids
    tokens: list[int] = AutoTokenizer.from_pretrained(model)(TEXT.read_text(), add_special_tokens=False)["input_ids"]
    return tokens
