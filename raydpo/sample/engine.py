"""One vLLM engine that stays up and swaps weights. Import this module only in the process that samples."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

from raydpo.config.schema import Decoding, Sampler


@dataclass(frozen=True)
class Completion:
    """A sampled completion; ids hold the end-of-sequence token when finish_reason is "stop"."""

    ids: list[int]
    text: str  # without special tokens
    finish_reason: str  # "stop" or "length"


class Engine:
    """vLLM in this process. Starting takes 20 to 30 s on a CPU; load() swaps weights in well under a second."""

    def __init__(self, model: str, *, dtype: str, settings: Sampler, seed: int) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine lives and dies with this actor
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(settings.kv_cache_gib)))
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        logging.getLogger("vllm").setLevel(logging.ERROR)
        import vllm

        self._llm = vllm.LLM(
            model=model,
            dtype=dtype,
            seed=seed,
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            enforce_eager=True,
            enable_prefix_caching=False,  # cached keys would outlive the weights that made them
            disable_log_stats=True,
            use_tqdm_on_load=False,
        )
        self._loaded = model

    def load(self, model: str) -> None:
        """Swap in the weights of another directory of the same architecture."""
        if model != self._loaded:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": model})
            self._loaded = model

    def sample(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding, *, n: int, seed: int, stop_ids: Sequence[int]
    ) -> list[list[Completion]]:
        """n completions for each prompt of token ids; prompt i draws from seed + i * n.

        stop_ids: a completion ends with the first of these, as training rows do.
        """
        from vllm import SamplingParams, TokensPrompt

        params = [
            SamplingParams(
                n=n,
                temperature=decoding.temperature,
                top_p=decoding.top_p,
                max_tokens=decoding.max_tokens,
                stop_token_ids=list(stop_ids),
                seed=seed + i * n,  # vLLM gives completion j of a prompt its seed + j
            )
            for i in range(len(prompts))
        ]
        inputs = [TokensPrompt(prompt_token_ids=list(ids)) for ids in prompts]
        outputs = self._llm.generate(inputs, params, use_tqdm=False)
        return [
            [Completion(list(o.token_ids), o.text, o.finish_reason or "length") for o in request.outputs]
            for request in outputs
        ]
