"""Tiny models and random rows for the tests.

Legend: n completions per row, L tokens of one completion, V vocabulary, K heads, D hidden size.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedModel

from raydpo.data.pack import pack_rows
from raydpo.data.tokens import TokenRow, row_id
from raydpo.model import attention
from raydpo.model.batch import Batch
from raydpo.model.reward_head import RewardHead
from raydpo.objective.contract import REF_LOGPS
from tests.helpers import tiny_tokenizer

VOCAB_SIZE = 211

torch.set_num_threads(1)  # at this size threads cost more than they bring


def tiny_llama(tied: bool = True, dtype: torch.dtype = torch.float32, vocab_size: int = VOCAB_SIZE) -> LlamaForCausalLM:
    """Two layers with grouped-query attention, always the same weights.

    They are drawn wide: under transformers' default of 0.02 attention is all but uniform, and a token that a
    completion must not see would hardly move its log-prob.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(_tiny_config(tied, vocab_size)).to(dtype)


def tiny_classifier(heads: int = 1, dtype: torch.dtype = torch.float32) -> LlamaForSequenceClassification:
    """As many layers under transformers' own head, [K, D]; of the pooling kind that reads the last token."""
    config = _tiny_config(tied=True, vocab_size=VOCAB_SIZE)
    config.num_labels = heads
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForSequenceClassification(config).to(dtype)


def tiny_reward_model(heads: int = 1, dtype: torch.dtype = torch.float32) -> LlamaForSequenceClassification:
    """The same weights under our head, as raydpo.model.reward_model makes them of a language model."""
    lm = tiny_classifier(heads, dtype)
    head = RewardHead(lm.config.hidden_size, heads).to(dtype)
    head.load_state_dict(lm.score.state_dict())
    lm.score = head
    lm.config.num_labels = 1  # what an export has, of however many heads
    lm.config.architectures = [type(lm).__name__]
    return lm.eval()


def _tiny_config(tied: bool, vocab_size: int) -> LlamaConfig:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.1,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=1,
    )
    config._attn_implementation = attention.NAME
    return config


def random_rows(n: int, seed: int, completions: int = 2) -> list[TokenRow]:
    """Rows of 1 to 29 prompt tokens and 1 to 19 tokens per completion."""
    rng = np.random.default_rng(seed)

    def tokens(longest: int) -> list[int]:
        ids: list[int] = rng.integers(VOCAB_SIZE, size=rng.integers(1, longest)).tolist()
        return ids

    return [make_row(tokens(30), *(tokens(20) for _ in range(completions))) for _ in range(n)]


def make_row(prompt: list[int], *completions: list[int]) -> TokenRow:
    return TokenRow(row_id(prompt, completions), prompt, completions)


def make_batch(rows: list[TokenRow], ref_logps: Tensor | None = None, **columns: Tensor) -> Batch:
    """ref_logps: one value a completion, whatever its shape, and so are the other columns."""
    if ref_logps is not None:
        columns[REF_LOGPS] = ref_logps
    return Batch.from_pack(pack_rows(rows), {name: values.flatten() for name, values in columns.items()})


def exact(lm: PreTrainedModel) -> PreTrainedModel:
    """A twin in float64 with transformers' own attention: the other half of every comparison."""
    twin = deepcopy(lm).double()
    twin.set_attn_implementation("eager")
    return twin


def exact_logps(twin: PreTrainedModel, row: TokenRow) -> list[Tensor]:
    """log π(·|x, y<t) over the whole vocabulary, [L, V] for each of n completions: one unpacked pass for each."""
    result = []
    for completion in row.completions:
        logits = twin(input_ids=torch.tensor([row.prompt_ids + completion])).logits[0]
        first = len(row.prompt_ids) - 1
        result.append(logits[first : first + len(completion)].log_softmax(dim=1))
    return result


def save_tiny_model(path: Path) -> None:
    """A directory in Hugging Face format: the tiny Llama and the tiny tokenizer."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(path)
    tiny_llama(vocab_size=len(tokenizer)).save_pretrained(path)
