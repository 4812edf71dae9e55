"""The sampler check: the sampler's log-probs of its own completions are held against the policy's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raydpo.errors import UserError

# Mean |Δ log-prob| a token, in nats. Other kernels and another order of sums move a token by less than 1e-6 in float32,
# and in bfloat16 by 0.006 (two layers; thirty layers of a 135M model as initialised) to 0.10 (the same with weights
# three times as wide). A head that belongs to other weights moves it by 1 and more.
TOLERANCE = {"float32": 0.01, "bfloat16": 0.3}


def check_sampler(
    sampled: Sequence[Sequence[float]], own: Sequence[NDArray[np.float32]], *, model: str, dtype: str
) -> float:
    """Mean |Δ log-prob| a token between sampler and policy, in nats.

    sampled and own hold one entry a completion, with one log-prob a token of it, at temperature 1 and over the whole
    vocabulary: so it does not matter how the completion was drawn. Raises UserError beyond the tolerance, which small
    differences between two checkpoints do not reach: this finds weights that were mixed up, not a step of training.
    """
    differences = [_differences(theirs, ours) for theirs, ours in zip(sampled, own, strict=True)]
    gap = float(np.concatenate(differences).mean())
    if not gap <= TOLERANCE[dtype]:  # not a number is beyond it as well
        raise UserError(
            f"the sampler does not hold the weights of {model}: its log-probs of its own completions differ from the "
            f"model's by {gap:.3g} nats a token on average; rounding in {dtype} stays below {TOLERANCE[dtype]:g}. "
            "Nothing that it has sampled counts. If a fresh start says the same, vLLM computes this architecture in "
            "another way than transformers: sample from another model."
        )
    return gap


def _differences(sampled: Sequence[float], own: NDArray[np.float32]) -> NDArray[np.float64]:
    if len(sampled) != len(own):
        raise ValueError(f"{len(sampled)} log-probs from the sampler, {len(own)} from the policy for one completion")
    return np.abs(np.asarray(sampled, dtype=np.float64) - own)
