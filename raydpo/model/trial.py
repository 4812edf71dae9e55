"""The trial that every model passes when it is loaded: our log-probs are its own.

Legend: M completion positions.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from raydpo.config.errors import UserError
from raydpo.data.pack import pack_rows
from raydpo.data.tokens import TokenRow
from raydpo.model.batch import Batch
from raydpo.model.layout import is_packed, may_pack
from raydpo.model.score import ScoringModel
from raydpo.model.version import backend_for

# Mean |Δ logp| per token, in nats. Rounding moves bfloat16 by hundredths, a wrong mask or position by far more.
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 0.2}


def choose_layout(lm: PreTrainedModel, *, name: str) -> PreTrainedModel:
    """Set packed attention where it gives the model's own log-probs; else leave the model as it is.

    Raises UserError when padded sequences do not give them either: something stands between the hidden states and the
    logits that raydpo does not know.
    """
    batch = _trial_batch(int(lm.config.get_text_config().vocab_size), lm.device)
    if may_pack(lm):
        lm.set_attn_implementation("eager")  # what a model means: sdpa leaves Gemma 2's capping of scores out
    expected = _own_token_logps(lm, batch)
    if may_pack(lm):
        lm.set_attn_implementation(backend_for(lm.device.type))
        if _gap(lm, batch, expected) <= TOLERANCE[lm.dtype]:
            return lm
        lm.set_attn_implementation("eager")
    gap = _gap(lm, batch, expected)
    if not gap <= TOLERANCE[lm.dtype]:
        raise UserError(
            f"model {name!r}: its own log-probs and those from its hidden states and output matrix differ by {gap:.3g} "
            f"nats per token, so it does something to its logits that raydpo does not know; use another model."
        )
    return lm


def _gap(lm: PreTrainedModel, batch: Batch, expected: Tensor) -> float:
    return float((ScoringModel(lm).token_logps(batch) - expected).abs().mean())


@torch.no_grad()
def _own_token_logps(lm: PreTrainedModel, batch: Batch) -> Tensor:
    """[M], from the model's own forward pass over one sequence at a time."""
    assert not is_packed(lm)
    pieces = []
    for start, *marks in batch.bounds:
        prompt = batch.input_ids[:, start : marks[0]]
        for begin, end in pairwise(marks):
            completion = batch.input_ids[:, begin:end]
            logits = lm(input_ids=torch.cat((prompt, completion), dim=1), use_cache=False).logits[0].float()
            logps = logits[prompt.shape[1] - 1 : -1].log_softmax(dim=1)
            pieces.append(logps.gather(1, completion[0, :, None]).squeeze(1))
    return torch.cat(pieces)


def _trial_batch(vocab_size: int, device: torch.device) -> Batch:
    """Three rows of random tokens, with prompts and completions of unequal length."""
    rng = np.random.default_rng(0)

    def tokens(count: int) -> list[int]:
        return [int(token) for token in rng.integers(vocab_size, size=count)]

    sizes = (7, 5, 3), (1, 2, 6), (11, 4, 4)
    rows = [TokenRow(bytes(16), tokens(p), (tokens(a), tokens(b))) for p, a, b in sizes]
    return Batch.from_pack(pack_rows(rows), device=device)
