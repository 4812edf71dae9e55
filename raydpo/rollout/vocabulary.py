"""Token ids beyond the tokenizer are never drawn. Import this module only in the process that samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor


def known_tokens(size: int) -> type[LogitsProcessor]:
    """A logits processor that leaves ids 0..size-1.

    Many models pad their vocabulary to a round number: the rows beyond the tokenizer have some small probability and no
    text. So what is drawn is π restricted to the tokenizer's ids and scaled to sum to 1; log-probs stay those of π
    itself. The two differ by the log of what π gives to the padding.
    """

    class KnownTokens(LogitsProcessor):
        def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
            pass

        def apply(self, logits: Tensor) -> Tensor:
            logits[:, size:] = -torch.inf
            return logits

        def is_argmax_invariant(self) -> bool:
            return False

        def update_state(self, batch_update: Any) -> None:
            pass

    return KnownTokens
