"""rate: tokens to rewards, in packs of a bounded size.

Legend: C completions of all rows, K heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from raydpo.data.order import split_microbatches
from raydpo.data.pack import pack_rows
from raydpo.data.tokens import TokenRow
from raydpo.model.batch import Batch
from raydpo.model.reward_head import RewardModel


def rate_rows(
    model: RewardModel, rows: Sequence[TokenRow], *, tokens_per_microbatch: int, device: torch.device | str = "cpu"
) -> Tensor:
    """The rewards of every completion by every head, [C, K] in float32 on the CPU, in the order of the rows.

    A completion is read to its last token, which should be what the completions of the training ended with: their EOS,
    or the token that closes the turn. A row is never cut: the longest one sets the least that a pack holds.
    """
    lengths = np.asarray([len(row.prompt_ids) + sum(map(len, row.completions)) for row in rows])
    bound = max(tokens_per_microbatch, int(lengths.max()))
    first = list(accumulate((len(row.completions) for row in rows), initial=0))
    rewards = torch.empty(first[-1], model.score.out_features)
    [micro_batches] = split_microbatches(lengths, world_size=1, tokens_per_microbatch=bound)
    for members in micro_batches:
        batch = Batch.from_pack(pack_rows([rows[i] for i in members]), device=device)
        places = [place for i in members for place in range(first[i], first[i + 1])]
        rewards[places] = model.head_rewards(batch).cpu().float()
    return rewards
