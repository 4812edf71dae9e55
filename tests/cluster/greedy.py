"""Greedy completions of an export, by transformers here and by vLLM in a process of its own.

python -m tests.cluster.greedy EXPORT        prints vLLM's token ids as JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.cluster.processes import PYTHON, job

PROMPTS = ("The film is", "A quiet hero", "one man and", "way home", "tepid talky light")
MAX_TOKENS = 24
VLLM = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


def prompt_ids(export: Path) -> list[list[int]]:
    """The prompts in the tokens of the export's own tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(export)
    ids: list[list[int]] = tokenizer(list(PROMPTS))["input_ids"]
    return ids


def transformers_greedy(export: Path) -> list[list[int]]:
    """New token ids per prompt, by plain transformers."""
    lm = AutoModelForCausalLM.from_pretrained(export, attn_implementation="eager")
    completions = []
    for ids in prompt_ids(export):
        output = lm.generate(torch.tensor([ids]), max_new_tokens=MAX_TOKENS, do_sample=False)
        completions.append(output[0, len(ids) :].tolist())
    return completions


def vllm_greedy(export: Path) -> list[list[int]]:
    """New token ids per prompt, by plain vLLM."""
    with job(PYTHON, "-m", "tests.cluster.greedy", export, env=VLLM) as started:
        completions: list[list[int]] = json.loads(started.wait().succeeded().stdout.splitlines()[-1])
    return completions


def _in_this_process(export: Path) -> list[list[int]]:
    import vllm

    llm = vllm.LLM(model=str(export), dtype="float32", max_model_len=96, enforce_eager=True, disable_log_stats=True)
    inputs = [vllm.TokensPrompt(prompt_token_ids=ids) for ids in prompt_ids(export)]
    outputs = llm.generate(inputs, vllm.SamplingParams(temperature=0, max_tokens=MAX_TOKENS), use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


if __name__ == "__main__":
    print(json.dumps(_in_this_process(Path(sys.argv[1]))))
