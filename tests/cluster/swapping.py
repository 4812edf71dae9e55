"""Swap models under one vLLM engine and compare it with transformers after each swap; the answer is a line of JSON.

A process of its own: an engine in this process leaves its traces there until the process ends.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig

from raydpo.config.schema import Decoding, Sampler
from raydpo.data.pack import pack_rows
from raydpo.data.tokens import TokenRow
from raydpo.model.batch import Batch
from raydpo.model.load import DTYPES, load_model
from raydpo.model.score import ScoringModel
from raydpo.rollout.engine import Completion, Engine
from tests.helpers import tiny_tokenizer

PROMPTS = [[0, *range(5 + 7 * i, 15 + 11 * i)] for i in range(8)]
ORDER = ["A", "B", "C", "A"]
DECODINGS = Decoding(temperature=0, max_tokens=12), Decoding(temperature=0.7, top_p=0.9, max_tokens=24)


def configuration(family: str) -> PreTrainedConfig:
    size = len(tiny_tokenizer())
    if family == "gpt2":
        return GPT2Config(vocab_size=size, n_embd=64, n_layer=2, n_head=2, n_positions=256, initializer_range=0.1)
    return LlamaConfig(
        vocab_size=size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.1,
        tie_word_embeddings=family == "llama-tied",
    )


def save(family: str, dtype: str, directory: Path) -> dict[str, str]:
    """Models of one shape and different weights."""
    paths = {}
    for seed, name in enumerate(sorted(set(ORDER))):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(configuration(family)).to(DTYPES[dtype])
        paths[name] = str(directory / name)
        model.save_pretrained(paths[name])
        tiny_tokenizer().save_pretrained(paths[name])
    return paths


def gap(path: str, dtype: str, drawn: list[Completion]) -> float:
    """Mean |Δ log-prob| a token between the engine and the path that training uses, in nats."""
    rows = [TokenRow(b"", ids, (each.ids,)) for ids, each in zip(PROMPTS, drawn, strict=True)]
    own = ScoringModel(load_model(path, dtype=dtype)).token_logps(Batch.from_pack(pack_rows(rows)))
    sampled = torch.tensor([logp for each in drawn for logp in each.logps])
    return float((own - sampled).abs().mean())


@torch.no_grad()
def regret(path: str, dtype: str, drawn: list[Completion]) -> float:
    """How much likelier transformers finds its own greedy token than the engine's, at worst, in nats. 0: all equal."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype])
    worst = 0.0
    for prompt, completion in zip(PROMPTS, drawn, strict=True):
        logits = model(torch.tensor([prompt + completion.ids])).logits[0, len(prompt) - 1 : -1].float()
        taken = logits.gather(1, torch.tensor(completion.ids)[:, None]).squeeze(1)
        worst = max(worst, float((logits.amax(1) - taken).max()))
    return worst


def main(family: str, dtype: str, directory: Path) -> None:
    paths = save(family, dtype, directory)
    settings = Sampler(max_model_len=128, max_num_seqs=8)
    engine = Engine(paths["A"], dtype=dtype, settings=settings, vocabulary=len(tiny_tokenizer()))
    found = []
    for name in ORDER:
        engine.load(paths[name])
        greedy, drawn = (
            [c for [c] in engine.sample(PROMPTS, each, n=1, seed=1, stop_ids=[], with_logps=len(PROMPTS))]
            for each in DECODINGS
        )
        found.append(
            {
                "model": name,
                "regret": regret(paths[name], dtype, greedy),
                "greedy": gap(paths[name], dtype, greedy),
                "gap": {other: gap(paths[other], dtype, drawn) for other in paths},
            }
        )
    print("FOUND " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
