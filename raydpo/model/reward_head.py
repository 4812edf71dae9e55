"""A reward model: a language model's layers with heads that read the last token of a completion.

Legend: C completions of all rows, B rows, K heads, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from raydpo.model.batch import Batch
from raydpo.model.head import NOTHING, Asked
from raydpo.model.layout import backbone, is_packed, packed_last_states, padded_last_states
from raydpo.objective.contract import RatedRows, RewardLoss, TokenMetric

Rated = tuple[Tensor, Tensor, Tensor]
"""total, losses [B], rewards [C, K]: the sum of the losses, which alone has a gradient; plain for ZeRO-3's hooks."""


class RewardHead(nn.Linear):
    """K rewards of a state, [.., D] -> [.., K], in float32 or wider.

    The weights stand as transformers' sequence classifiers have them, under `score`, without a bias: of a pair only the
    difference of two rewards is learnt. The product is made in float32 although the model may be bfloat16, which could
    not tell rewards of 10 apart by less than 0.06.
    """

    def __init__(self, hidden_size: int, heads: int = 1) -> None:
        super().__init__(hidden_size, heads, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """[.., D] -> [.., K]."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        return nn.functional.linear(states.to(dtype), self.weight.to(dtype))


class RewardModel(nn.Module):
    """A sequence classifier as a function from a packed batch to rewards.

    Shares its parameters with `lm`, which must come from raydpo.model.reward_model: no dropout, layout chosen, and a
    RewardHead for its `score`.
    """

    def __init__(self, lm: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone(lm)
        self.score: RewardHead = lm.score
        self._states = packed_last_states if is_packed(lm) else padded_last_states

    def forward(
        self,
        batch: Batch,
        loss: RewardLoss | None = None,
        asked: Asked = NOTHING,
        observes: Sequence[TokenMetric] = (),
    ) -> Rated | Tensor:
        """With a loss: (total, losses [B], rewards [C, K]), of which `total` can be differentiated.

        Without: the rewards of every completion by every head, [C, K], which can be differentiated. There is no look at
        any token's logits, so nothing can be asked of them or observed.
        """
        assert not asked
        assert not observes
        rewards: Tensor = self.score(self._states(self.backbone, batch))
        if loss is None:
            return rewards
        losses = loss(batch.rated(rewards))
        return losses.sum(), losses.detach(), rewards.detach()

    @torch.no_grad()
    def head_rewards(self, batch: Batch) -> Tensor:
        """The reward of every completion by every head, [C, K], float32."""
        return self(batch)

    def rewards(self, batch: Batch) -> Tensor:
        """The reward of every completion, [C], float32: the mean over the heads."""
        return self.head_rewards(batch).mean(dim=1)

    def figures(self, batch: Batch) -> Tensor:
        """What an export must give again, [C]: the rewards."""
        return self.rewards(batch)

    def seen(self, batch: Batch, rewards: Tensor) -> RatedRows:
        """What an objective sees of a batch, given its rewards [C, K]."""
        return batch.rated(rewards)
