"""What vLLM's pooling runner makes of a reward model's export, in a process of its own.

python -m tests.cluster.classify EXPORT TEXTS        TEXTS: token ids as JSON; prints a reward for each
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.greedy import VLLM
from tests.cluster.processes import PYTHON, job


def vllm_rewards(export: Path, texts: Sequence[Sequence[int]], scratch: Path) -> list[float]:
    """The reward of every text, without the sigmoid that vLLM's classifiers end in."""
    (scratch / "texts.json").write_text(json.dumps(texts))
    with job(PYTHON, "-m", "tests.cluster.classify", export, scratch / "texts.json", env=VLLM) as started:
        rewards: list[float] = json.loads(started.wait().succeeded().stdout.splitlines()[-1])
    return rewards


def _in_this_process(export: str, texts: list[list[int]]) -> list[float]:
    import vllm

    settings = {"dtype": "float32", "max_model_len": 96, "enforce_eager": True, "disable_log_stats": True}
    llm = vllm.LLM(model=export, runner="pooling", convert="classify", **settings)
    inputs = [vllm.TokensPrompt(prompt_token_ids=ids) for ids in texts]
    found = llm.classify(inputs, pooling_params=vllm.PoolingParams(use_activation=False), use_tqdm=False)
    return [reward for each in found for reward in each.outputs.probs]


if __name__ == "__main__":
    print(json.dumps(_in_this_process(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))))
