"""Laws of the arithmetic count."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from raydpo.data.pack import Pack, pack_rows
from raydpo.data.tokens import TokenRow
from raydpo.model.flops import forward_flops
from tests.families import FAMILIES, GROUPED, SMALL
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
    flops = forward_flops(lm, pack.bounds)
    assert flops is not None
    return flops


def _family(name: str, **settings: object) -> PreTrainedModel:
    """Without weights: shapes are all that is counted."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**settings))


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


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_has_a_count_or_none_and_never_an_error(name: str) -> None:
    flops = forward_flops(_family(name, **FAMILIES[name]), pack_rows(random_rows(2, seed=0)).bounds)
    assert flops is None if name in {"rwkv", "xlstm", "dbrx"} else flops is not None and flops > 0


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_of_experts_only_those_count_that_a_token_goes_to(name: str) -> None:
    pack, experts = pack_rows(random_rows(2, seed=0)), {"num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8}
    latent = {
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "topk_group": 1,
        "n_group": 1,
        "first_k_dense_replace": 0,
    }
    one, two, four = (
        _flops(_family(name, **GROUPED, **experts, **latent, num_experts_per_tok=k), pack) for k in (1, 2, 4)
    )
    assert one < two < four
    assert four - two == pytest.approx(2 * (two - one))


def test_of_a_model_for_images_too_only_the_layers_for_text_count() -> None:
    pack = pack_rows(random_rows(2, seed=0))
    whole, text = (_family(name, **FAMILIES[name]) for name in ("gemma3", "gemma3_text"))
    assert _flops(whole, pack) == _flops(text, pack)


def test_a_recurrence_counts_as_its_matrices() -> None:
    sizes = {**SMALL, "hidden_size": 64, "state_size": 8}
    shallow, deep = (_family("mamba", **sizes, num_hidden_layers=n) for n in (1, 2))
    matrices = sum(p.numel() for p in shallow.backbone.layers.parameters() if p.dim() > 1)
    row = make_row([1] * 10, [2] * 4, [3] * 5)
    assert _flops(deep, pack_rows([row])) - _flops(shallow, pack_rows([row])) == 2 * matrices * 19
