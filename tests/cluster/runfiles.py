"""Run files small enough for a test, with the model and the data that they name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from raydpo.config.yaml12 import write_yaml
from tests.helpers import tiny_tokenizer

WORDS = [
    "film",
    "story",
    "hero",
    "light",
    "man",
    "home",
    "quiet",
    "good",
    "tepid",
    "talky",
    "one",
    "the",
    "a",
    "is",
    "and",
    "finds",
    "never",
    "way",
]
NUM_PAIRS, NUM_PROMPTS = 96, 48
REWARD = "tests.cluster.runfiles:count_e"


def count_e(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """A reward that an untrained model earns in different amounts: how often the letter e occurs."""
    return [float(completion.count("e")) for completion in completions]


def make_inputs(directory: Path) -> Path:
    """A model and all the data that the run files below name; returns the directory."""
    save_model(directory / "model")
    rng = np.random.default_rng(0)
    sentences = [" ".join(rng.choice(WORDS, size=rng.integers(4, 12))) for _ in range(3 * NUM_PAIRS)]
    thirds = zip(sentences[::3], sentences[1::3], sentences[2::3], strict=True)
    pairs = [{"prompt": f"{p} {i}", "chosen": f" {c}", "rejected": f" {r}"} for i, (p, c, r) in enumerate(thirds)]
    prompts = [{"prompt": f"{i} {text}"} for i, text in enumerate(sentences[:NUM_PROMPTS])]
    write_jsonl(directory / "pairs.jsonl", pairs)
    write_jsonl(directory / "prompts.jsonl", prompts)
    write_jsonl(directory / "sft.jsonl", [{"prompt": p["prompt"], "completion": p["chosen"]} for p in pairs])
    return directory


def save_model(path: Path) -> None:
    """A tiny Llama with heads 32 wide: the smallest that vLLM's CPU attention takes."""
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.1,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


def small_run(inputs: Path, output_dir: Path) -> dict[str, Any]:
    """Prepare, precompute and train on ready-made pairs: no vLLM. 48 steps over 96 pairs, a checkpoint at each."""
    return {
        "name": "small",
        "output_dir": str(output_dir),
        "model": {"path": str(inputs / "model"), "dtype": "float32"},
        "data": {"train": [str(inputs / "pairs.jsonl")], "max_length": 96, "rows_per_shard": 32},
        "reference": {"pool": {"max_actors": 2, "cpus": 1}},
        "train": {
            "workers": {"count": 2},
            "epochs": 4,
            "global_batch_size": 8,
            "tokens_per_microbatch": 192,
            "optimizer": {"name": "rmsprop", "lr": 1e-4, "warmup_steps": 2},
            "zero": {"stage": 2},
            "checkpoint_every": 1,
        },
        "cluster": {"num_cpus": 8, "object_store_gib": 0.2},  # for scheduling only
    }


def whole_run(inputs: Path, output_dir: Path) -> dict[str, Any]:
    """Every stage: sft, sample, prepare, precompute, train with evaluation beside it, evaluate, report."""
    run = small_run(inputs, output_dir)
    run["name"] = "whole"
    run["data"] = {"max_length": 96, "rows_per_shard": 32, "append_eos": False, "held_out_fraction": 0.1}
    decoding = {"max_tokens": 12}
    prompts = [str(inputs / "prompts.jsonl")]
    run["sft"] = run["train"] | {
        "train": [str(inputs / "sft.jsonl")],
        "max_steps": 4,
        "optimizer": {"name": "adamw", "lr": 1e-3, "warmup_steps": 1},
        "zero": {"stage": 1},
        "checkpoint_every": 100,
    }
    run["sample"] = {"prompts": prompts, "completions_per_prompt": 4, "decoding": decoding, "reward": REWARD}
    run["train"] |= {"max_steps": 10, "evaluate_every": 4, "checkpoint_every": 4}
    run["sampler"] = {"max_model_len": 96, "max_num_seqs": 32, "kv_cache_gib": 1}
    run["evaluate"] = {"prompts": prompts, "limit": 24, "decoding": decoding, "reward": REWARD}
    return run


def write_run_file(path: Path, run: dict[str, Any]) -> Path:
    """The run file as YAML; returns its path."""
    path.write_text(write_yaml(run))
    return path


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """One object a line; returns the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
