"""Holding the sampler's own log-probs against the policy's, wherever something has been sampled."""

from __future__ import annotations

from collections.abc import Sequence

import ray
import torch

from raydpo.config.schema import RunFile
from raydpo.data.prompts import Prompt
from raydpo.data.tokens import TokenRow
from raydpo.evaluate.probe import check_sampler
from raydpo.model.load import load_model
from raydpo.model.score import ScoringModel
from raydpo.reference.scoring import score_rows
from raydpo.sample.engine import Completion


def confirm_sampler(
    run: RunFile, policy: ScoringModel, model: str, prompts: Sequence[Prompt], drawn: Sequence[Completion]
) -> float:
    """Compare every completion that came with log-probs, prompt by prompt; raises UserError as check_sampler does.

    policy holds the weights of `model`. Returns the mean |Δ log-prob| a token in nats.
    """
    probed = [(p, c) for p, c in zip(prompts, drawn, strict=True) if c.logps]
    if not probed:
        raise RuntimeError(f"no sample of {model} came with log-probs, so nothing shows which weights drew them")
    rows = [TokenRow(b"", prompt.ids, (completion.ids,)) for prompt, completion in probed]
    budget, device = run.reference.tokens_per_batch, policy.head.weight.device
    scored, _ = score_rows(policy, rows, budget=budget, device=device)
    own = [values for [values] in scored]
    return check_sampler([c.logps for _, c in probed], own, model=model, dtype=run.model.dtype)


@ray.remote(num_cpus=0)  # a few rows; the samplers may have taken all that the run asks for
def confirm_samples(run: RunFile, model: str, prompts: Sequence[Prompt], drawn: Sequence[Completion]) -> float:
    """The same in a task that loads the model itself, on the CPU: a task without a GPU must not take one."""
    torch.set_num_threads(max(1, int(run.sampler.cpus)))
    settings = run.model
    policy = ScoringModel(load_model(model, dtype=settings.dtype), fp32_head=settings.fp32_head)
    return confirm_sampler(run, policy, model, prompts, drawn)
