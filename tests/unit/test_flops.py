"""Laws of the arithmetic count."""

from __future__ import annotations

import pytest
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from raydpo.data.pack import Pack, pack_rows
from raydpo.data.tokens import TokenRow
from raydpo.model.flops import forward_flops
from tests.models import make_row, random_rows, tiny_llama

pytestmark = pytest.mark.unit

SIZES = {"vocab_size": 211, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
MODELS: dict[str, PreTrainedModel] = {
    "tied": tiny_llama(tied=True),
    "untied": tiny_llama(tied=False),
    "heads wider than the hidden size": LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=4, head_dim=24)),
}


def _allowed_pairs(row: TokenRow) -> int:
    """(query, key) pairs counted one by one: a key is seen when it is not later, in the prompt or one's completion."""
    owners = [None] * len(row.prompt_ids) + [j for j, c in enumerate(row.completions) for _ in c]
    return sum(owners[k] in (None, owners[q]) for q in range(len(owners)) for k in range(q + 1))


def _flops(lm: PreTrainedModel, pack: Pack) -> float:
    return forward_flops(lm, pack.bounds)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_count_is_matrices_head_and_attention(name: str, n: int) -> None:
    lm, rows = MODELS[name], random_rows(4, seed=n, completions=n)
    layer = lm.model.layers[0]
    matrices = sum(m.weight.numel() for m in layer.modules() if isinstance(m, nn.Linear)) * len(lm.model.layers)
    attention_width = layer.self_attn.q_proj.out_features
    tokens = sum(len(row.prompt_ids) + sum(map(len, row.completions)) for row in rows)
    completion = sum(len(c) for row in rows for c in row.completions)
    scores_and_sums = 2 * sum(map(_allowed_pairs, rows)) * attention_width * len(lm.model.layers)
    expected = 2 * (matrices * tokens + lm.lm_head.weight.numel() * completion + scores_and_sums)
    assert _flops(lm, pack_rows(rows)) == expected


def test_looking_up_an_embedding_is_no_arithmetic() -> None:
    sizes = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 2}
    short, long = (GPT2LMHeadModel(GPT2Config(n_positions=n, **sizes)) for n in (16, 64))
    pack = pack_rows([make_row([1, 2], [3], [4])])
    assert _flops(short, pack) == _flops(long, pack)


def test_sharing_the_prompt_saves_reading_it_again() -> None:
    row = make_row([1] * 10, [2] * 4, [3] * 5)
    apart = [make_row(row.prompt_ids, completion) for completion in row.completions]
    prompt_alone = _flops(MODELS["tied"], pack_rows(apart)) - _flops(MODELS["tied"], pack_rows([row]))
    layers, width, prompt = 2, 64, 10
    matrices = sum(m.weight.numel() for m in MODELS["tied"].model.layers.modules() if isinstance(m, nn.Linear))
    assert prompt_alone == 2 * matrices * prompt + 4 * layers * width * prompt * (prompt + 1) // 2


def test_rows_of_a_pack_add_up() -> None:
    rows = random_rows(5, seed=0)
    apart = sum(_flops(MODELS["untied"], pack_rows([row])) for row in rows)
    assert _flops(MODELS["untied"], pack_rows(rows)) == apart
