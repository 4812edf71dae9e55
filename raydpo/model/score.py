"""score: tokens to log-probs, the same code path for policy and reference.

Legend: B rows, C completions of all rows, T packed tokens, M completion positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from raydpo.model.batch import Batch
from raydpo.model.head import NOTHING, Asked, CompletionHead, Scored
from raydpo.model.layout import backbone, is_packed, packed_states, padded_states
from raydpo.objective.contract import RowLoss, ScoredRows, TokenMetric


class ScoringModel(nn.Module):
    """A causal language model as a function from a packed batch to log-probs.

    Shares its parameters with `lm`, which must come from raydpo.model.load (no dropout, layout chosen). fp32_head: the
    product with the vocabulary matrix is made in float32 although the model is bfloat16.
    """

    def __init__(self, lm: PreTrainedModel, *, fp32_head: bool = False) -> None:
        super().__init__()
        self.backbone = backbone(lm)
        config = lm.config.get_text_config()
        self.head = CompletionHead(
            lm.get_output_embeddings(),
            scale=_logit_scale(config),
            softcap=getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None),
            fp32=fp32_head,
        )
        self._states = packed_states if is_packed(lm) else padded_states

    def forward(
        self,
        batch: Batch,
        loss: RowLoss | None = None,
        asked: Asked = NOTHING,
        observes: Sequence[TokenMetric] = (),
    ) -> Scored | Tensor:
        """With a loss: (total, losses [B], token log-probs [M]), of which `total` can be differentiated, in one pass.

        Where something is observed, its figures [K, M] come fourth.

        Without: log π(token | what stands before it) of every completion token, shape [M], in nats, which can be
        differentiated: for losses that weigh tokens or want more than sums over completions.

        asked, observes: see CompletionHead.forward.
        """
        return self.head(self.completion_states(batch), batch, loss, asked, observes)

    @torch.no_grad()
    def token_logps(self, batch: Batch) -> Tensor:
        """log π(token | what stands before it) of every completion token, shape [M], float32, in nats."""
        return self.head(self.completion_states(batch), batch)

    def figures(self, batch: Batch) -> Tensor:
        """What an export must give again, [M]: the log-probs of the completion tokens."""
        return self.token_logps(batch)

    def seen(self, batch: Batch, token_logps: Tensor) -> ScoredRows:
        """What an objective sees of a batch, given its token log-probs [M]."""
        return batch.scored(token_logps)

    def completion_states(self, batch: Batch) -> Tensor:
        """Hidden states [M, D] that predict the completion tokens."""
        states = self._states(self.backbone, batch)
        return states.to(self.head.weight.dtype)  # some backbones (Mamba) keep a wider residual stream


def _logit_scale(config: PreTrainedConfig) -> float:
    """The factor between hidden states times the vocabulary matrix and a model's logits, in the families' own words."""
    multipliers = [getattr(config, name, None) for name in ("logit_scale", "lm_head_multiplier")]  # Cohere, Falcon-H1
    scale = next((float(each) for each in multipliers if each), 1.0)
    scaling = float(getattr(config, "logits_scaling", None) or 1.0)  # Granite divides by it, HyperCLOVA X multiplies
    return scale * scaling if config.model_type == "hyperclovax" else scale / scaling


def sequence_logps(token_logps: Tensor, batch: Batch) -> Tensor:
    """Sum per-token log-probs [M] into log π(y|x) per completion, shape [C], in nats."""
    return batch.scored(token_logps).logps()
