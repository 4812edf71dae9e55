"""One tiny model, with random weights, of every architecture that raydpo answers for.

Windows are longer than the probe's rows and shorter than those of the tests. Every factor of the logits, and what
training would add as noise, has another value than the one at which it does nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests.models import VOCAB_SIZE

WINDOW = 30
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
GEMMA = {**GROUPED, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": WINDOW}
GPT = {**SMALL, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "rotary_dim": 8}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1}
ROUTED |= {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
HEADS = {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
LATENT = {**MODERN, **HEADS, "num_key_value_heads": 4}
FEW_HEADS = {**LATENT, "num_key_value_heads": 2}  # of which transformers makes a model that runs on single texts only
INDEXED = {**LATENT, **ROUTED, "index_topk": 8, "index_n_heads": 16, "index_head_dim": 16}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
STATES = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 16}
NGRAM = {**SMALL, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 256}
PER_LAYER = {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": VOCAB_SIZE, "num_kv_shared_layers": 0}
MIXED = ["sliding_attention", "full_attention"]

PACKED: dict[str, dict[str, Any]] = {
    "gpt2": GPT,
    "gpt_neox": MODERN,
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 16},
    "qwen3_moe": {**GROUPED, **EXPERTS, "head_dim": 16},
    "mistral": {**GROUPED, "sliding_window": WINDOW},
    "ministral3": {**GROUPED, "head_dim": 16, "sliding_window": WINDOW},
    "mixtral": {**GROUPED, **EXPERTS, "sliding_window": WINDOW},
    "gemma": {**GROUPED, "head_dim": 16},
    "gemma2": {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": {**GEMMA, "sliding_window_pattern": 2},
    "gemma4_text": {**GEMMA, **PER_LAYER, "global_head_dim": 16, "layer_types": MIXED},
    "phi": MODERN,
    "phi3": {**GROUPED, "sliding_window": WINDOW},
    "olmo2": GROUPED,
    "olmo3": {**GROUPED, "sliding_window": WINDOW, "layer_types": MIXED},
    "olmoe": {**GROUPED, **EXPERTS},
    "opt": {**MODERN, "ffn_dim": 96, "word_embed_proj_dim": 64, "init_std": 0.1},
    "granite": {**GROUPED, "logits_scaling": 3.0},
    "granitemoe": {**GROUPED, **EXPERTS, "logits_scaling": 3.0},
    "cohere": {**GROUPED, "logit_scale": 0.25},
    "cohere2": {**GROUPED, "logit_scale": 0.25, "head_dim": 16, "sliding_window": WINDOW, "layer_types": MIXED},
    "hyperclovax": {**GROUPED, "logits_scaling": 2.0},
    "apertus": GROUPED,
    "smollm3": GROUPED,
    "exaone4": {**GROUPED, "head_dim": 16, "sliding_window": WINDOW, "layer_types": MIXED},
    "starcoder2": {**GROUPED, "sliding_window": WINDOW},
    "nanochat": {**GROUPED, "final_logit_softcapping": 3.0},
    "glm4_moe": {**GROUPED, **ROUTED, "head_dim": 16},
    "ernie4_5_moe": {
        **GROUPED,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 32,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": 1,
    },
    "minimax_m2": {**GROUPED, **EXPERTS, "head_dim": 16},
    "deepseek_v2": {**LATENT, **ROUTED},
    "deepseek_v3": {**LATENT, **ROUTED},
    "minicpm3": FEW_HEADS,
    "youtu": FEW_HEADS,
    "longcat_flash": {
        **FEW_HEADS,
        "num_layers": 2,
        "n_routed_experts": 4,
        "ffn_hidden_size": 96,
        "expert_ffn_hidden_size": 32,
        "head_dim": 8,
        "moe_topk": 2,
        "zero_expert_num": 1,
    },
    "dbrx": {
        **NGRAM,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 64},
    },
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
}
PACKED["gemma3"] = {"text_config": PACKED["gemma3_text"], "vision_config": VISION, "mm_tokens_per_image": 4}
PADDED: dict[str, dict[str, Any]] = {
    "gptj": GPT,
    "gpt_neo": {
        **MODERN,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 6,
    },
    "bloom": {**SMALL, "hidden_size": 64, "n_layer": 2, "n_head": 4},
    "mpt": NGRAM,
    "falcon": {**MODERN, "num_kv_heads": 2, "new_decoder_architecture": True},
    "biogpt": {**MODERN, "hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3, "layerdrop": 0.3},
    "mamba": {**SMALL, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
    "mamba2": {
        **SMALL,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "state_size": 8,
        "num_heads": 8,
        "head_dim": 16,
        "n_groups": 1,
        "chunk_size": 16,
    },
    "rwkv": {
        **SMALL,
        "hidden_size": 64,
        "attention_hidden_size": 64,
        "num_hidden_layers": 2,
        "context_length": 256,
        "use_cache": False,
    },
    "lfm2": {**GROUPED, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "qwen2_moe": {
        **GROUPED,
        **EXPERTS,
        "shared_expert_intermediate_size": 32,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "layer_types": MIXED,
    },
    "qwen3_next": {
        **GROUPED,
        **EXPERTS,
        **LINEAR,
        "shared_expert_intermediate_size": 32,
        "head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "gpt_oss": {**GROUPED, **EXPERTS, "head_dim": 16, "sliding_window": WINDOW, "layer_types": MIXED},
    "llama4_text": {
        **GROUPED,
        **EXPERTS,
        "head_dim": 16,
        "attention_chunk_size": WINDOW,
        "intermediate_size_mlp": 96,
        "moe_layers": [1],
        "num_hidden_layers": 4,
    },
    "nemotron": GROUPED,
    "doge": {**GROUPED, "keep_window_size": 64},
    "minimax": {
        **GROUPED,
        **EXPERTS,
        "head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"],
        "block_size": 8,
    },
    "falcon_h1": {**GROUPED, **STATES, "mamba_d_ssm": 128, "lm_head_multiplier": 0.5},
    "jamba": {
        **GROUPED,
        **EXPERTS,
        "mamba_dt_rank": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "recurrent_gemma": {**GROUPED, "num_hidden_layers": 3, "attention_window_size": 6, "head_dim": 16, "lru_width": 64},
    "deepseek_v32": INDEXED,
    "glm_moe_dsa": INDEXED,
    "xlstm": {**SMALL, "hidden_size": 64, "num_heads": 4, "num_blocks": 2, "chunk_size": 16, "use_cache": False},
}
FAMILIES = {**PACKED, **PADDED}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "mixtral": ({**GROUPED, **EXPERTS, "router_jitter_noise": 0.1}, "in training .* MixtralSparseMoeBlock"),
    "minimax_m2": ({**GROUPED, **EXPERTS, "router_jitter_noise": 0.1}, "in training .* MiniMaxM2SparseMoeBlock"),
    "phimoe": ({**GROUPED, **EXPERTS, "router_jitter_noise": 0.3}, "in training "),
    "xlnet": (
        {**SMALL, "d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 96},
        "other tokens at the end of a text move",
    ),
    "bert": ({**MODERN, "is_decoder": True}, "does something to its logits that raydpo does not know"),
}


def save_family(name: str, path: Path, settings: dict[str, Any] | None = None) -> str:
    """Write a tiny model of an architecture as a directory in Hugging Face format; always the same weights."""
    config = CONFIG_MAPPING[name](**(settings or FAMILIES[name]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lm = AutoModelForCausalLM.from_config(config)
        for weight in lm.parameters():  # some begin as zeros or ones, at which much of what a family adds does nothing
            weight.data.add_(torch.randn_like(weight), alpha=0.1)
        lm.save_pretrained(path)
    return str(path)
