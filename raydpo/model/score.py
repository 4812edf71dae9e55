"""score: tokens to log-probs, the same code path for policy and reference.

Legend: B rows, n completions per row, T packed tokens, M completion positions, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from raydpo.model.batch import Batch
from raydpo.model.head import CompletionHead, Loss, Scored

VERSION = 1  # part of the reference store's key: raise it whenever a change here or in head/attention moves a number


class ScoringModel(nn.Module):
    """A causal language model as a function from a packed batch to log-probs.

    Shares its parameters with `lm`, which must have been loaded by raydpo.model.load (segment attention, no dropout).
    """

    def __init__(self, lm: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = lm.base_model
        self.head = CompletionHead(lm.get_output_embeddings())

    def forward(self, batch: Batch, loss: Loss) -> Scored:
        """(total, losses [B], logps [B, n]) of a batch; `total` can be differentiated."""
        return self.head(self.completion_states(batch), batch, loss)

    @torch.no_grad()
    def token_logps(self, batch: Batch) -> Tensor:
        """log π(token | what stands before it) of every completion token, shape [M], float32, in nats."""
        return self.head(self.completion_states(batch), batch)

    def completion_states(self, batch: Batch) -> Tensor:
        """Hidden states [M, D] that predict the completion tokens."""
        states = self.backbone(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=None,
            use_cache=False,
            bounds=batch.bounds,
        ).last_hidden_state
        return states[0, batch.source]


def sequence_logps(token_logps: Tensor, batch: Batch) -> Tensor:
    """Sum per-token log-probs [M] into log π(y|x) per completion, shape [B, n], in nats."""
    sums = token_logps.new_zeros(batch.num_rows * batch.completions_per_row)
    return sums.index_add(0, batch.owner, token_logps).view(batch.num_rows, batch.completions_per_row)
