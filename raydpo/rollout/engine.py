"""One vLLM engine that stays up and swaps weights. Import this module only in the process that samples."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raydpo.config.schema import Decoding, Sampler
from raydpo.errors import UserError
from raydpo.rollout.weights import swap_weights


@dataclass(frozen=True)
class Completion:
    """A sampled completion; ids hold the end-of-sequence token when finish_reason is "stop"."""

    ids: list[int]
    text: str  # without special tokens
    finish_reason: str  # "stop" or "length"
    logps: tuple[float, ...] = ()  # log π of each token at temperature 1, in nats; empty where nobody asked


class Engine:
    """vLLM in this process. Starting takes 20 to 30 s on a CPU; load() swaps weights in well under a second."""

    def __init__(self, model: str, *, dtype: str, settings: Sampler, vocabulary: int) -> None:
        """vocabulary: ids that the tokenizer knows; ids from there on are not drawn."""
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine lives and dies with this actor
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(settings.kv_cache_gib)))
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        logging.getLogger("vllm").setLevel(logging.ERROR)
        import vllm

        from raydpo.rollout.vocabulary import known_tokens

        self._llm = vllm.LLM(
            model=model,
            dtype=dtype,
            seed=0,  # each completion brings its own
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            enforce_eager=True,
            enable_prefix_caching=False,  # cached keys would outlive the weights that made them
            disable_log_stats=True,
            use_tqdm_on_load=False,
            logits_processors=[known_tokens(vocabulary)],
            logprobs_mode="raw_logprobs",  # of the model, whatever temperature and top_p do to it
        )
        self._loaded: str | None = model

    def load(self, model: str) -> None:
        """Swap in the weights of another directory of the same architecture.

        Raises UserError when the directory does not hold all of them.
        """
        if model != self._loaded:
            self._loaded = None  # half a swap is neither model
            for missing in self._llm.collective_rpc(swap_weights, args=(model,)):
                if missing:
                    raise UserError(
                        f"model {model!r} lacks weights that the sampler needs: {missing[:5]}; export it again, whole."
                    )
            self._loaded = model

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        *,
        n: int,
        seed: int,
        stop_ids: Sequence[int],
        with_logps: int = 0,
    ) -> list[list[Completion]]:
        """n completions for each prompt of token ids; prompt i draws from seed + i * n.

        stop_ids: a completion ends with the first of these, as training rows do.
        with_logps: so many prompts, from the first, get completions with log-probs.
        """
        from vllm import SamplingParams, TokensPrompt

        params = [
            SamplingParams(
                n=n,
                temperature=decoding.temperature,
                top_p=decoding.top_p,
                top_k=decoding.top_k or 0,  # 0: all tokens
                max_tokens=decoding.max_tokens,
                stop_token_ids=list(stop_ids),
                seed=seed + i * n,  # vLLM gives completion j of a prompt its seed + j
                logprobs=0 if i < with_logps else None,  # 0: of the drawn token alone
            )
            for i in range(len(prompts))
        ]
        inputs = [TokensPrompt(prompt_token_ids=list(ids)) for ids in prompts]
        outputs = self._llm.generate(inputs, params, use_tqdm=False)
        return [[_completion(output) for output in request.outputs] for request in outputs]


def _completion(output: Any) -> Completion:
    ids = list(output.token_ids)
    logps = tuple(step[token].logprob for token, step in zip(ids, output.logprobs or [], strict=False))
    return Completion(ids, output.text, output.finish_reason or "length", logps)
