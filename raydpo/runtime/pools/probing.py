"""Holding the sampler's own log-probs against the policy's, wherever something has been sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import ray
import torch

from raydpo.config.schema import Model
from raydpo.data.prompts import Prompt
from raydpo.data.tokens import TokenRow
from raydpo.evaluate.sampler_check import check_sampler
from raydpo.model.load import load_model
from raydpo.model.score import ScoringModel
from raydpo.reference.scoring import score_rows
from raydpo.rollout.engine import Completion

ScoreRows = Callable[[Sequence[TokenRow]], list[list[np.ndarray]]]


def confirm_sampler(
    score: ScoreRows, model: str, prompts: Sequence[Prompt], drawn: Sequence[Completion], *, dtype: str
) -> float:
    """Compare every completion that came with log-probs, prompt by prompt; raises UserError as check_sampler does.

    score: token log-probs of rows by the weights of `model`. Returns the mean |Δ log-prob| a token, in nats.
    """
    probed = [(p, c) for p, c in zip(prompts, drawn, strict=True) if c.logps]
    if not probed:
        raise RuntimeError(f"no sample of {model} came with log-probs, so nothing shows which weights drew them")
    rows = [TokenRow(b"", prompt.ids, (completion.ids,)) for prompt, completion in probed]
    own = [values for [values] in score(rows)]
    return check_sampler([c.logps for _, c in probed], own, model=model, dtype=dtype)


@ray.remote(num_cpus=0)  # a few rows; the samplers may have taken all that the run asks for
def confirm_samples(
    form: Model,
    model: str,
    prompts: Sequence[Prompt],
    drawn: Sequence[Completion],
    *,
    tokens_per_microbatch: int,
    threads: int,
) -> float:
    """The same in a task that loads the model itself, on the CPU: a task without a GPU must not take one.

    form: says in which number format `model` is loaded.
    """
    torch.set_num_threads(threads)
    policy = ScoringModel(load_model(model, dtype=form.dtype), fp32_head=form.fp32_head)
    device = policy.head.weight.device

    def score(rows: Sequence[TokenRow]) -> list[list[np.ndarray]]:
        return score_rows(policy, rows, tokens_per_microbatch=tokens_per_microbatch, device=device)[0]

    return confirm_sampler(score, model, prompts, drawn, dtype=form.dtype)


def confirming(
    form: Model, model: str, *, tokens_per_microbatch: int, threads: int
) -> Callable[[Sequence[Prompt], Sequence[Completion]], None]:
    """What asks confirm_samples about completions of a model, and waits for the answer."""

    def confirm(prompts: Sequence[Prompt], drawn: Sequence[Completion]) -> None:
        ray.get(
            confirm_samples.remote(
                form, model, prompts, drawn, tokens_per_microbatch=tokens_per_microbatch, threads=threads
            )
        )

    return confirm
