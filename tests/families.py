"""One tiny model, with random weights, of every architecture that raydpo answers for."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests.models import VOCAB_SIZE

SMALL = {"vocab_size": VOCAB_SIZE, "initializer_range": 0.1, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
MODERN = {
    **SMALL,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
GROUPED = {**MODERN, "num_key_value_heads": 2}
GEMMA = {**GROUPED, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 6}
GPT = {**SMALL, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "rotary_dim": 8}

PACKED = {
    "gpt2": GPT,
    "gpt_neox": MODERN,
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 16},
    "mistral": {**GROUPED, "sliding_window": 6},
    "gemma": {**GROUPED, "head_dim": 16},
    "gemma2": {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": {**GEMMA, "sliding_window_pattern": 2},
    "phi": MODERN,
    "phi3": GROUPED,
    "olmo2": GROUPED,
    "opt": {**MODERN, "ffn_dim": 96, "word_embed_proj_dim": 64, "init_std": 0.1},
}
PADDED = {
    "gptj": GPT,
    "bloom": {**SMALL, "hidden_size": 64, "n_layer": 2, "n_head": 4},
    "mamba": {**SMALL, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
    "lfm2": {**GROUPED, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
}
FAMILIES = {**PACKED, **PADDED}


def save_family(name: str, path: Path) -> str:
    """Write a tiny model of an architecture as a directory in Hugging Face format; always the same weights."""
    config = CONFIG_MAPPING[name](**FAMILIES[name])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return str(path)
